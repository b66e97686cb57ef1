"""What a training step costs, against torch's own count of a real one; and what checkpointing saves."""

import pytest
import torch

from dslight.recipe.build import build, check
from dslight.recipe.compose import compose
from dslight.run.cost import training_flops
from dslight.run.plan import plan
from dslight.upstream.torch import count_flops

CONFIG = "model.language_model.init_args.config"
WIDE = [f"{CONFIG}.hidden_size=128", f"{CONFIG}.intermediate_size=256", f"{CONFIG}.num_hidden_layers=5"]
WIDE += ["data.micro_batch_size=2"]
STAGES = {
    "everything": {part: {"lr": 1.0} for part in ("vision_encoder", "projector", "language_model")},
    "stage 2": {part: {"lr": 1.0} for part in ("projector", "language_model")},
    "stage 1": {"projector": {"lr": 1.0}},
    "adapters": {"projector": {"lr": 1.0}, "language_model": {"lr": 1.0, "lora": {"r": 2}}},
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_costs_what_torch_counts_forward_and_backward(recipe, stage):
    values = compose(recipe, WIDE)
    values["stage"]["train"] = STAGES[stage]
    experiment = build(values)
    experiment.data.setup("fit")
    batch = next(iter(experiment.data.train_dataloader()))
    model = experiment.model.train()
    with count_flops() as counter:
        model.loss(batch)[0].backward()
    rows, length = batch.input_ids.shape
    flops = training_flops(check(values))
    learned = len(batch.places.supervised)
    ours = flops(len(batch.views.pixels), rows, rows * length, rows * length**2, learned)  # torch counts padding too
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_checkpointed_layers_keep_less_and_cost_the_same_flops(recipe):
    plain = plan(compose(recipe, WIDE), text_tokens=20)
    lm = "stage.train.language_model.checkpointing=true"
    thrifty = plan(compose(recipe, [*WIDE, lm]), text_tokens=20)
    assert thrifty.forward_flops == plain.forward_flops
    assert thrifty.memory.activations < 0.6 * plain.memory.activations
    assert "activations checkpointed in language_model" in thrifty.to_text()
    assert "no activation checkpointing" in plain.to_text()


def test_compiled_layers_are_planned_as_they_are_written(recipe):
    values = compose(recipe, [*WIDE, "stage.train.language_model.compile=aot_eager"])
    torch._dynamo.utils.counters.clear()  # of what else this process has compiled
    assert plan(values, text_tokens=20).forward_flops == plan(compose(recipe, WIDE), text_tokens=20).forward_flops
    assert torch._dynamo.utils.counters["stats"].get("unique_graphs", 0) == 0
