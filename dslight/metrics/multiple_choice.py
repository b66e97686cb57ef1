"""Multiple-choice accuracy (SEED, MMBench, MMMU, ScienceQA, AI2D, EgoSchema, NExT-QA, MVBench)."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dslight.metrics.base import MeanScore, check_protocol, ratio
from dslight.metrics.functional.exact_match import exact_match
from dslight.metrics.functional.mmmu_open import mmmu_open_match
from dslight.metrics.functional.multiple_choice import (
    CHOICE_PROTOCOLS,
    READS_OPTION_TEXTS,
    ChoiceProtocol,
    parse_choice,
    parse_options,
)

if TYPE_CHECKING:
    from dslight.types import Question

_ANY_LETTER = dict.fromkeys(string.ascii_uppercase, "")
ROTATION_STRIDE = 10**6
"""MMBench numbers the k-th rotation of question i as ``i + k * 10**6``."""


class MultipleChoiceAccuracy(MeanScore):
    """The share of questions whose answer names the right letter.

    Args:
        protocol: how the letter is read (see ``dslight.metrics.functional.multiple_choice``).
        types: subjects or dimensions of the breakdown.
        circular_groups: MMBench's circular evaluation: the number of base questions (group ids are below it). A base
            question is right only if all its rotations are; ``compute()`` then leads with ``circular_accuracy``.
        open_answers: questions without options are judged by the answer itself, without case and punctuation.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.MultipleChoiceAccuracy()
        >>> metric.update(["B", "C."], [["B"], ["A"]])
        >>> float(metric.compute()["accuracy"])
        0.5
    """

    headline = "accuracy"
    rotations: Tensor

    def __init__(
        self,
        protocol: ChoiceProtocol = "letter",
        types: Sequence[str] | None = None,
        circular_groups: int | None = None,
        open_answers: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(types, **kwargs)
        check_protocol(protocol, CHOICE_PROTOCOLS)
        self.protocol: ChoiceProtocol = protocol
        self.circular_groups = circular_groups
        self.open_answers = open_answers
        if circular_groups is not None:
            self._add_counts("rotations", circular_groups, 2)  # right, asked
            self.headline = "circular_accuracy"

    def score(
        self, prediction: str, references: Sequence[str], options: Mapping[str, str] | None = None
    ) -> float | None:
        """1.0 or 0.0, ``None`` if no letter is found. MMMU's questions without options are judged as open ones."""
        if self.protocol in ("mmmu", "mmmu_lmms_eval") and options is not None and not options:
            return mmmu_open_match(prediction, references)
        if self.open_answers and options is not None and not options:
            return exact_match(prediction, references, "lmms_eval")
        letter = parse_choice(prediction, options or _ANY_LETTER, self.protocol)
        return None if letter is None else float(letter in references)

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
        options: Sequence[Mapping[str, str]] | None = None,
        groups: Sequence[int] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            preds: the generated answers.
            target: per answer the right letter (or letters).
            valid: false for a repeated question, which is left out.
            types: per answer the name of its type.
            options: per answer letter -> text, in order. Needed by the protocols that look for the texts; without it,
                the others take any capital letter for an option.
            groups: per answer the number of its base question, for circular evaluation.

        Raises:
            ValueError: a length differs, or ``options`` or ``groups`` are needed and not given.
        """
        if options is None and self.protocol in READS_OPTION_TEXTS:
            raise ValueError(
                f"options: the protocol {self.protocol!r} reads the options' texts; pass options=[...] to update, "
                "or call update_questions, which reads them from the questions"
            )
        if groups is None and self.circular_groups is not None:
            raise ValueError("groups: circular evaluation needs the base question of every answer; pass groups=[...]")
        for name, given in (("options", options), ("groups", groups)):
            if given is not None and len(given) != len(preds):
                raise ValueError(f"{name}: {len(given)} entries for {len(preds)} predictions")

        scored = [
            (row, kind, self.score(pred, refs, None if options is None else options[row]))
            for row, pred, refs, kind in self._rows(preds, target, valid, types)
        ]
        if groups is not None and self.circular_groups is not None:
            self._add_rotations([(groups[row], score) for row, _, score in scored])
        self._add(scored, preds)

    def _add_rotations(self, asked: Sequence[tuple[int, float | None]]) -> None:
        for group, _ in asked:
            if not 0 <= group < self.rotations.shape[0]:
                raise ValueError(f"groups: base question {group} is not below circular_groups={self.circular_groups}")
        right = torch.tensor([[score == 1.0, True] for _, score in asked], dtype=torch.int64)
        index = torch.tensor([group for group, _ in asked], dtype=torch.int64)
        self.rotations = self.rotations.index_add(0, index.to(self.device), right.view(len(asked), 2).to(self.device))

    def _more(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Options are read from the questions' texts, or are their ``options`` where the picture shows them; groups are
        their ``group``, else from their ids (see ``ROTATION_STRIDE``).
        """
        options = [parse_options(question.text) or _unseen(question) for question in questions]
        if "mmmu" not in self.protocol and not self.open_answers and not all(options):
            without = next(question for question, found in zip(questions, options, strict=True) if not found)
            raise ValueError(
                f"question {without.question_id!r}: its text lists no options as lines 'A. ...' or '(A) ...': "
                f"{without.text[:80]!r}"
            )
        if self.circular_groups is None:
            return {"options": options}
        return {"options": options, "groups": [_base_question(question) for question in questions]}

    def compute(self) -> dict[str, Tensor]:
        """As for every metric; with ``circular_groups`` the first key is ``circular_accuracy``."""
        result = super().compute()
        if self.circular_groups is None:
            return result
        right, asked = self.rotations.unbind(1)
        circular = ratio(((right == asked) & (asked > 0)).sum(), (asked > 0).sum())
        plain = {key.replace("circular_accuracy", "accuracy"): value for key, value in result.items()}
        return {"circular_accuracy": circular} | plain


