"""Questions about one record: read, decoded and shown once, and asked side by side."""

import pytest

from dslight.data import rows
from dslight.data.datamodule import ShardData, ValSource
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
