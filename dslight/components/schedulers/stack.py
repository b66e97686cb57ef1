"""A stack: one source of groups, and the layers that they go to. What is wrong with one by itself is said here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from typing import Literal

from dslight.components.vision_encoder import Tap, at_depth
from dslight.nn.sampling import MOSAIC_SAMPLERS, ONE_GROUP, SamplerName

View = Literal["base", "crops", "fine"]
InSequence = Literal["base", "crops", "tiles"]
Sites = list[int | float]


@dataclass(frozen=True)
class Stack:
    """One source of stacks, and where they go.

    Attributes:
        sites: the layers at whose inputs the groups are added, one group each. A sampler that makes one group only adds
            it at every site. With a point: fractions of depth (0.5: in front of the second half of the layers), the
            nearest layer; two of them may be one layer.
        view: what is read: ``crops`` of the image, ``fine`` crops of each view in the sequence, or the ``base`` (the
            views in the sequence themselves).
        sampler: how the tokens become groups (see :mod:`dslight.nn.sampling`).
        tap: where the encoder is read; default: the scheduler's tap, or for stacks into the encoder their first site.
        merge: side of the block that ``patch_merge`` makes one token of, and ``corner`` takes the corners of; of the
            fine crops that ``pool`` takes the mean of.
        after: count sites as "after layer l" (Qwen3-VL), one more than "at the input of layer l".

    Example:
        >>> dslight.Stack(sites=[0, 1, 2, 3], sampler="block").at
        (0, 1, 2, 3)
    """

    sites: Sites
    view: View = "crops"
    sampler: SamplerName = "2d"
    tap: Tap | None = None
    merge: int = 2
    after: bool = False

    @property
    def at(self) -> tuple[int, ...]:
        """The sites as inputs of layers. Fractions of depth are 0 until :meth:`within` says of which depth."""
        return tuple(at_depth(site, 0) + self.after for site in self.sites)

    def within(self, depth: int) -> Stack:
        """The same stack in a part of ``depth`` layers, which its fractions are of."""
        return replace(self, sites=[at_depth(site, depth) for site in self.sites])

    def __str__(self) -> str:
        """For people: what it holds, ``crops, 2d, tap -2``."""
        return ", ".join([self.view, self.sampler, *([] if self.tap is None else [f"tap {self.tap}"])])

    @property
    def up(self) -> int:
        """n: the sampler makes its groups out of n x n crops or blocks; 0 where any number will do."""
        if self.sampler in ("patch_merge", "corner") or (self.view, self.sampler) == ("fine", "pool"):
            return self.merge
        return isqrt(len(self.sites)) if self.view == "fine" else 0


def problem(stack: Stack, sequence: InSequence, inside: bool) -> tuple[str, str]:
    """What is wrong with a stack by itself: the attribute, and a sentence about it; empty: nothing."""
    if not stack.sites:
        return "sites", "empty; name at least one layer"
    if min(stack.sites) < 0:
        return "sites", f"layers count from 0, got {min(stack.sites)}"
    if beyond := [site for site in stack.sites if isinstance(site, float) and site > 1]:
        return "sites", f"{beyond[0]} is no fraction of depth, at most 1.0; layers are counted without a point"
    if stack.merge < 1:
        return "merge", f"must be at least 1, got {stack.merge}"
    if stack.view == "base":
        if inside:
            return "view", "base cannot be stacked into the encoder that is just reading it; choose crops"
        if stack.sampler not in ("identity", "corner"):
            return "sampler", f"{stack.sampler} samples crops; a view by itself takes identity or corner"
    elif stack.sampler not in MOSAIC_SAMPLERS:
        return "sampler", f"{stack.sampler} samples a view by itself; choose 2d for crops, or view: base"
    if stack.view == "crops" and sequence != "base":
        return "view", "the crops stand in the sequence already; choose fine, or sequence: base"
    if stack.view == "fine" and sequence != "tiles":
        return "view", "fine crops belong to base view and crops in the sequence; set sequence: tiles"
    if stack.view == "fine" and stack.sampler not in ONE_GROUP and stack.up**2 != len(stack.sites):
        return "sites", f"{len(stack.sites)} layers cannot take n x n groups; name 4 or 9"
    if stack.view == "fine" and stack.up < 2:
        return ("merge" if stack.sampler in ONE_GROUP else "sites"), "a view has at least 2 x 2 fine crops"
    if stack.sampler == "corner" and len(stack.sites) > stack.merge**2:
        return "sites", f"{len(stack.sites)} layers, but blocks of {stack.merge} x {stack.merge} have fewer corners"
    if inside and stack.sampler == "patch_merge":
        return "sampler", "patch_merge changes the width, and the encoder has one width; choose 2d"
    return "", ""


def tap_of(stack: Stack) -> Tap:
    """Where the encoder is read for it, once a scheduler has it."""
    assert stack.tap is not None  # the scheduler has set it
    return stack.tap