class CVBenchAccuracy(MultipleChoiceAccuracy):
    """CV-Bench's number: the mean of its 2D part, which is the mean of ADE20K and COCO, and of its 3D part, Omni3D.

    Args:
        protocol: how the letter is read.
        kwargs: of :class:`MultipleChoiceAccuracy`.

    Example:
        >>> from dslight.metrics.multiple_choice import CVBenchAccuracy
        >>> metric = CVBenchAccuracy("letter")
        >>> metric.update(["A", "B", "A"], [["A"]] * 3, types=["ADE20K", "COCO", "Omni3D"])
        >>> float(metric.compute()["cv_bench"])
        0.75
    """

    headline = "cv_bench"

    def __init__(self, protocol: ChoiceProtocol = "mmbench", **kwargs: Any) -> None:
        super().__init__(protocol, types=("ADE20K", "COCO", "Omni3D"), **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """``cv_bench``, ``accuracy`` over all questions and per source. A part without questions is left out."""
        found = super().compute()
        plain = {key.replace("cv_bench", "accuracy"): value for key, value in found.items()}
        flat = [float(found[f"cv_bench/{name}"]) for name in ("ADE20K", "COCO")]
        flat = [value for value in flat if value == value]
        parts = [sum(flat) / len(flat)] if flat else []
        parts += [value for value in [float(found["cv_bench/Omni3D"])] if value == value]
        return {"cv_bench": ratio(sum(parts), len(parts)), **plain}


MLVU_TASKS = (
    "plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning", "sportsQA", "tutorialQA",
)  # fmt: skip
"""Kinds of MLVU's questions with options; the last two only in its test set."""


class MLVUAccuracy(MultipleChoiceAccuracy):
    """MLVU's M-Avg: the mean over its kinds of questions of the accuracy on each.

    Args:
        protocol: how the letter is read.
        kwargs: of :class:`MultipleChoiceAccuracy`.

    Example:
        >>> from dslight.metrics.multiple_choice import MLVUAccuracy
        >>> metric = MLVUAccuracy("letter")
        >>> metric.update(["A", "B", "A"], [["A"]] * 3, types=["ego", "ego", "count"])
        >>> float(metric.compute()["m_avg"])
        0.75
    """

    headline = "m_avg"

    def __init__(self, protocol: ChoiceProtocol = "lmms_eval", **kwargs: Any) -> None:
        super().__init__(protocol, types=MLVU_TASKS, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """``m_avg``, ``accuracy`` over all questions and per kind. A kind without questions is left out."""
        found = super().compute()
        plain = {key.replace("m_avg", "accuracy"): value for key, value in found.items()}
        kinds = [float(found[f"m_avg/{name}"]) for name in MLVU_TASKS]
        kinds = [value for value in kinds if value == value]
        return {"m_avg": ratio(sum(kinds), len(kinds)), **plain}


def _unseen(question: Question) -> dict[str, str]:
    return dict(zip(string.ascii_uppercase, question.extra.get("options") or (), strict=False))


def _base_question(question: Question) -> int:
    if "group" in question.extra:
        return int(question.extra["group"])
    if not question.question_id.isdecimal():
        raise ValueError(f"question {question.question_id!r}: circular evaluation needs MMBench's index as its id")
    return int(question.question_id) % ROTATION_STRIDE
