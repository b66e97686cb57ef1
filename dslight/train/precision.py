"""``precision: bf16-true`` and ``16-true``: the weights are rounded, and nothing else that a forward pass is made of.

Lightning's own also rounds buffers. Those that no checkpoint holds (the frequencies of rotary positions) are made anew
wherever the model is built again, in their own precision, and it would compute another function than the one trained.
"""

from __future__ import annotations

import torch
from lightning.pytorch.plugins import HalfPrecision
from torch import nn


class HalfWeights(HalfPrecision):
    """Lightning's own, but for buffers that are not saved and that rounding would change.

    What is saved (the statistics of batch norms, say) is rounded with the weights, and read back as it was trained.
    """

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Round the weights, in place."""
        saved = module.state_dict().keys()
        before = {
            name: buffer
            for name, buffer in module.named_buffers(remove_duplicate=False)
            if name not in saved and buffer.is_floating_point()
        }
        module = super().convert_module(module)
        for name, exact in before.items():
            rounded = module.get_buffer(name)
            if not torch.equal(rounded.to(exact.dtype), exact):
                owner, _, own_name = name.rpartition(".")
                setattr(module.get_submodule(owner), own_name, exact)
        return module
