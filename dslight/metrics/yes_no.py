"""POPE and MME: corpus scores of yes/no answers, computed from counts of fixed shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dslight.metrics.base import TextMetric, Verdict, check_protocol, ratio
from dslight.metrics.functional.thinking import Unfinished
from dslight.metrics.functional.yes_no import (
    MME_COGNITION,
    MME_PERCEPTION,
    YES_NO_PROTOCOLS,
    YesNoProtocol,
    mme_scores,
    parse_yes_no_mme,
    parse_yes_no_pope,
    pope_scores,
)

if TYPE_CHECKING:
    from dslight.types import Question

_ANSWERS = {"yes": 0, "no": 1, None: 2}

MME_IMAGES: dict[str, int] = {
    "existence": 30, "count": 30, "position": 30, "color": 30, "posters": 147, "celebrity": 170, "scene": 200,
    "landmark": 200, "artwork": 200, "OCR": 20, "commonsense_reasoning": 70, "numerical_calculation": 20,
    "text_translation": 20, "code_reasoning": 20,
}  # fmt: skip
"""Images per task of the released set, two questions each."""


def _label(references: Sequence[str]) -> str:
    label = references[0].strip().lower()
    if label not in ("yes", "no"):
        raise ValueError(f"target: a yes/no question has the reference {references[0]!r}")
    return label


class POPEMetric(TextMetric):
    """F1 and its relatives on POPE; "yes" is the positive class.

    ``f1`` and the other plain keys are the mean over the subsets that have questions, as the paper's tables are read;
    for ``protocol="lmms_eval"`` they are pooled over all questions, as that kit reports.

    Args:
        subsets: names of the subsets, given to ``update`` as ``types``; a question without one joins a subset of its
            own.
        protocol: whose evaluator (see ``dslight.metrics.functional.yes_no``).
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.POPEMetric()
        >>> metric.update(["Yes", "no"], [["yes"], ["yes"]], types=["random", "random"])
        >>> round(float(metric.compute()["accuracy"]), 2)
        0.5
    """

    headline = "f1"
    counts: Tensor

    def __init__(
        self,
        subsets: Sequence[str] = ("random", "popular", "adversarial"),
        protocol: YesNoProtocol = "official",
        **kwargs: Any,
    ) -> None:
        super().__init__(subsets, **kwargs)
        check_protocol(protocol, YES_NO_PROTOCOLS)
        self.protocol: YesNoProtocol = protocol
        self._add_counts("counts", len(self.types) + 1, 2, 3)  # subset, label (yes, no), answer (yes, no, neither)

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
    ) -> None:
        """Add a batch: answers, labels ("yes" or "no"), and per answer the name of its subset as ``types``."""
        self.verdicts = [Verdict()] * len(preds)
        counts = torch.zeros(len(self.types) + 1, 2, 3, dtype=torch.int64)
        for row, pred, refs, subset in self._rows(preds, target, valid, types):
            label, answer = _label(refs), None
            if not isinstance(pred, Unfinished):  # to the official script, silence is a yes
                answer = parse_yes_no_pope(pred, self.protocol)
            self.verdicts[row] = Verdict(float(answer == label), answer is None)
            counts[subset, _ANSWERS[label], _ANSWERS[answer]] += 1
        self.counts = self.counts + counts.to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """``f1``, ``accuracy``, ``precision``, ``recall``, ``yes_ratio``, each also per subset, and ``unresolved``."""
        subsets = [pope_scores(subset, self.protocol) for subset in self.counts.tolist()]
        pooled = pope_scores(self.counts.sum(0).tolist(), self.protocol)
        asked = [scores for scores, subset in zip(subsets, self.counts, strict=True) if subset.sum()]
        result = {}
        for key, value in pooled.items():
            if self.protocol != "lmms_eval" and asked:
                value = sum(scores[key] for scores in asked) / len(asked)
            result[key] = value
        for name, scores in zip(self.types, subsets, strict=False):
            result |= {f"{key}/{name}": value for key, value in scores.items()}
        tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in result.items()}
        return tensors | {"unresolved": ratio(self.counts[..., 2].sum(), self.counts.sum())}


class MMEScore(TextMetric):
    """The MME score: per task 100 x (accuracy + accuracy+), 2800 points in all.

    Accuracy+ needs both questions of an image, which distributed samplers put on different ranks; so the state counts
    per image.

    Args:
        image_counts: per task the number of images; the released set by default.
        protocol: whose evaluator (see ``dslight.metrics.functional.yes_no``).
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.MMEScore({"OCR": 1})
        >>> metric.headline in metric.compute()
        True
    """

    headline = "total"
    plot_upper_bound = 2800.0
    images: Tensor
    unresolved: Tensor

    def __init__(
        self,
        image_counts: Mapping[str, int] | None = None,
        protocol: YesNoProtocol = "official",
        **kwargs: Any,
    ) -> None:
        self.image_counts = dict(image_counts or MME_IMAGES)
        super().__init__(tuple(self.image_counts), **kwargs)
        if unknown := set(self.types) - set(MME_PERCEPTION + MME_COGNITION):
            raise ValueError(f"image_counts: MME has no task {', '.join(sorted(unknown))}")
        check_protocol(protocol, YES_NO_PROTOCOLS)
        self.protocol: YesNoProtocol = protocol
        self._add_counts("images", len(self.types), max(self.image_counts.values()), 2)  # task, image, (right, asked)
        self._add_counts("unresolved")

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            preds: the generated answers.
            target: per answer its label, "yes" or "no".
            valid: false for a repeated question, which is left out.
            types: per answer its task; required.
            image_index: per answer the number of its image within the task, from 0; required.

        Raises:
            ValueError: a task or an image number is missing or out of range.
        """
        if types is None or image_index is None or len(image_index) != len(preds):
            raise ValueError("types, image_index: MME needs the task and the image number of every answer")
        self.verdicts = [Verdict()] * len(preds)
        images, unresolved = torch.zeros(self.images.shape, dtype=torch.int64), 0
        for row, pred, refs, task in self._rows(preds, target, valid, types):
            if not types[row]:
                raise ValueError("types: MME needs the task of every answer, got an empty one")
            image, limit = image_index[row], self.image_counts[types[row]]
            if not 0 <= image < limit:
                raise ValueError(f"image_index: image {image} of task {types[row]!r}, which has {limit} images")
            answer = parse_yes_no_mme(pred, self.protocol)
            self.verdicts[row] = Verdict(float(answer == _label(refs)), answer is None)
            images[task, image, 0] += answer == _label(refs)
            images[task, image, 1] += 1
            unresolved += answer is None
        self.images = self.images + images.to(self.device)
        self.unresolved = self.unresolved + unresolved

    def _more(self, questions: Sequence[Question]) -> dict[str, Any]:
        """A question's type is its task, and its id starts with its image's number: "17/0", "17/1"."""
        numbers = [question.question_id.split("/")[0] for question in questions]
        for question, number in zip(questions, numbers, strict=True):
            if not number.isdecimal():
                raise ValueError(
                    f"question {question.question_id!r}: an MME id is the image's number within its task, a slash and "
                    "which of its questions, as in 17/0"
                )
        return {"image_index": [int(number) for number in numbers]}

    def compute(self) -> dict[str, Tensor]:
        """``total``, ``perception``, ``cognition``, one key per task (in points), and ``unresolved``, a share."""
        images = dict(zip(self.types, self.images.tolist(), strict=True))
        scores = mme_scores(images)
        result = {key: torch.tensor(value, dtype=torch.float64) for key, value in scores.items()}
        return result | {"unresolved": ratio(self.unresolved, self.images[..., 1].sum())}
