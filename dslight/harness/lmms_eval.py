"""lmms-eval (EvolvingLMMs-Lab): its tasks, prompts and scores for a dslight model, trained or still in training.

    python -m lmms_eval --model dslight --model_args recipe=runs/my/recipe.yaml,ckpt=latest --tasks mme,pope

The package announces :func:`manifest` under the entry point ``lmms_eval.models``, so ``--model dslight`` is known where
both are installed. A model in memory, as a callback has it, is wrapped by ``DSLight.live(model, data)`` and given to
``lmms_eval.evaluator.simple_evaluate(model=...)``.

Decided here: the "simple" interface (a context string and a function that gives the pictures), because tasks of all
versions offer it. Questions are asked as the recipe's own validation asks them, with its template and views, but with
the task's prompt: no suffix of ours is added. ``until`` of exactly two line breaks is what the harness puts into every
task that names none (a paragraph is not where an answer ends), so it is not applied. A video, which tasks give as a
path, is shown as frames in one picture or several, to encoders with temporal patches, too. A log-likelihood is the sum
over the tokens of the continuation, in nats, without the token that ends the turn. Importing this module
does not need lmms-eval; making a ``DSLight`` does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dslight.harness.shown import shown

if TYPE_CHECKING:
    from dslight.data.collate import Item
    from dslight.data.datamodule import ShardData
    from dslight.processor import Processor
    from dslight.types import Batch
    from dslight.vlm import VLM

    _Base: type = object
else:
    try:
        from lmms_eval.api.model import lmms as _Base
    except ImportError:
        _Base = object

_HARNESS_UNTIL = ["\n\n"]
"""What the harness writes for a task without an ``until``."""
_OPTIONS = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams")
"""What of a task's ``generation_kwargs`` transformers' ``generate`` is given; ``until`` is applied to the text."""

_log = logging.getLogger(__name__)


def manifest() -> Any:
    """What lmms-eval's registry of models is told (its ``ModelManifest``)."""
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found]

    return ModelManifest(model_id="dslight", simple_class_path=f"{__name__}.DSLight")


