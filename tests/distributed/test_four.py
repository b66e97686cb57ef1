"""Four processes, fully sharded and in two copies of two (hybrid), train and answer as one process does."""

from __future__ import annotations

import pytest
import torch
from launches import SHARDED, strategy

pytestmark = pytest.mark.slow

CASES = {
    "DeepStackL, trains, two copies": ("DeepStackL", False, {"replicate": 2}),
    "DeepStackV, frozen, one copy": ("DeepStackV", True, {}),
    "DeepStackV, trains, two copies": ("DeepStackV", False, {"replicate": 2}),
    "DeepStackL, frozen, one copy": ("DeepStackL", True, {}),
    "DeepStackV, trains, one copy": ("DeepStackV", False, {}),
    "DeepStackL, frozen, two copies": ("DeepStackL", True, {"replicate": 2}),
}


@pytest.fixture(scope="module")
def pairs(recipe, fit, tmp_path_factory):
    """By case: the run of one process and that of four."""
    root, pairs = tmp_path_factory.mktemp("four"), {}
    for name, (stacking, frozen, copies) in CASES.items():
        file, folder = recipe(stacking, frozen=frozen), root / name.replace(", ", "-")
        four = fit(file, folder / "four", strategy(SHARDED, **copies), ranks=4, sharded=False)
        pairs[name] = fit(file, folder / "one"), four
        for done in pairs[name]:
            assert done.code == 0, done.output[-4000:]
    return pairs


def test_every_step_has_the_loss_of_one_process(pairs):
    for name, (one, four) in pairs.items():
        assert list(one.losses()) == list(range(1, 7)), name
        assert four.losses() == pytest.approx(one.losses(), abs=1e-5), name
        assert len(set(one.losses().values())) == 6, name


def test_the_weights_after_training_are_those_of_one_process(pairs):
    for one, four in pairs.values():
        torch.testing.assert_close(four.weights(), one.weights(), atol=1e-6, rtol=1e-5)


def test_validation_generates_the_answers_of_one_process(pairs):
    for name, (one, four) in pairs.items():
        assert four.answers() == one.answers(), name
        assert four.result()["scores"] == one.result()["scores"], name


def test_a_rank_had_text_alone_while_others_had_images(pairs):
    for _, four in pairs.values():
        images = list(zip(*(four.probe(rank)["images"] for rank in range(4)), strict=True))
        assert {0 < ranks.count(0) < 4 for ranks in images} == {True, False}
        assert (0, 0, 0, 0) in images


def test_a_rank_keeps_its_share_of_every_parameter(pairs):
    """A quarter of it, or half of it where there are two copies: then ranks 0 and 2 hold the same."""
    for name, (_, four) in pairs.items():
        sizes = [four.probe(rank)["sizes"] for rank in range(4)]
        copies = 2 if name.endswith("two copies") else 1
        for parameter, size in sizes[0].items():
            assert sum(of[parameter]["here"] for of in sizes) == copies * size["whole"], (name, parameter)
        if copies == 2:
            assert [sizes[0], sizes[1]] == [sizes[2], sizes[3]], name
