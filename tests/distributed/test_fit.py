"""Training on two processes with FSDP2 (gloo) is training on one: same losses, same weights, same answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import a_minute

SETUPS = [
    ("DeepStackL", "vision encoder trains"),
    ("DeepStackV", "vision encoder trains"),
    pytest.param(("DeepStackL", "vision encoder frozen"), marks=pytest.mark.slow),
    pytest.param(("DeepStackV", "vision encoder frozen"), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=SETUPS, ids=lambda setup: ", ".join(setup))
def pair(request, recipe, fit, tmp_path_factory):
    """The same recipe on one process and on two."""
    stacking, encoder = request.param
    root, file = tmp_path_factory.mktemp("pair"), recipe(stacking, frozen=encoder.endswith("frozen"))
    pair = fit(file, root / "one"), fit(file, root / "two", ranks=2)
    for done in pair:
        assert done.code == 0, done.output[-4000:]
    return pair


def test_every_step_has_the_loss_of_one_process(pair):
    one, two = pair
    assert list(one.losses()) == list(range(1, 7))
    assert two.losses() == pytest.approx(one.losses(), abs=1e-5)
    assert len(set(one.losses().values())) == 6


def test_the_weights_after_training_are_those_of_one_process(pair):
    one, two = pair
    torch.testing.assert_close(two.weights(), one.weights(), atol=1e-6, rtol=1e-5)


def test_every_rank_keeps_half_of_every_parameter(pair):
    _, two = pair
    for rank in (0, 1):
        probe = two.probe(rank)
        assert probe["world_size"] == 2
        assert probe["sharded"]
    for name, size in two.probe(0)["sizes"].items():
        assert size["here"] + two.probe(1)["sizes"][name]["here"] == size["whole"], name
    kept = [sum(size["here"] for size in two.probe(rank)["sizes"].values()) for rank in (0, 1)]
    assert kept[0] == pytest.approx(kept[1], rel=0.05)


def test_there_was_a_step_with_text_alone_on_either_rank_and_on_both(pair):
    _, two = pair
    images = zip(two.probe(0)["images"], two.probe(1)["images"], strict=True)
    assert list(images) == [(2, 2), (2, 0), (2, 2), (0, 2), (0, 0), (2, 2)]


def test_validation_generates_the_answers_of_one_process(pair):
    """Seven questions on two ranks, one at a time: a rank whose answer is done has to keep the other one company."""
    one, two = pair
    assert two.answers() == one.answers()
    assert [answer["question_id"] for answer in two.answers()] == [f"q{i}" for i in range(7)]
    lengths = [len(answer["prediction"].split()) for answer in two.answers()]
    assert any(a != b for a, b in zip(lengths[:3], lengths[4:], strict=True)), lengths


def test_validation_has_the_scores_of_one_process(pair):
    one, two = pair
    assert two.result()["scores"] == one.result()["scores"]
    assert "val/pages/vqa_accuracy" in one.result()["scores"]
    assert two.result()["context_length"] == one.result()["context_length"]
    assert two.result()["parameters"] == one.result()["parameters"]


@pytest.mark.slow
def test_torchrun_alone_trains_with_ddp(recipe, fit, tmp_path):
    """The recipe names neither devices nor a strategy."""
    file = recipe("DeepStackV")
    one, two = fit(file, tmp_path / "one"), fit(file, tmp_path / "two", ranks=2, sharded=False, torchrun=True)
    assert two.code == 0, two.output[-4000:]
    assert two.probe(1)["world_size"] == 2
    assert two.losses() == pytest.approx(one.losses(), abs=1e-5)
    assert two.answers() == one.answers()
    torch.testing.assert_close(two.weights(), one.weights(), atol=1e-6, rtol=1e-5)


def test_an_error_on_one_rank_ends_both(recipe, fit, tmp_path, broken_shards):
    root, key = broken_shards
    file = recipe("DeepStackL")
    done = fit(file, tmp_path / "two", f"data.train=[{root}]", ranks=2)
    assert done.code not in (0, None)
    assert done.seconds < a_minute()
    assert key in done.output
    assert not (done.folder / "run" / "result.json").exists()


def test_a_mesh_that_would_shard_nothing_is_refused(tmp_path: Path):
    """``ModelParallelStrategy`` without sizes takes all processes of a node for tensor parallelism."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from dslight.train.parallel import shard

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = dist.init_device_mesh("cpu", (1, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
        with pytest.raises(
            ValueError, match=r"trainer\.strategy: tensor_parallel_size is 2 .*set data_parallel_size: 2"
        ):
            shard(torch.nn.Linear(2, 2), {}, mesh)
    finally:
        dist.destroy_process_group()
