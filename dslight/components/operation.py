"""Operations: what a stack does to the residual stream at its slots. The paper adds it as it is.

An operation is a small module that is handed the residual stream and the stack, both at the visual slots of one site,
and returns what is added there. So a gate may be a learned number (:class:`GatedAdd`, which the paper names as future
work) or depend on what the decoder thinks so far (:class:`ConditionedGate`, after Cross-Layer Injection, arXiv
2601.10710). No operation at all is the paper's plain add, and costs nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from dslight.components.component import whole
from dslight.written import Written


class Operation(nn.Module, ABC, Written):
    """Base of the operations.

    Args:
        width: D, of the residual stream.
        stacks: S.

    Example:
        >>> class Halved(dslight.Operation):
        ...     def forward(self, stack, hidden, values):
        ...         return values / 2
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStackL(operation=Halved), lm)
        >>> model.stacking.operation.stacks
        4
    """

    starts_closed: bool = False
    """Whether nothing is added until the operation has learned something: then it has to train."""

    def __init__(self, width: int, stacks: int) -> None:
        super().__init__()
        self.width, self.stacks = width, stacks

    @abstractmethod
    def forward(self, stack: int, hidden: Tensor, values: Tensor) -> Tensor:
        """What is added at the slots.

        Args:
            stack: which one, 0 to S - 1.
            hidden: the residual stream at the slots, ``[n, D]``.
            values: the stack there, ``[n, D]``.

        Returns:
            ``[n, D]``.
        """

    def diagnostics(self) -> Mapping[str, Tensor]:
        """See :meth:`dslight.components.Component.diagnostics`."""
        return {}


class GatedAdd(Operation):
    """One learned scalar per stack: ``hidden + g_s * values``.

    Args:
        width: D.
        stacks: S.
        init: the scalars at the start; 0: training begins from the model without stacks.
        activation: ``tanh`` keeps the gate within -1..1, as Flamingo's does.

    Example:
        >>> from functools import partial
        >>> gated = dslight.DeepStackL(operation=partial(dslight.GatedAdd, init=0.5))
        >>> dslight.VLM(encoder, dslight.MLPProjector, gated, lm).stacking.operation.gate
        Parameter containing:
        tensor([0.5000, 0.5000, 0.5000, 0.5000], requires_grad=True)
    """

    def __init__(
        self, width: int, stacks: int, init: float = 0.0, activation: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__(width, stacks)
        self.gate = nn.Parameter(torch.full((stacks,), float(init)))
        self.activation = activation
        self.starts_closed = init == 0

    def forward(self, stack: int, hidden: Tensor, values: Tensor) -> Tensor:
        """See :meth:`Operation.forward`."""
        gate = self.gate[stack].tanh() if self.activation == "tanh" else self.gate[stack]
        return gate.to(values.dtype) * values

    def diagnostics(self) -> Mapping[str, Tensor]:
        """The gates, behind their activation."""
        gates = whole(self.gate).tanh() if self.activation == "tanh" else whole(self.gate)
        return {f"gate_{i}": gate for i, gate in enumerate(gates, start=1)}


class ConditionedGate(Operation):
    """A gate that reads the residual stream: ``hidden + tanh(w_s . rms_norm(hidden) + b_s) * values``, one number per
    slot and stack.

    Args:
        width: D.
        stacks: S.
        init: the biases at the start; the weights start at 0, so at first all slots of a stack have one gate.

    Example:
        >>> from functools import partial
        >>> gated = dslight.DeepStackL(operation=partial(dslight.ConditionedGate, init=0.5))
        >>> dslight.VLM(encoder, dslight.MLPProjector, gated, lm).stacking.operation.weight.shape
        torch.Size([4, 32])
    """

    def __init__(self, width: int, stacks: int, init: float = 0.0) -> None:
        super().__init__(width, stacks)
        self.weight = nn.Parameter(torch.zeros(stacks, width))
        self.bias = nn.Parameter(torch.full((stacks,), float(init)))
        self.starts_closed = init == 0

    def forward(self, stack: int, hidden: Tensor, values: Tensor) -> Tensor:
        """See :meth:`Operation.forward`."""
        seen = nn.functional.rms_norm(hidden.float(), (self.width,))
        gate = torch.tanh(seen @ self.weight[stack].float() + self.bias[stack].float())
        return gate.to(values.dtype)[:, None] * values

    def diagnostics(self) -> Mapping[str, Tensor]:
        """The biases, and how much the gates depend on the residual stream: the norms of the weights."""
        weights, biases = whole(self.weight).float().norm(dim=1), whole(self.bias)
        found = {f"bias_{i}": bias for i, bias in enumerate(biases, start=1)}
        return found | {f"weight_norm_{i}": weight for i, weight in enumerate(weights, start=1)}
