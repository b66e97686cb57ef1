"""What the kit asks of an implementation: a small protocol, of which anything may be left out.

An *adapter* opens a family's checkpoint and gives a *model*. What a model cannot do it has no method for, or it raises
:class:`NotOffered`; then the cases that need it say so, and count neither as passed nor as failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dslight.conformance.kit import Array, Batch, Family, Request
from dslight.errors import UserError


class NotOffered(Exception):  # noqa: N818  # no error: an answer
    """Of an implementation, in a sentence: what it does not do."""


class UnreachableError(UserError):
    """Nobody is there to be asked; the run ends."""


class Session(Protocol):
    """A batch that is being served: what was computed so far is in its cache."""

    def feed(self, count: int) -> Array:
        """Compute the next ``count`` columns in one pass; their logits, float32 ``[B, count, vocabulary]``. NaN for a
        column that the implementation gives none for; the last may not be.
        """
        ...


class Model(Protocol):
    """A family's checkpoint, loaded. Every method may be absent."""

    def see(self, request: Request) -> Array:
        """The visual tokens of its images: float32 ``[S + 1, N, D]``."""
        ...

    def open(self, batch: Batch, after: Session | None = None) -> Session:
        """Begin with a batch. ``after``: a session whose fed columns are the first of this batch, too: its cache is
        taken over, and what it goes on with itself is not disturbed.
        """
        ...

    def generate(self, batch: Batch, new: int, beams: int = 1, chunk: int | None = None) -> Array:
        """Ids behind the prompts, int64 ``[B, new]``: greedy, or the best of some beams; the prompt computed in pieces
        of ``chunk`` columns.
        """
        ...

    def packed(self, requests: Sequence[Request]) -> Sequence[Array]:
        """Logits ``[P + A, vocabulary]`` of each request, all computed as documents of one row."""
        ...

    def gradients(self, request: Request, checkpointing: bool) -> tuple[float, Array]:
        """Mean cross entropy of the answer behind the prompt, and its gradient with respect to the request's slots,
        float32 ``[S + 1, N, D]``; with activations recomputed in the backward pass, or kept. NaN: not given.
        """
        ...


class Adapter(Protocol):
    """An implementation under test."""

    name: str

    def load(self, family: Family, dtype: str = "float32") -> Model | Any:
        """The family's model, in evaluation mode, its weights in ``dtype``.

        Raises:
            NotOffered: for a family or a type of numbers that the implementation does not know.
        """
        ...
