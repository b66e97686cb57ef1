"""One question, looked into: its views and tokens, what each stack adds, where in the picture the answer came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from dslight.diagnostics.groups import Groups
from dslight.diagnostics.heat import Relevance, relevance
from dslight.diagnostics.norms import Norm, Norms
from dslight.diagnostics.places import NoPlace, Panel, panels, to_patches
from dslight.nn.intervention import Act, Injection, intervene
from dslight.types import Batch, Views


@dataclass(frozen=True)
class Look:
    """What is known of one question and its answer.

    Attributes:
        answer: the model's, or the one that was asked about.
        log_likelihood: of that answer.
        views: what was seen; ``None``: nothing.
        tokens: the prompt: texts of tokens, and numbers of visual tokens where images stand.
        norms: what each stack adds; none without an image.
        panels: per image the heat maps, the base tokens' first.
        note: why there are no heat maps.
    """

    answer: str
    log_likelihood: float
    views: Views | None
    tokens: list[str | int]
    norms: list[Norm] = field(default_factory=list)
    panels: list[list[Panel]] = field(default_factory=list)
    note: str = ""


def act_of(groups: Groups, off: Sequence[int] = (), swapped: bool = False) -> Act | None:
    """What the switches of a page do to the stacks: exchange them among their sites, leave some out; ``None``: nothing.

    Args:
        groups: of the model.
        off: numbers of the stacks that are left out.
        swapped: whether every stack goes to the site of another.
    """
    steps: list[Act] = [groups.permuted(0)] if swapped else []
    steps += [groups.without(off)] if off else []
    if not steps:
        return None

    def act(injection: Injection) -> Injection:
        for step in steps:
            injection = step(injection)
        return injection

    return act


def look(
    model: Any,
    question: str,
    images: Any = None,
    answer: str | None = None,
    max_new_tokens: int = 64,
    act: Act | None = None,
) -> Look:
    """Ask, and look into the answer.

    Args:
        model: a :class:`dslight.VLM` that can be asked.
        question: as to :meth:`dslight.VLM.answer`.
        images: likewise, of one question.
        answer: whose origin is wanted; default: the model's own.
        max_new_tokens: of it.
        act: what is done to the stacks on their way, see :func:`act_of`; they keep their numbers in what is found.

    Raises:
        ValueError: as :meth:`dslight.VLM.answer`.
    """
    listed = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
    said = answer
    if said is None:
        with nullcontext() if act is None else intervene(act):
            said = model.answer(question, listed or None, max_new_tokens=max_new_tokens)
    batch: Batch = model.processor.ask(question, listed or None).to(model.device)
    taught: Batch = model.processor.teach(question, said or " ", listed or None).to(model.device)
    groups, tokens = Groups(model), _tokens(model, batch)
    if batch.views is None:
        with model.evaluating():
            return Look(said, -float(model.loss(taught)[0]), None, tokens)
    norms = _norms(model, batch, groups, act) if len(groups) else []
    found = _relevance(model, taught, act)
    views = batch.views.to("cpu")
    made = Look(said, found.log_likelihood, views, tokens, norms)
    try:
        parts = (model.stacking, model.vision_encoder, model.projector)
        patches = to_patches(*parts, views, found.slots, found.inside)
    except NoPlace as reason:
        return replace(made, note=str(reason))
    return replace(made, panels=[panels(views, patches, image) for image in range(len(views))])


def _relevance(model: Any, taught: Batch, act: Act | None) -> Relevance:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with nullcontext() if model.precision is None else model.precision.forward_context():
            return relevance(model, taught, "gradient_x_input", act)
    finally:
        for module, mode in modes.items():
            module.training = mode


def titles(groups: Groups) -> Callable[[int], str]:
    """What a slot is called below its heat map: 0 the base tokens, the others stacks by their number."""
    named = {
        group.number: f"stack {group.number}, {group.part.replace('_', ' ')} layer {group.layer}" for group in groups
    }
    return lambda slot: named.get(slot, "base tokens")


def _norms(model: Any, batch: Batch, groups: Groups, act: Act | None) -> list[Norm]:
    norms = Norms(groups)
    layout = model.stacking.slot_layout(model.vision_encoder, model.projector)
    patches = model.vision_encoder.grid[0] * model.vision_encoder.grid[1]
    watch = norms.watch(batch, layout, patches)

    def watched(injection: Injection) -> Injection:
        return watch(injection) if act is None else act(watch(injection))

    with model.evaluating(), intervene(watched):
        model(batch)
    return norms.compute()


def _tokens(model: Any, batch: Batch) -> list[str | int]:
    made: list[str | int] = []
    seen: Tensor = batch.visual_mask[0]
    for token, visual in zip(batch.input_ids[0].tolist(), seen.tolist(), strict=True):
        if not visual:
            made.append(model.tokenizer.decode([token]))
        elif made and isinstance(made[-1], int):
            made[-1] += 1
        else:
            made.append(1)
    return made
