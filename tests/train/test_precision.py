"""Under every precision, what is trained is what is built again from the checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dslight.recipe.build import build
from dslight.recipe.compose import compose
from dslight.run.fit import make_trainer
from dslight.run.folder import RunFolder
from dslight.train.precision import HalfWeights


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "bf16-mixed", "32-true"])
def test_positions_are_as_exact_as_they_are_built_again(precision, tiny_lm, recipe, tmp_path):
    experiment = build(compose(recipe, [f"trainer.precision={precision}"]), opens=None)
    trainer = make_trainer(experiment, RunFolder(tmp_path), logger=False, enable_checkpointing=False, max_steps=1)
    lm, fresh = tiny_lm("llama", hidden_size=64), tiny_lm("llama", hidden_size=64)
    kept = trainer.strategy.precision_plugin.convert_module(lm)
    rotary, expected = (part.model.model.rotary_emb.inv_freq for part in (kept, fresh))
    assert torch.equal(rotary.double(), expected.double())
    assert not torch.equal(expected.bfloat16().float(), expected)  # rounding would show
    fresh.load_state_dict(kept.state_dict())
    ids = torch.arange(48)[None]
    ask = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    assert torch.equal(kept.float().model(**ask).logits, fresh.model(**ask).logits)


def test_a_trained_model_predicts_with_the_function_that_it_learned(recipe, tmp_path):
    overrides = ["trainer.precision=bf16-true", "trainer.max_steps=1", f"run_dir={tmp_path}"]
    whole = compose(recipe, overrides)
    experiment = build(whole)
    trainer = make_trainer(experiment, RunFolder(tmp_path), logger=False, enable_checkpointing=False)
    trainer.fit(experiment.model, datamodule=experiment.data)
    assert {parameter.dtype for parameter in experiment.model.parameters()} == {torch.bfloat16}
    again = build(whole, opens=None).model
    again.load_state_dict(experiment.model.state_dict())
    batch = next(iter(experiment.data.train_dataloader()))
    with torch.no_grad():
        assert torch.equal(experiment.model.float().eval()(batch), again.eval()(batch))


def test_what_is_saved_is_rounded_with_the_weights_and_whatever_is_exact_goes_with_them():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 3, 1)
            self.register_buffer("mask", torch.tensor([0.0, -100.0]), persistent=False)
            self.register_buffer("angles", torch.tensor([0.1, 0.2]), persistent=False)
            self.register_buffer("count", torch.tensor([300]), persistent=False)

    part = HalfWeights("bf16-true").convert_module(Part().train())
    half, exact = torch.bfloat16, torch.float32
    assert (part.mask.dtype, part.angles.dtype, part.count.dtype) == (half, exact, torch.int64)
    assert part.norm.running_mean.dtype == part.conv.weight.dtype == half
    assert part.conv(part.norm(torch.randn(2, 3, 4, 4, dtype=half))).dtype == half
