"""What an operation promises: it acts slot by slot, gradients flow, and nothing is added where nothing is stacked."""

from __future__ import annotations

import torch
from torch import Tensor

from dslight.components.operation import Operation


class OperationContract:
    """The promises of :class:`~dslight.components.operation.Operation`; subclass it and define :meth:`make`.

    Attributes:
        width: D.
        stacks: S.
        atol: largest difference between values that ought to be equal, in float32.
    """

    width = 16
    stacks = 3
    atol = 1e-5

    def make(self) -> Operation:
        """A new operation of ``width`` and ``stacks``."""
        raise NotImplementedError(f"{type(self).__name__}: define make(self), which returns the operation to test")

    def test_it_is_an_operation(self) -> None:
        operation = self.make()
        assert isinstance(operation, Operation), (
            f"{type(operation).__name__} must subclass dslight.components.operation.Operation"
        )
        assert (operation.width, operation.stacks) == (self.width, self.stacks), "call super().__init__(width, stacks)"

    def test_every_stack_gives_a_row_for_each_slot(self) -> None:
        operation, (hidden, values) = self.make().eval(), self._slots(5)
        for stack in range(self.stacks):
            added = operation(stack, hidden, values)
            assert added.shape == values.shape, f"stack {stack}: {tuple(added.shape)} for slots {tuple(values.shape)}"
            assert added.isfinite().all(), f"stack {stack} gives numbers that are not finite"

    def test_it_takes_no_slots(self) -> None:
        operation, (hidden, values) = self.make(), self._slots(0)
        for stack in range(self.stacks):
            assert operation(stack, hidden, values).shape == (0, self.width), (
                f"stack {stack} must give [0, {self.width}] for no slots: rows without an image come, too"
            )

    def test_slots_do_not_influence_each_other(self) -> None:
        operation, (hidden, values) = self._opened().eval(), self._slots(5)
        for stack in range(self.stacks):
            together = operation(stack, hidden, values)
            alone = [operation(stack, hidden[i : i + 1], values[i : i + 1]) for i in range(5)]
            assert torch.allclose(together, torch.cat(alone), atol=self.atol), (
                f"stack {stack}: what is added at a slot depends on the other slots of the batch"
            )

    def test_the_stream_is_not_written_into(self) -> None:
        operation, (hidden, values) = self.make().eval(), self._slots(5)
        before = hidden.clone(), values.clone()
        for stack in range(self.stacks):
            operation(stack, hidden, values)
        assert torch.equal(hidden, before[0]), "the residual stream was changed in place: return what is to be added"
        assert torch.equal(values, before[1]), "the stack was changed in place: return what is to be added"

    def test_starts_closed_says_whether_anything_is_added_at_the_start(self) -> None:
        operation, (hidden, values) = self.make().eval(), self._slots(5)
        adds = any(bool(operation(stack, hidden, values).abs().max() > 0) for stack in range(self.stacks))
        assert operation.starts_closed != adds, (
            f"starts_closed is {operation.starts_closed}, and {'something' if adds else 'nothing'} is added at first"
        )

    def test_gradients_reach_every_parameter_and_the_stack(self) -> None:
        operation, (hidden, values) = self._opened(), self._slots(5)
        values.requires_grad_(True)
        sum(operation(stack, hidden, values).square().sum() for stack in range(self.stacks)).backward()  # type: ignore[union-attr]
        idle = [name for name, parameter in operation.named_parameters() if parameter.grad is None]
        assert not idle, f"no gradient reaches {', '.join(idle[:8])}: what no stack uses cannot be trained"
        assert values.grad is not None, "no gradient reaches the stack, so projector and encoder cannot be trained"

    def test_bfloat16_goes_through(self) -> None:
        operation, (hidden, values) = self.make().eval().to(torch.bfloat16), self._slots(3)
        added = operation(0, hidden.to(torch.bfloat16), values.to(torch.bfloat16))
        assert added.dtype == torch.bfloat16, f"in bfloat16 what is added is {added.dtype}"

    def _slots(self, count: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return (
            torch.randn(count, self.width, generator=generator),
            torch.randn(count, self.width, generator=generator),
        )

    def _opened(self) -> Operation:
        """With other parameters than at the start, so that closed gates let something through."""
        operation = self.make()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in operation.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return operation
