"""The quickstart's second task: pages that say which digit occurs twice in a cell, but not to who lacks a quarter."""

import numpy as np
import pytest

from data_prep.twice import NAMES, draw_classes, draw_pages, labels_grid, main
from data_prep.twice_ceiling import cut, most_shared
from dslight.data.dense import patch_labels
from dslight.data.sample import decode_image, parse_sample
from dslight.data.shards import ShardReader


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    root = tmp_path_factory.mktemp("twice")
    main(["--out", str(root), "--train-pages", "32", "--val-pages", "4"])
    return root


def samples(root):
    reader = ShardReader(root, check="full")
    return [parse_sample(reader.locate(row)[1], reader.read(row)) for row in range(len(reader))]


def occurs_twice(sample, name):
    row, col = "AB".index(name[0]), int(name[1]) - 1
    cell = sample.labels_grid[1::2, 1::2][2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel().tolist()
    assert len(set(cell)) == 3
    (found,) = (digit for digit in set(cell) if cell.count(digit) == 2)
    return found


def test_an_answer_is_the_digit_that_occurs_twice_in_the_cell_that_is_named(out):
    lengths = []
    for sample in samples(out / "train"):
        asked = [turn.text.removeprefix("<image>\n") for turn in sample.turns[::2]]
        assert len(set(asked)) == len(asked)
        assert [int(turn.text) for turn in sample.turns[1::2]] == [occurs_twice(sample, name) for name in asked]
        assert decode_image(sample.images[0]).shape == (32, 32, 3)
        lengths.append(len(asked))
    assert lengths[:16] == [1, 4, 4, 4, 2, 4, 4, 4, 3, 4, 4, 4, 4, 4, 4, 4]
    for split in ("val", "test"):
        for sample in samples(out / split):
            assert {question.text for question in sample.questions} == set(NAMES)
            for question in sample.questions:
                assert question.references == (str(occurs_twice(sample, question.text)),)


def test_the_pair_lies_anywhere_in_its_cell_and_every_digit_is_as_common():
    digits, answers = draw_classes(6000, np.random.default_rng(0))
    assert (np.bincount(answers) > 500).all()
    assert (np.bincount(digits.ravel()) > 2200).all()
    places = (digits == answers[:, None]).mean(0)
    assert places == pytest.approx([0.5] * 4, abs=0.03)


def test_a_patch_of_a_crop_is_labelled_with_its_digit_and_one_of_the_base_view_with_that_which_occurs_twice():
    _, digits, answers = draw_pages(1, "val", np.random.default_rng(0))
    labels = patch_labels(labels_grid(digits[0], answers[0]), (2, 2), (2, 2))
    assert (labels[0].reshape(2, 2) == answers[0]).all()
    assert (labels[1:] == digits[0].reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)).all()


def test_the_reference_finds_the_digit_that_occurs_twice_and_needs_both_of_the_pair():
    digits, answers = draw_classes(200, np.random.default_rng(0))
    votes = np.eye(10)[digits] * 3.0
    assert (most_shared(votes) == answers).all()
    votes[:, 0] = 0  # one of the four is not read
    known = digits[:, 0] != answers
    assert (most_shared(votes)[known] == answers[known]).all()
    assert (most_shared(votes)[~known] == answers[~known]).mean() < 0.6


def test_pages_are_cut_into_the_places_of_their_digits_cell_by_cell():
    pages = draw_pages(2, "val", np.random.default_rng(0))[0]
    tiles = cut(pages).reshape(2, 2, 2, 2, 2, 8, 8)
    assert (tiles[1, 1, 0, 0, 1] == pages[1, 16:24, 8:16]).all()


def test_a_second_call_reuses_what_is_there_and_other_arguments_are_refused(out, capsys):
    main(["--out", str(out), "--train-pages", "32", "--val-pages", "4"])
    assert "32 records of seed 0 are there already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other arguments"):
        main(["--out", str(out), "--train-pages", "33", "--val-pages", "4"])
