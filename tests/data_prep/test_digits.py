"""The quickstart's pages: real digits, no leak between the splits, readable by the rest of the library."""

import hashlib
import json

import numpy as np
import pytest
from sklearn.svm import SVC
from transformers import AutoTokenizer

from data_prep.digits import NAMES, digit_split, draw_pages, main
from data_prep.digits_ceiling import half, tiles
from dslight.data.sample import decode_image, parse_sample
from dslight.data.shards import ShardReader, verify


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    main(["--out", str(root), "--train-pages", "60", "--val-pages", "12"])
    return root


def samples(root):
    reader = ShardReader(root, check="full")
    return [parse_sample(reader.locate(row)[1], reader.read(row)) for row in range(len(reader))]


def test_a_training_page_asks_for_its_cells_once_in_random_order(out):
    orders = set()
    lengths = []
    for sample in samples(out / "train"):
        asked = [turn.text.removeprefix("<image>\n") for turn in sample.turns[::2]]
        answers = [int(turn.text) for turn in sample.turns[1::2]]
        assert len(set(asked)) == len(asked)
        assert set(asked) <= set(NAMES)
        assert answers == [sample.labels_grid["ABCD".index(name[0]), int(name[1]) - 1] for name in asked]
        orders.add(tuple(asked))
        lengths.append(len(asked))
    assert len(orders) > 50
    assert lengths[:16] == [1, 16, 16, 16, 2, 16, 16, 16, 3, 16, 16, 16, 4, 16, 16, 16]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_page_that_is_scored_has_eight_different_questions(out, split):
    for sample in samples(out / split):
        names = [question.text for question in sample.questions]
        assert len(set(names)) == 8
        for question in sample.questions:
            row, col = "ABCD".index(question.text[0]), int(question.text[1]) - 1
            assert question.references == (str(sample.labels_grid[row, col]),)


def test_pages_are_small_and_grey_and_hold_ink_in_every_cell(out):
    for sample in samples(out / "train")[:20]:
        page = decode_image(sample.images[0])
        assert page.shape == (32, 32, 3)
        assert (page == page[:, :, :1]).all()
        cells = page[:, :, 0].reshape(4, 8, 4, 8).swapaxes(1, 2)
        assert (cells.min((2, 3)) < 130).all()
        assert page[:, :, 0].mean() > 150


def test_digits_of_the_three_splits_are_different_images():
    parts = [digit_split(split)[0] for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [1197, 300, 300]
    train, val, test = ({hashlib.sha256(digit.tobytes()).hexdigest() for digit in part} for part in parts)
    assert not train & val | train & test | val & test


def test_the_label_of_a_cell_is_the_digit_drawn_in_it():
    """An SVM that learns the cells of training pages reads those of validation pages."""
    rng = np.random.default_rng(0)

    def cells(count: int, split: str) -> tuple[np.ndarray, np.ndarray]:
        pages, labels = draw_pages(count, split, rng)
        return pages.reshape(count, 4, 8, 4, 8).swapaxes(2, 3).reshape(-1, 64) / 255, labels.ravel()

    reader = SVC(C=10).fit(*cells(100, "train"))
    assert reader.score(*cells(25, "val")) > 0.75


def test_the_tokenizer_knows_every_word_as_one_token(out):
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    assert len(tokenizer) == 30
    ids = tokenizer(" ".join([*NAMES, *map(str, range(10))])).input_ids
    assert len(set(ids)) == 26
    assert tokenizer.unk_token_id not in ids
    assert tokenizer("B3 7<eos>").input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("7<eos>").input_ids, skip_special_tokens=True) == "7"
    assert tokenizer.pad_token == "<pad>"


def test_a_second_call_reuses_what_is_there_and_other_arguments_are_refused(out, capsys):
    before = (out / "train" / "manifest.json").stat().st_mtime_ns
    main(["--out", str(out), "--train-pages", "60", "--val-pages", "12"])
    assert "60 records of seed 0 are there already" in capsys.readouterr().out
    assert (out / "train" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="other arguments"):
        main(["--out", str(out), "--train-pages", "61", "--val-pages", "12"])


def test_the_same_seed_draws_the_same_shards(out, tmp_path):
    main(["--out", str(tmp_path), "--train-pages", "60", "--val-pages", "12"])
    for split in ("train", "val", "test"):
        texts = [json.loads((root / split / "manifest.json").read_text()) for root in (out, tmp_path)]
        assert texts[0] == texts[1]
        assert list(verify(tmp_path / split)) == []


def test_an_svm_reads_full_tiles_better_than_half_ones():
    """The whole measurement takes seconds; this is it on a quarter of the tiles."""
    rng = np.random.default_rng(0)
    (train, classes), (val, expected) = tiles("train", 1600, rng), tiles("val", 400, rng)
    high = SVC(C=10).fit(train.reshape(1600, -1) / 255, classes).score(val.reshape(400, -1) / 255, expected)
    low = SVC(C=10).fit(half(train).reshape(1600, -1) / 255, classes).score(half(val).reshape(400, -1) / 255, expected)
    assert high > 0.8
    assert 0.5 < low < high - 0.08
