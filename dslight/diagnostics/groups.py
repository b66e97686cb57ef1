"""The groups of stacked tokens of a model, by number, and what can be done to them while it runs.

Numbers are those of ``dslight plan``: from 1, the stacks into the vision encoder first. Leaving a stack out means that
nothing is added at its site: not zeros through its gate, but no addition.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dslight.nn.intervention import Act, Injection, intervene
from dslight.vlm import VLM


@dataclass(frozen=True)
class Group:
    """One stack.

    Attributes:
        number: from 1.
        part: ``vision_encoder`` or ``language_model``.
        layer: at whose input it is added.
        what: which tokens, for people.
    """

    number: int
    part: str
    layer: int
    what: str = ""


class Groups:
    """The stacks of a model, in their order.

    Args:
        model: its parts as they are now.
    """

    def __init__(self, model: VLM) -> None:
        inside: Sequence[int] = getattr(model.stacking, "encoder_sites", ())
        self._model, self.count_inside = model, len(inside)
        sites = [("vision_encoder", site) for site in inside]
        sites += [("language_model", site) for site in model.stacking.sites]
        said = {text.removeprefix("+ ").split(" (")[0]: text for _, _, text in model.stacking.placements}
        self.all = [
            Group(i, part, site, said.get(f"stack {i}", "").partition(" (")[2].removesuffix(")"))
            for i, (part, site) in enumerate(sites, start=1)
        ]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def inside(self, injection: Injection) -> bool:
        """Whether the stacks go into the vision encoder."""
        return injection.layers[0] is not self._model.language_model.layers[0]

    def numbers(self, injection: Injection) -> range:
        """The numbers of an injection's stacks."""
        first = 1 if self.inside(injection) else 1 + self.count_inside
        return range(first, first + len(injection.sites))

    # --- interventions

    def without(self, left_out: Collection[int]) -> Act:
        """Leave out the stacks of these numbers."""

        def act(injection: Injection) -> Injection:
            kept = [i for i, number in enumerate(self.numbers(injection)) if number not in left_out]
            return _chosen(injection, kept)

        return act

    def permuted(self, seed: int) -> Act:
        """Exchange the stacks of each part among its sites, so that none stays where it was. Gates stay at their
        sites. A single stack has no other site.
        """

        def act(injection: Injection) -> Injection:
            order = derangement(len(injection.sites), seed)
            return replace(injection, stacks=injection.stacks[order])

        return act

    @contextmanager
    def recorded(self) -> Iterator[dict[bool, Tensor]]:
        """While the block runs, note the stacks of each part: ``inside`` -> ``[S, N, D]``."""
        seen: dict[bool, Tensor] = {}

        def act(injection: Injection) -> Injection:
            seen[self.inside(injection)] = injection.stacks
            return injection

        with intervene(act):
            yield seen

    def replaced(self, by: dict[bool, Tensor]) -> Act:
        """Add the stacks that were :meth:`recorded` with another batch of the same layout."""

        def act(injection: Injection) -> Injection:
            other = by.get(self.inside(injection))
            if other is None or not len(injection.sites):
                return injection
            if other.shape != injection.stacks.shape:
                raise ValueError(
                    f"diagnostics: stacks {tuple(other.shape)} cannot stand for {tuple(injection.stacks.shape)}"
                )
            return replace(injection, stacks=other)

        return act


def _chosen(injection: Injection, kept: list[int]) -> Injection:
    whole, watched = injection.operation, injection.watch

    def watch(index: int, *seen: Tensor) -> None:
        assert watched is not None
        watched(kept[index], *seen)

    def operation(index: int, hidden: Tensor, values: Tensor) -> Tensor:
        assert whole is not None
        return whole(kept[index], hidden, values)

    return replace(
        injection,
        stacks=injection.stacks[kept],
        sites=tuple(injection.sites[i] for i in kept),
        operation=None if whole is None else operation,
        watch=None if watched is None else watch,
    )


def derangement(count: int, seed: int) -> list[int]:
    """A random order of ``count`` things in which none keeps its place; of fewer than two, the only order."""
    if count < 2:
        return list(range(count))
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        if all(i != to for i, to in enumerate(order)):
            return order
