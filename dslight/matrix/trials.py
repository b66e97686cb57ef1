"""What a decoder has to do to be called right, each with an oracle of its own: (a) is that it builds.

(b)  a stack of zeros changes no bit, a stack changes the columns at and behind it alone, at every layer
(c)  a row behind left padding is the row alone
(d)  answers with a cache are those of whole passes, a batch's those of its rows, wherever an image stands
(e)  every slot gets a gradient, and the same one with gradient checkpointing
(f)  documents that share a row are the documents alone; or packing is refused in a sentence
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dslight.types import VisualTokens

NEW = 3


class Wrong(Exception):  # noqa: N818
    """A decoder that does not do what it should, and by how much."""


def close(ours: Tensor, expected: Tensor, what: str, most: float = 2e-4) -> None:
    """Refuse what differs by more than ``most`` of the largest number, or is no number.

    Raises:
        Wrong: saying what differs, and by how much.
    """
    if not torch.isfinite(ours).all():
        raise Wrong(f"{what}: not finite")
    scale = max(1.0, float(expected.abs().max()))
    off = float((ours - expected).abs().max()) / scale
    if off > most:
        raise Wrong(f"{what}: off by {off:.2g}")


class Prompt:
    """Rows of text with images in it: the arguments of :meth:`LanguageModel.forward`."""

    def __init__(self, ids: Tensor, attention: Tensor, mask: Tensor, slots: Tensor, sites: tuple[int, ...]) -> None:
        self.ids, self.attention, self.mask, self.slots, self.sites = ids, attention, mask, slots, sites

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of a call."""
        return self.ids, self.attention, self.mask, VisualTokens(self.slots, self.sites)

    @classmethod
    def of(cls, lm: Any, length: int, images: list[tuple[int, int]], seed: int, sites: tuple[int, ...]) -> Prompt:
        """One row of ``length`` columns, with images at (column, columns)."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, lm.vocabulary, (1, length), generator=generator)
        mask = torch.zeros(1, length, dtype=torch.bool)
        for start, count in images:
            mask[0, start : start + count] = True
        slots = torch.randn(1 + len(sites), int(mask.sum()), lm.width, generator=generator)
        with torch.no_grad():  # as large as embedded words, which some kinds scale
            slots[:1] *= lm.embedding(ids).std().clamp(min=1)
        return cls(ids.masked_fill(mask, 0), torch.ones_like(ids), mask, slots, sites)

    @classmethod
    def together(cls, prompts: list[Prompt]) -> Prompt:
        """Left-padded into one batch."""
        length = max(prompt.ids.shape[1] for prompt in prompts)
        columns = zip(*((p.ids, p.attention, p.mask) for p in prompts), strict=True)
        ids, attention, mask = (
            torch.cat([nn.functional.pad(rows, (length - rows.shape[1], 0)) for rows in column]) for column in columns
        )
        return cls(ids, attention, mask, torch.cat([p.slots for p in prompts], dim=1), prompts[0].sites)


def prompts(lm: Any) -> list[Prompt]:
    """Four of unequal length: an image at column 0, within text, two of them, and none."""
    sites = tuple(sorted({0, last_site(lm) // 2, last_site(lm)}))
    shapes = [(9, [(0, 4)]), (12, [(2, 4)]), (10, [(2, 3), (7, 2)]), (7, [])]
    return [Prompt.of(lm, length, images, seed, sites) for seed, (length, images) in enumerate(shapes)]


def last_site(lm: Any) -> int:
    """The last layer that stacks can be added at."""
    for site in reversed(range(lm.depth)):
        try:
            lm.check_sites([site])
        except ValueError:
            continue
        return site
    raise Wrong("(b) stacks can be added at no layer")


@torch.no_grad()
def stacks(lm: Any) -> None:
    """(b)"""
    ids, attention, mask, _ = Prompt.of(lm, 12, [(4, 3)], 0, ()).arguments
    base = torch.randn(1, 3, lm.width, generator=torch.Generator().manual_seed(5))
    plain = lm(ids, attention, mask, VisualTokens(base))
    text = lm(ids, attention, mask, None)
    if not (plain - text).abs().max() > 1e-4:
        raise Wrong("(b) an image changes nothing")
    close(plain[:, :4], text[:, :4], "(b) an image changes the columns before it")
    for site in range(last_site(lm) + 1):
        zero = lm(ids, attention, mask, VisualTokens(torch.cat([base, torch.zeros_like(base)]), (site,)))
        if not torch.equal(zero, plain):
            raise Wrong(f"(b) a stack of zeros at layer {site} changes {float((zero - plain).abs().max()):.2g}")
        value = 3 * torch.randn(base.shape, generator=torch.Generator().manual_seed(site))
        changed = lm(ids, attention, mask, VisualTokens(torch.cat([base, value]), (site,)))
        close(changed[:, :4], plain[:, :4], f"(b) a stack at layer {site} changes the columns before it")
        for column, where in ((slice(4, 7), "its own columns"), (slice(7, 12), "the text behind it")):
            moves = (changed - plain)[:, column].abs().max()
            if not moves > 1e-5 and not (column.start == 7 and site == lm.depth - 1):
                raise Wrong(f"(b) a stack at layer {site} does not reach {where}")


@torch.no_grad()
def padding(lm: Any) -> None:
    """(c)"""
    alone = prompts(lm)
    logits = lm(*Prompt.together(alone).arguments)
    for row, prompt in enumerate(alone):
        length = prompt.ids.shape[1]
        close(logits[row, -length:], lm(*prompt.arguments)[0], f"(c) row {row} behind left padding")


@torch.no_grad()
def recomputed(lm: Any, prompt: Prompt) -> list[int]:
    """The greedy answer to one prompt, every token from a pass over the whole sequence."""
    ids, attention, mask, visual = prompt.arguments
    for _ in range(NEW):
        token = lm(ids, attention, mask, visual)[:, -1].argmax(-1, keepdim=True)
        ids, attention = torch.cat([ids, token], 1), torch.cat([attention, torch.ones_like(token)], 1)
        mask = torch.cat([mask, torch.zeros_like(token, dtype=torch.bool)], 1)
    return ids[0, -NEW:].tolist()


def answers(lm: Any) -> None:
    """(d)"""
    options = {"max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": None}
    alone = prompts(lm)
    expected = [recomputed(lm, prompt) for prompt in alone]
    cached = [lm.generate(*prompt.arguments, **options)[0].tolist() for prompt in alone]
    together = lm.generate(*Prompt.together(alone).arguments, **options).tolist()
    for how, found in (("alone, with a cache", cached), ("in a batch", together)):
        for row, (got, wanted) in enumerate(zip(found, expected, strict=True)):
            if got != wanted:
                raise Wrong(f"(d) prompt {row}: {how} {got}, of whole passes {wanted}")
    with torch.no_grad():
        for prompt in alone[:3]:
            ids, attention, mask, visual = prompt.arguments
            if not (lm(ids, attention, mask, visual) - lm(ids, attention, mask, None))[:, -1].abs().max() > 1e-4:
                raise Wrong("(d) what is answered does not depend on the images")


def gradients(lm: Any) -> None:
    """(e)"""
    prompt = Prompt.together(prompts(lm)[1:3])

    def of_slots() -> Tensor:
        lm.train()  # there is no dropout
        slots = prompt.slots.clone().requires_grad_()
        lm.zero_grad()
        logits = lm(prompt.ids, prompt.attention, prompt.mask, VisualTokens(slots, prompt.sites))
        logits.log_softmax(-1)[..., 5].mul(prompt.attention).sum().backward()
        if slots.grad is None:
            raise Wrong("(e) no slot gets a gradient")
        return slots.grad

    plain = of_slots()
    lm.eval()
    for slot, gradient in enumerate(plain):
        if not gradient.any():
            raise Wrong(f"(e) slot {slot} gets no gradient")
    if getattr(lm.model, "supports_gradient_checkpointing", False):
        lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            close(of_slots(), plain, "(e) gradients with checkpointing", 1e-3)
        finally:
            lm.model.gradient_checkpointing_disable()
            lm.eval()
    lm.zero_grad()


@torch.no_grad()
def packing(lm: Any) -> str:
    """(f); returns the refusal, where it is refused."""
    try:
        lm.check_packing()
    except ValueError as refusal:
        return str(refusal)
    alone = prompts(lm)[1:3]
    ids, attention, mask = (
        torch.cat([getattr(prompt, name) for prompt in alone], dim=1) for name in ("ids", "attention", "mask")
    )
    segments = torch.cat([(at + 1) * prompt.attention for at, prompt in enumerate(alone)], dim=1)
    visual = VisualTokens(torch.cat([prompt.slots for prompt in alone], dim=1), alone[0].sites)
    logits, start = lm(ids, attention, mask, visual, segments)[0], 0
    for at, prompt in enumerate(alone):
        end = start + prompt.ids.shape[1]
        close(logits[start:end], lm(*prompt.arguments)[0], f"(f) document {at} of a packed row")
        start = end
    return ""


TRIALS: dict[str, Callable[[Any], Any]] = {
    "b": stacks,
    "c": padding,
    "d": answers,
    "e": gradients,
    "f": packing,
}
