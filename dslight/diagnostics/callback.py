"""Diagnose: runs what a recipe asks for under ``diagnostics`` behind a validation, and says what was found.

Logged, under names that are the same on every rank and in every validation: ``diagnostics/stack_1/relative_norm`` and
``/cosine``, ``diagnostics/SOURCE/ARM`` (scores of :mod:`~dslight.diagnostics.compare`) and ``diagnostics/PART/NAME``
(what a part says of itself). Decided here: questions are asked anew, in an order of their own, so that the slice does
not depend on how a validation distributes its questions; passes run as a validation's do (precision, sharding), and all
ranks make equally many.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn

from dslight.components import Component, shared_pictures
from dslight.components.decoders.causal_lm import HFCausalLM
from dslight.components.waiting import Waiting
from dslight.diagnostics.compare import ALL, Arm, arms, difference
from dslight.diagnostics.draw import draw
from dslight.diagnostics.groups import Groups
from dslight.diagnostics.heat import relevance
from dslight.diagnostics.norms import Norm, Norms
from dslight.diagnostics.places import NoPlace, Panel, panels, to_patches
from dslight.diagnostics.settings import Diagnostics
from dslight.metrics.base import TextMetric
from dslight.nn.intervention import Act, intervene
from dslight.types import Batch
from dslight.vlm import VLM


@dataclass(frozen=True)
class Asked:
    """Some questions.

    Attributes:
        batch: those without an image, and repeats that pad a rank's share, are not valid.
        others: the same rows about other images, of the same layout; ``None`` where they were not asked for.
        alone: rows for which no other image was found; they see their own.
    """

    batch: Batch
    others: Batch | None
    alone: tuple[bool, ...]


class Slice(Protocol):
    """The fixed questions of a source, this rank's share."""

    def asked(self, others: bool) -> Iterator[Asked]:
        """All of them, batch by batch."""
        ...

    def taught(self, count: int) -> Iterator[tuple[Batch, Batch]]:
        """``count`` of them one by one: as asked, and with a reference answer and its labels."""
        ...


Write = Callable[[dict[str, Any], Mapping[str, bytes]], None]
"""Keeps what was found, and files by their names."""


