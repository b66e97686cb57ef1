"""How parts train does not depend on who computes: adapters, layer-wise decay and accumulation on two processes with
FSDP2 (gloo), checkpointed and compiled, give the numbers of one process that takes the batch at once, as it is.
"""

from __future__ import annotations

import csv
import json

import pytest
import torch

LORA = {"r": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
TRAIN = {
    "vision_encoder": {"lr": 1e-2, "weight_decay": 0.02, "layer_decay": 0.5},
    "projector": {"lr": 1e-2},
    "language_model": {"lr": 1e-1, "lora": LORA},
}
THRIFTY = ["stage.train.language_model.checkpointing=true", "stage.train.vision_encoder.checkpointing=true"]
COMPILED = ["stage.train.language_model.compile=aot_eager"]


@pytest.fixture(scope="module")
def pair(recipe, fit, tmp_path_factory):
    """One process, four rows at once; two processes, row by row."""
    root, file = tmp_path_factory.mktemp("pair"), recipe("DeepStackL")
    train = [f"stage.train={json.dumps(TRAIN)}", "trainer.log_every_n_steps=1"]
    treated = [*THRIFTY, *COMPILED, "data.micro_batch_size=1"]
    pair = fit(file, root / "one", *train), fit(file, root / "two", *train, *treated, ranks=2)
    for done in pair:
        assert done.code == 0, done.output[-4000:]
    return pair


def columns(done, prefix):
    with (done.folder / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return [{name: float(row[name]) for name in row if name.startswith(prefix)} for row in rows]


def test_every_step_has_the_loss_of_one_process(pair):
    one, two = pair
    assert list(one.losses()) == list(range(1, 7))
    assert two.losses() == pytest.approx(one.losses(), abs=1e-6)


def test_the_merged_weights_are_those_of_one_process(pair):
    ours, theirs = (done.weights() for done in pair)
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-5)
    assert not any("lora" in name or "base_layer" in name for name in ours)


def test_gradient_norms_are_whole_although_gradients_are_sharded(pair):
    ours, theirs = (columns(done, "grad_norm/") for done in pair)
    assert set(ours[0]) == {"grad_norm/vision_encoder", "grad_norm/projector", "grad_norm/language_model"}
    for one, two in zip(ours, theirs, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-7)


def test_every_group_has_the_parameters_and_learning_rates_of_one_process(pair):
    ours, theirs = ((done.folder / "run" / "optimizer.txt").read_text() for done in pair)
    assert theirs == ours
    assert "layer 0 matrices" in ours


def test_rates_count_all_ranks(pair):
    """Tokens per sample are those of the data, whoever read them."""
    ours, theirs = (columns(done, "throughput/") for done in pair)
    for one, two in zip(ours, theirs, strict=True):
        for name in ("tokens", "text_tokens", "visual_tokens", "stacked_tokens"):
            per_sample = [
                row[f"throughput/{name}_per_second"] / row["throughput/samples_per_second"] for row in (one, two)
            ]
            assert per_sample[1] == pytest.approx(per_sample[0], rel=1e-5), name