class DSLight(_Base):
    """A model of dslight as an ``lmms``.

    Args:
        recipe: a recipe's file, or a run's folder. The ``recipe.yaml`` of a run is the one that it was trained with.
        ckpt: a checkpoint of the run, weights that ``dslight.checkpoints`` reads, or ``latest``.
        batch_size: questions that are answered at once.
        device: e.g. ``cuda:0``; default: a GPU where there is one.
        frames, tile: what is made of a video, see :meth:`dslight.data.video.Sampling.of`.
        kwargs: lmms-eval passes more than every model needs; anything but ``max_batch_size`` is refused.

    Raises:
        ImportError: lmms-eval is not installed.
        RecipeError: as ``dslight predict``.
    """

    is_simple = True

    def __init__(
        self,
        recipe: str,
        ckpt: str = "latest",
        batch_size: int | str = 1,
        device: str | None = None,
        frames: int | str | None = None,
        tile: str | None = None,
        **kwargs: Any,
    ) -> None:
        from dslight.recipe.compose import compose
        from dslight.run.evaluate import trained

        _need_lmms_eval()
        if unknown := sorted(set(kwargs) - {"max_batch_size"}):
            raise ValueError(
                f"--model_args: {', '.join(unknown)}: dslight takes recipe, ckpt, batch_size, device, frames and tile"
            )
        file = Path(recipe)
        experiment = trained(compose(file / "recipe.yaml" if file.is_dir() else file, []), ckpt, device)
        model = cast(Any, experiment.model)
        self._wrap(model, model.processor, batch_size, frames, tile)

    @classmethod
    def live(
        cls, model: VLM, data: ShardData, batch_size: int = 1, frames: int | None = None, tile: str | None = None
    ) -> DSLight:
        """A model in memory with its connected data module, e.g. in the middle of a training; it is left as it was."""
        _need_lmms_eval()
        made = cls.__new__(cls)
        made._wrap(model, data.processor, batch_size, frames, tile)
        return made

    def _wrap(
        self, model: VLM, processor: Processor, batch_size: int | str, frames: int | str | None, tile: str | None
    ) -> None:
        from dslight.data.video import Sampling

        super().__init__()
        if frames is not None and (not str(frames).isdigit() or int(frames) < 1):
            raise ValueError(f"--model_args: frames: a number is needed, got {frames!r}")
        self.sampling = Sampling.of(None if frames is None else int(frames), tile)
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"--batch_size: a number of questions is needed, got {batch_size!r}")
        self.vlm, self.processor, self.batch_size = model, processor, int(batch_size)
        self._ignored: set[str] = set()

    @property
    def device(self) -> Any:
        """Where the model is; the harness puts its own tensors there."""
        return self.vlm.device

    def clean(self) -> None:
        """The harness frees its models at the end; one in memory belongs to somebody else."""

    # --- what the harness asks

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, in the order of ``requests``.

        ``Instance.args`` are (context, generation_kwargs, doc_to_visual, doc_id, task, split).
        """
        groups: dict[str, list[tuple[int, Item]]] = {}
        for place, request in enumerate(requests):
            context, options, doc_to_visual, doc_id, task, split = request.args
            item = self._question(context, self._pictures(doc_to_visual, task, split, doc_id), f"{task}/{doc_id}")
            groups.setdefault(json.dumps(self._known(options), sort_keys=True), []).append((place, item))
        answers = [""] * len(requests)
        with self.vlm.evaluating():
            for options, members in groups.items():
                generation = json.loads(options)
                until = generation.pop("until")
                for places, batch in self._batches(members):
                    replies = self.vlm.answer_batch(batch, eos_token_id=self.processor.stop_ids, **generation)
                    for place, reply in zip(places, replies, strict=True):
                        answers[place] = _cut(reply, until)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Per request (log-likelihood of the continuation in nats, whether greedy decoding would give it).

        ``Instance.args`` are (context, doc_to_target, doc_to_visual, doc_id, task, split); ``doc_to_target`` is the
        continuation, or a function of the document that gives it.
        """
        members = []
        for place, request in enumerate(requests):
            context, target, doc_to_visual, doc_id, task, split = request.args
            continuation = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
            images = self._pictures(doc_to_visual, task, split, doc_id)
            members.append((place, self._statement(context, continuation, images, f"{task}/{doc_id}")))
        found = [(0.0, False)] * len(members)
        with self.vlm.evaluating():
            for places, batch in self._batches(members):
                for place, result in zip(places, _likelihood(self.vlm(batch), batch), strict=True):
                    found[place] = result
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported: no task of the paper asks twice."""
        raise NotImplementedError("dslight answers one question at a time; leave tasks of several rounds out")

    # --- how it is answered

    def _pictures(self, doc_to_visual: Any, task: str, split: str, doc_id: Any) -> list[bytes]:
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual else None
        return [image for visual in visuals or [] for image in shown(visual, f"{task}/{doc_id}", self.sampling)]

    def _question(self, text: str, images: Sequence[bytes], key: str) -> Item:
        from dslight.data.sample import Sample
        from dslight.types import Question

        sample = Sample(key=key, id=key, images=tuple(images))
        return self.processor.rows.ask(sample, Question(key, text, references=()), valid=True)

    def _statement(self, text: str, continuation: str, images: Sequence[bytes], key: str) -> Item:
        from dataclasses import replace

        from dslight.data.conversation import IMAGE_TOKEN
        from dslight.data.sample import Sample, Turn
        from dslight.types import IGNORE

        marks = "" if IMAGE_TOKEN in text else (IMAGE_TOKEN + "\n") * len(images)
        turns = (Turn("human", marks + text), Turn("gpt", continuation))
        item = self.processor.rows.train(Sample(key=key, id=key, images=tuple(images), turns=turns))
        assert item.labels is not None
        labels, stops = list(item.labels), set(self.processor.stop_ids)
        while labels and (labels[-1] == IGNORE or labels[-1] in stops):
            labels.pop()  # the end of the turn is no part of the continuation
        return replace(item, labels=labels + [IGNORE] * (len(item.labels) - len(labels)))

    def _batches(self, members: Sequence[tuple[int, Item]]) -> Iterator[tuple[list[int], Batch]]:
        """(places, batch), rows of like length together."""
        ordered = sorted(members, key=lambda member: len(member[1].ids))
        for start in range(0, len(ordered), self.batch_size):
            part = ordered[start : start + self.batch_size]
            yield [place for place, _ in part], self.processor.collate([item for _, item in part]).to(self.device)

    def _known(self, options: Mapping[str, Any]) -> dict[str, Any]:
        until = options.get("until") or []
        until = [] if until == _HARNESS_UNTIL else until
        known: dict[str, Any] = {"max_new_tokens": 1024, "until": [until] if isinstance(until, str) else list(until)}
        known |= {key: options[key] for key in _OPTIONS if options.get(key) is not None}
        if not known.get("temperature"):  # 0, or not given: greedy
            known = {key: value for key, value in known.items() if key not in ("temperature", "top_p", "top_k")}
            known["do_sample"] = False
        else:
            known.setdefault("do_sample", True)
        for key in sorted(set(options) - {*_OPTIONS, "until"} - self._ignored):
            self._ignored.add(key)
            _log.warning("generation_kwargs: %s=%r is not used by dslight", key, options[key])
        return known


def _need_lmms_eval() -> None:
    if _Base is object:
        raise ImportError("lmms-eval is not installed: pip install lmms-eval")


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [at for stop in until if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends)].rstrip() if ends else text


def _likelihood(logits: Any, batch: Batch) -> list[tuple[float, bool]]:
    """Of ``logits`` ``[B, T, vocabulary]``, over the labels of each row."""
    import torch

    from dslight.types import IGNORE

    assert batch.labels is not None
    labels = batch.labels[:, 1:]
    scored = labels != IGNORE
    logs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    chosen = logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    greedy = (logs.argmax(dim=-1) == labels) | ~scored
    sums = (chosen * scored).double().sum(dim=1)
    return [(float(total), bool(same)) for total, same in zip(sums, greedy.all(dim=1), strict=True)]
