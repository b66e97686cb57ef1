"""Questions about one record: read, decoded and shown once, and asked side by side."""

import pytest

from dslight.data import rows
from dslight.data.datamodule import ShardData, ValSource
from dslight.data.sample import BadSample
from dslight.data.shards import ShardWriter
from dslight.layout import SlotLayout


@pytest.fixture
def loader(tmp_path, png, tokenizer):
    """``loader(each)``: records of as many questions, of lengths that a sort by length alone would scatter."""
    import numpy as np

    def make(each, batch=4, **settings):
        root = tmp_path / "q"
        number = 0
        with ShardWriter(root) as writer:
            for record, count in enumerate(each):
                asked = []
                for _ in range(count):
                    text = "A1" * (1 + number * 7 % 5)
                    asked.append({"question_id": str(number), "question": text, "answers": ["1"], "type": ""})
                    number += 1
                page = png(np.full((8, 8, 3), record * 10, np.uint8))
                writer.write(f"r{record}", [page], {"questions": asked})
        val = {"q": ValSource(str(root))}
        data = ShardData([], None, 4, val, template="bare", val_batch_size=batch, **settings)
        data.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
        data.setup("validate")
        return data.val_dataloader()[0]

    return make


def test_questions_of_a_record_stay_together_and_share_its_views(loader):
    found = loader((3, 2, 1, 4), batch=5)
    batches = list(found)
    keys = [question.key for batch in batches for question in batch.questions]
    runs = [key for i, key in enumerate(keys) if i == 0 or keys[i - 1] != key]
    assert sorted(runs) == ["r0", "r1", "r2", "r3"]  # each in one run
    numbers = sorted(question.number for batch in batches for question in batch.questions)
    assert numbers == list(range(10))
    for batch in batches:
        own = [question.key for question in batch.questions]
        assert len(batch.views) == len(set(own))
        assert [own[i] for i in batch.pictures] == own


def test_a_batch_of_questions_about_pictures_of_their_own_says_nothing_of_pictures(loader):
    for batch in loader((1,) * 6, batch=3):
        assert batch.pictures == []
        assert len(batch.views) == 3


def test_a_picture_is_decoded_once_for_all_its_questions(loader, monkeypatch):
    decoded, decode = [], rows.decode_image
    monkeypatch.setattr(rows, "decode_image", lambda *args, **options: decoded.append(1) or decode(*args, **options))
    list(loader((4, 4), batch=4))
    assert len(decoded) == 2


def test_data_processes_share_them_too(loader):
    for batch in loader((4, 4), batch=4, num_workers=1):
        assert len(batch.views) == 1


def test_every_question_of_a_record_has_what_its_benchmark_puts_behind_it_or_its_own(tmp_path, png, tokenizer):
    import numpy as np

    asked = {"answers": ["1"], "type": ""}
    ends = ({}, {}, {"suffix": " 7"}, {"suffix": ""})
    questions = [{**asked, "question_id": str(i), "question": "A1", **end} for i, end in enumerate(ends)]
    with ShardWriter(tmp_path / "q") as writer:
        writer.write("r", [png(np.zeros((8, 8, 3), np.uint8))], {"questions": questions})
    data = ShardData([], None, 4, {"q": ValSource(str(tmp_path / "q"))}, template="bare", val_batch_size=4)
    data.connect(tokenizer, (8, 8), SlotLayout((2, 2)), suffixes={"q": " B2"})
    data.setup("validate")
    (batch,) = data.val_dataloader()[0]
    rows = zip(batch.questions, batch.input_ids, batch.attention_mask.bool() & ~batch.visual_mask, strict=True)
    said = {question.question_id: tokenizer.decode(ids[shown]).split() for question, ids, shown in rows}
    begins = tokenizer.decode(tokenizer("A1")["input_ids"]).split()
    for name, end in zip("0123", (["B2"], ["B2"], ["7"], []), strict=True):
        assert said[name] == [*begins, *end], name


@pytest.fixture
def clip(tmp_path, png, tokenizer):
    """``clip(count, **source)``: the batches of a question about a clip of so many frames, and one without."""
    import numpy as np

    def make(count, text="A1", template="bare", image_marks=None, **source):
        root = tmp_path / f"clip-{len(list(tmp_path.iterdir()))}"
        frames = [png(np.full((8, 8, 3), 10 * i, np.uint8)) for i in range(count)]
        asked = {"answers": ["1"], "type": ""}
        with ShardWriter(root) as writer:
            writer.write("c", frames, {"questions": [{**asked, "question_id": "c", "question": text}]})
            writer.write("t", [], {"questions": [{**asked, "question_id": "t", "question": "A1"}]})
        val = {"q": ValSource(str(root), **source)}
        data = ShardData([], None, 4, val, template=template, val_batch_size=2, image_marks=image_marks)
        data.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
        data.setup("validate")
        return list(data.val_dataloader()[0])

    return make


def test_fewer_frames_are_those_in_the_middle_of_equal_parts(clip):
    (batch,) = clip(9, frames=3)
    assert batch.views.pixels[:, 0, 0, 0].tolist() == [10, 40, 70]
    assert batch.visual_mask.sum() == 3 * 4
    (whole,) = clip(3, frames=3)
    assert len(whole.views) == 3


def test_more_frames_than_there_are_and_images_within_the_text_are_refused(clip):
    with pytest.raises(BadSample, match="frames: 5 are to be shown, and there are 4 images"):
        clip(4, frames=5)
    with pytest.raises(BadSample, match="frames: question c says where each of its images stands"):
        clip(2, text="<image> or <image>?", frames=1)


def test_a_source_is_asked_with_or_without_thoughts_whatever_the_others_are(clip, tokenizer, monkeypatch):
    thinks = "{{ messages[0].content }} A1{% if enable_thinking is false %} B2{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", thinks, raising=False)
    said = {}
    for thinking in (None, True, False):
        (batch,) = clip(1, template="tokenizer", thinking=thinking)
        said[thinking] = tokenizer.decode(batch.input_ids[0][batch.attention_mask[0].bool()])
    assert said[False].endswith("B2")
    assert not said[True].endswith("B2")
    assert said[None] == said[True]
    (batch,) = clip(1, template="tokenizer", thinking=False, image_marks=("B2", "7"))
    assert tokenizer.decode(batch.input_ids[0][batch.attention_mask[0].bool()]).startswith("B2")
    with pytest.raises(ValueError, match=r"data\.val\.q\.thinking: only data\.template: tokenizer knows of thoughts"):
        clip(1, template="bare", thinking=True)
