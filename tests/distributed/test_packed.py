"""Packed rows on two processes with FSDP2 (gloo), whose documents attend to themselves alone, checkpointed, against one
process that masks all pairs of positions.
"""

from __future__ import annotations

import pytest
import torch

PACKED = ["data.order={pack: true}", "data.global_batch_size=2", "trainer.limit_val_batches=0"]
MASKED = ["model.language_model.init_args.attention=eager"]
THRIFTY = ["stage.train.language_model.checkpointing=true", "data.micro_batch_size=1"]


@pytest.mark.slow
def test_losses_and_weights_are_those_of_one_process_with_a_mask(recipe, fit, tmp_path):
    file = recipe("DeepStackL")
    one = fit(file, tmp_path / "one", *PACKED, *MASKED)
    two = fit(file, tmp_path / "two", *PACKED, *THRIFTY, ranks=2)
    for done in (one, two):
        assert done.code == 0, done.output[-4000:]
    assert two.losses() == pytest.approx(one.losses(), abs=1e-5)
    torch.testing.assert_close(two.weights(), one.weights(), atol=1e-5, rtol=1e-4)
