"""The evidence's pages: drawn the same every time, answers that are on them, no word in two splits."""

import json

import numpy as np
import pytest

from data_prep.evidence.kinds import KINDS
from data_prep.evidence.pages import QUESTIONS, caption, letters, main, page, pages, readings
from data_prep.evidence.photographs import photographs
from data_prep.evidence.sheet import CELLS, CHARACTERS, CLASSES, COLOURS
from data_prep.evidence.words import FIELDS, SPLITS, words
from dslight.data.sample import decode_image, parse_sample
from dslight.data.shards import ShardReader

SEED = 3
FEW = ["--train-pages", "12", "--val-pages", "6", "--align-pages", "8", "--letter-sheets", "6", "--seed"]


def samples(root):
    reader = ShardReader(root, check="full")
    return [parse_sample(reader.locate(row)[1], reader.read(row)) for row in range(len(reader))]


def written(sheet) -> str:
    """The characters of the labels, row by row: what the vision encoder is told is there."""
    names = " " + CHARACTERS + "#" * len(COLOURS)
    return "\n".join("".join(names[label] for label in row) for row in sheet.labels)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=list(KINDS))
def test_every_answer_of_a_page_stands_on_it_once_and_beside_what_the_question_names(kind):
    for number in range(kind, kind + 3 * len(KINDS), len(KINDS)):
        sheet, _, asked, _ = page("train", SEED, number)
        for one in asked:
            name = one.question.rstrip("?").split()
            at = [drawn for drawn in sheet.drawn if drawn.text == one.answer]
            assert at, one
            if one.kind == "title":
                assert at[0].large
                assert at[0].row == 2
                continue
            assert not any(drawn.large for drawn in at), one
            (named,) = [drawn for drawn in sheet.drawn if drawn.text in name]
            inside = [
                drawn
                for drawn in at
                if named.row - 1 <= drawn.row < named.row + named.height
                and (drawn.col >= named.col + named.width or drawn.col + drawn.width <= named.col + named.width)
            ]
            assert len(inside) == 1, (one, named, at)
            assert one.answer in written(sheet)


def test_a_page_is_the_same_whenever_it_is_drawn_and_another_with_another_number():
    for split in SPLITS:
        (first, again), (other, _) = [next(pages(split, SEED, 1)) for _ in range(2)], list(pages(split, SEED + 1, 2))
        assert first == again
        assert first[0] != other[0]


def test_no_word_is_in_two_splits():
    of = {split: set(words(split)) for split in SPLITS}
    assert {len(of[split]) for split in SPLITS} == {len(of["train"]), len(of["val"]), len(of["test"])}
    assert not of["train"] & of["val"]
    assert not of["train"] & of["test"]
    assert not of["val"] & of["test"]
    assert min(map(len, of.values())) >= 15
    assert all(len(word) == 4 and set(word) <= set(CHARACTERS) for group in of.values() for word in group)
    assert not set(FIELDS) & set().union(*of.values())


def test_answers_and_goods_of_a_split_are_its_own_words(evidence):
    for split in SPLITS[1:]:
        for sample in samples(evidence / split):
            assert len(sample.questions) == QUESTIONS
            for question in sample.questions:
                (answer,) = question.references
                word = question.text.rstrip("?").split()[-1] if question.text.startswith("Price") else answer
                assert word in words(split) or not word.isalpha()
                assert question.type in {*KINDS, "title"}


def test_shards_of_every_stage_are_read_as_what_they_are_for(evidence):
    for sample in samples(evidence / "train"):
        assert decode_image(sample.images[0]).shape == (224, 224, 3)
        assert len(sample.turns) >= 8
    sizes = [decode_image(sample.images[0]).shape[0] for sample in samples(evidence / "align/train")]
    assert sizes == [224, 112, 112, 112] * 2
    for sample in samples(evidence / "letters/train"):
        assert sample.labels_grid.shape == (CELLS, CELLS)
        assert 0 <= sample.labels_grid.min() <= sample.labels_grid.max() < CLASSES
    assert all(not sample.images for sample in samples(evidence / "text"))
    assert json.loads((evidence / "val/manifest.json").read_text())["meta"]["photographs"] == [
        p.name for p in photographs()
    ]


def test_what_is_there_is_left_and_what_was_made_otherwise_is_not_written_over(evidence, capsys):
    main(["--out", str(evidence), *FEW, str(SEED)])
    assert capsys.readouterr().out.count("there already") == 7
    with pytest.raises(SystemExit, match="letters/train: holds records made with other arguments"):
        main(["--out", str(evidence), *FEW, str(SEED + 1)])


def test_a_caption_names_what_stands_wholly_within_and_small_print_if_it_is_asked_for():
    sheet, _, _, _ = page("train", SEED, 0)
    whole = caption(sheet.drawn, 0, 0, CELLS, small=True).split(", ")
    assert sorted(whole) == sorted(drawn.text for drawn in sheet.drawn)
    assert set(caption(sheet.drawn, 0, 0, CELLS, small=False).split(", ")) == {
        drawn.text for drawn in sheet.drawn if drawn.large
    }
    assert caption(sheet.drawn, 0, 0, 1, small=True) == "nothing"
    texts = [record["conversations"][1]["value"] for _, record in readings(SEED, 8)]
    assert len(set(texts)) > 4


def test_the_labels_of_a_crowded_sheet_hold_every_kind_of_class():
    seen = np.unique([record["labels_grid"] for _, record in letters("train", SEED, 9)])
    assert set(seen) == set(range(CLASSES))