class Diagnose(pl.Callback):
    """See the module's docstring.

    Args:
        settings: what is asked for.
        slices: the questions by source, given the trainer.
        write: called by the first rank, with what the validation that is no part of a training has found.
    """

    def __init__(
        self, settings: Diagnostics, slices: Callable[[pl.Trainer], Mapping[str, Slice]], write: Write
    ) -> None:
        self.settings, self.slices, self.write = settings, slices, write

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look, log, and behind the last validation write."""
        if trainer.sanity_checking:
            return
        model, last = cast(VLM, pl_module), trainer.state.fn == TrainerFn.VALIDATING
        groups, slices = Groups(model), self.slices(trainer)
        found: dict[str, Any] = {
            "step": trainer.global_step,
            "stacks": [asdict(group) for group in groups],
            "notes": [] if len(groups) else [f"{type(model.stacking).__name__} adds no stacks: nothing to leave out"],
            "parts": part_numbers(model),
        }
        logged = {
            f"{part}/{name}": value for part, numbers in found["parts"].items() for name, value in numbers.items()
        }
        files: dict[str, bytes] = {}
        with _as_in_validation(trainer):
            compared = arms(groups, self.settings) if last or self.settings.while_training else []
            norms = Norms(groups) if len(groups) and self.settings.norms else None
            found["comparisons"], found["questions"] = {}, []
            if norms is not None or compared:
                for source, questions in slices.items():
                    rows = _gathered(list(_ask(model, source, questions, groups, compared, norms)), trainer)
                    found["questions"] += rows
                    found["comparisons"][source] = summary = _summary(compared, rows)
                    logged |= {f"{source}/{arm['name']}": arm["score"] for arm in summary}
            if norms is not None:
                measured = _reduced(norms, trainer)
                found["norms"] = [norm.to_json() for norm in measured]
                logged |= {f"stack_{norm.group.number}/relative_norm": norm.relative for norm in measured}
                logged |= {f"stack_{norm.group.number}/cosine": norm.cosine for norm in measured}
            if last and self.settings.heat_maps:
                drawn = [one for source, each in slices.items() for one in self._heat_maps(model, source, each, groups)]
                drawn = _gathered(drawn, trainer)
                files = {row["file"]: png for row in drawn if (png := row.pop("png")) is not None}
                found["heat_maps"] = drawn
        model.log_dict({f"diagnostics/{name}": float(value) for name, value in logged.items()})
        if last and trainer.is_global_zero:
            self.write(found, files)

    def _heat_maps(self, model: VLM, source: str, questions: Slice, groups: Groups) -> Iterator[dict[str, Any]]:
        for batch, taught in questions.taught(self.settings.heat_maps):
            batch, taught = batch.to(model.device), taught.to(model.device)
            visual = model.see(batch.views) if _alike(model, groups) else None
            found = relevance(model, taught, self.settings.heat, visual=visual)
            (answer,) = model.answer_batch(batch, **model.generation[source], visual=visual)
            (question,) = batch.questions
            if not question.valid:
                continue
            row: dict[str, Any] = {
                "source": source,
                "number": question.number,
                "question_id": question.question_id,
                "question": question.text,
                "references": list(question.references),
                "answer": answer,
                "log_likelihood": found.log_likelihood,
                "heat": self.settings.heat,
                "file": f"{source}-{question.number}.png",
                "png": None,
                "totals": [],
            }
            try:
                row |= _picture(model, taught, found.slots, found.inside, groups)
            except NoPlace as reason:
                row |= {"file": None, "note": str(reason)}
            yield row


def part_numbers(model: VLM) -> dict[str, dict[str, float]]:
    """What the parts say of themselves (:meth:`~dslight.components.Component.diagnostics`)."""
    return {
        name: {key: float(value) for key, value in part.diagnostics().items()}
        for name, part in model.parts().items()
        if isinstance(part, Component)
    }


@contextmanager
def _as_in_validation(trainer: pl.Trainer) -> Iterator[None]:
    """As a validation step is run, but in a mode in which a backward pass may be begun."""
    with ExitStack() as contexts:
        contexts.enter_context(trainer.strategy.precision_plugin.val_step_context())
        contexts.enter_context(torch.inference_mode(False))
        contexts.enter_context(torch.no_grad())
        yield


def _ask(
    model: VLM, source: str, questions: Slice, groups: Groups, compared: list[Arm], norms: Norms | None
) -> Iterator[dict[str, Any]]:
    """A row per valid question, with its answer and score in every arm; norms are counted on the way."""
    judge = copy.deepcopy(cast(TextMetric, model.metrics[source]))
    options = model.generation[source]
    layout = model.stacking.slot_layout(model.vision_encoder, model.projector)
    patches = model.vision_encoder.grid[0] * model.vision_encoder.grid[1]
    for asked in questions.asked(others=any(arm.others for arm in compared)):
        batch = asked.batch.to(model.device)
        look = None if norms is None else norms.watch(batch, layout, patches)
        if look is not None and not compared:
            with intervene(look):
                model.answer_batch(batch, **options | {"max_new_tokens": 1})
        theirs: dict[bool, torch.Tensor] = {}
        if asked.others is not None:
            with groups.recorded() as theirs:
                others = asked.others.to(model.device)
                if _alike(model, groups):
                    theirs[False] = model.see(others.views).stacks
                else:
                    model.answer_batch(others, **options | {"max_new_tokens": 1})
        acts = {arm.name: look if look is not None and arm.name == ALL else arm.act(theirs) for arm in compared}
        answers, scores = _answers(model, batch, acts, options, _alike(model, groups)), {}
        for name, texts in answers.items():
            judge.reset()
            scores[name] = [verdict.score for verdict in judge.update_questions(texts, batch.questions)]
        for i, question in enumerate(batch.questions if compared else ()):
            if question.valid:
                unfit = {arm.name for arm in compared if arm.others and asked.alone[i]}
                yield {
                    "source": source,
                    "number": question.number,
                    "question_id": question.question_id,
                    "key": question.key,
                    "answers": {name: texts[i] for name, texts in answers.items()},
                    "scores": {name: None if name in unfit else each[i] for name, each in scores.items()},
                }


def _alike(model: VLM, groups: Groups) -> bool:
    """Whether what an arm changes is in the language model alone, so that views are seen once for all of them."""
    return not groups.count_inside and model.device_mesh is None


def _answers(
    model: VLM, batch: Batch, acts: Mapping[str, Act], options: dict[str, Any], alike: bool
) -> dict[str, list[str]]:
    """The answers in every arm. Where views are seen once, prompts are read arm by arm, since stacks stand in them
    alone, and the answers of all arms are written together.
    """
    seen = {"visual": model.see(batch.views)} if alike and acts else {}
    decoder, given, waiting, written = model.language_model, model.padding(options), Waiting(), []
    for act in acts.values():
        with intervene(act):
            prompts = shared_pictures.read(decoder, batch, seen["visual"], given) if seen else None
            if prompts is None:
                written.append(model.generate(batch, **given, **seen))
                continue
        waiting.add(prompts)
        if waiting.full:
            written += waiting.write(cast(HFCausalLM, decoder), **given)
    written += waiting.write(cast(HFCausalLM, decoder), **given)
    return {name: model.texts(ids) for name, ids in zip(acts, written, strict=True)}


def _summary(compared: list[Arm], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    whole = [row["scores"][ALL] for row in rows] if compared else []
    found = (difference(arm, whole, [row["scores"][arm.name] for row in rows]) for arm in compared)
    return [one.to_json() for one in found if one is not None]


def _gathered(rows: list[dict[str, Any]], trainer: pl.Trainer) -> list[dict[str, Any]]:
    """The rows of all ranks in the order of their questions, each once."""
    shares: list[Any] = [rows]
    if trainer.world_size > 1:
        shares = [None] * trainer.world_size
        dist.all_gather_object(shares, rows)
    every = {(row["source"], row["number"]): row for share in shares for row in share}
    order = list(dict.fromkeys(source for source, _ in every))
    return [every[key] for key in sorted(every, key=lambda key: (order.index(key[0]), key[1]))]


def _reduced(norms: Norms, trainer: pl.Trainer) -> list[Norm]:
    norms.sums = trainer.strategy.reduce(norms.sums.to(trainer.strategy.root_device), reduce_op="sum").cpu()
    return norms.compute()


def _picture(model: VLM, batch: Batch, slots: torch.Tensor, inside: torch.Tensor, groups: Groups) -> dict[str, Any]:
    """The panels of a question's images, and how much each stack has in all."""
    assert batch.views is not None
    views = batch.views.to("cpu")
    patches = to_patches(model.stacking, model.vision_encoder, model.projector, views, slots, inside)
    titles = {0: "base tokens"} | {group.number: f"stack {group.number}, layer {group.layer}" for group in groups}
    totals = [{"stack": i, "total": float(one.sum()), "size": float(one.abs().sum())} for i, one in enumerate(patches)]

    def title(panel: Panel) -> str:
        return f"{titles[panel.slot]}\nsum {panel.heat.sum():+.2g}, size {panel.heat.abs().sum():.2g}"

    rows = [panels(views, patches, image) for image in range(len(views))]
    return {"png": draw(rows, title), "totals": totals}
