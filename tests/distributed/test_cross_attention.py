"""Blocks of cross-attention on two processes with FSDP2 (gloo) are those on one, also where a rank has text alone."""

from __future__ import annotations

import json

import pytest
import torch

SETUPS = {
    "open gates": {"source": "crops", "init": 0.5},
    "closed gates": {"source": "tiles", "in_context": "marker"},
}


@pytest.fixture(
    scope="module", params=["open gates", pytest.param("closed gates", marks=pytest.mark.slow)], ids=lambda name: name
)
def pair(request, recipe, fit, tmp_path_factory):
    """The same recipe on one process and on two."""
    init = {"num_layers": 3, "start": 1, "heads": 2, "head_dim": 8, "ffn": 2, **SETUPS[request.param]}
    stacking = {"class_path": "dslight.components.CrossAttention", "init_args": init}
    overrides = [f"model.stacking={json.dumps(stacking)}", "stage.train.stacking={lr: 1e-2, weight_decay: 0.02}"]
    root, file = tmp_path_factory.mktemp("pair"), recipe("DeepStackL")
    pair = fit(file, root / "one", *overrides), fit(file, root / "two", *overrides, ranks=2)
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
    ours, theirs = one.weights(), two.weights()
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-5)
    gates = {name: gate for name, gate in ours.items() if name.endswith("gate")}
    assert len(gates) == 6
    assert all(gate.item() not in (0.0, 0.5) for gate in gates.values())  # all of them have learned


def test_every_block_is_shared_between_the_ranks(pair):
    _, two = pair
    sizes = [two.probe(rank)["sizes"] for rank in (0, 1)]
    blocks = [name for name in sizes[0] if name.startswith("stacking.blocks.")]
    assert len(blocks) == 3 * 12
    for name in blocks:
        assert sizes[0][name]["here"] + sizes[1][name]["here"] == sizes[0][name]["whole"], name
    assert all(sizes[0][name]["here"] for name in blocks)
    assert all(two.probe(rank)["sharded"] for rank in (0, 1))


def test_there_was_a_step_with_text_alone_on_either_rank_and_on_both(pair):
    _, two = pair
    images = zip(two.probe(0)["images"], two.probe(1)["images"], strict=True)
    assert list(images) == [(2, 2), (2, 0), (2, 2), (0, 2), (0, 0), (2, 2)]


def test_validation_generates_the_answers_of_one_process(pair):
    """Every decode step runs the blocks, so a rank whose answer is done, or has no image, keeps the other company."""
    one, two = pair
    assert two.answers() == one.answers()
    assert two.result()["scores"] == one.result()["scores"]
    assert two.result()["context_length"] == one.result()["context_length"]
