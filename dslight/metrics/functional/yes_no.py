"""Yes/no benchmarks, POPE (Li et al. 2023) and MME (Fu et al. 2023): how an answer is read, and the scores from counts.

Readings, by benchmark and protocol; ``None`` is an answer that is neither:

POPE ``official``
    The first sentence decides: "no" if one of its words is No, no or not, else "yes" (so "", "NO" and "Nope" are
    "yes").
MME ``official``
    The first four characters decide: they contain "yes", else "no" ("know" is "no"; "   no" is neither).
``lmms_eval``
    POPE: the answer is "yes" or "no" without case and blanks, else neither. MME: as official, after stripping and
        deleting
    full stops; "y" and "n" count.
``vlmevalkit``
    "yes" or "no" is among the words, and not both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from dslight.metrics.functional.vqa import strip_marks_vlmevalkit

YesNoProtocol = Literal["official", "lmms_eval", "vlmevalkit"]
YES_NO_PROTOCOLS: tuple[str, ...] = get_args(YesNoProtocol)

MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
_PAIR = 2
"""Questions about an image of MME."""
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def _pope_official(text: str) -> str | None:
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def _pope_lmms_eval(text: str) -> str | None:
    text = text.lower().strip()
    return text if text in ("yes", "no") else None


def _start(text: str) -> str | None:
    return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else None


def _mme_official(text: str) -> str | None:
    return _start(text.lower())


def _mme_lmms_eval(text: str) -> str | None:
    text = text.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text) or _start(text)


def _vlmevalkit(text: str) -> str | None:
    found = {"yes", "no"} & set(strip_marks_vlmevalkit(text.lower()).split())
    return found.pop() if len(found) == 1 else None


_POPE: dict[str, Callable[[str], str | None]] = {
    "official": _pope_official,
    "lmms_eval": _pope_lmms_eval,
    "vlmevalkit": _vlmevalkit,
}
_MME: dict[str, Callable[[str], str | None]] = {
    "official": _mme_official,
    "lmms_eval": _mme_lmms_eval,
    "vlmevalkit": _vlmevalkit,
}


def parse_yes_no_pope(text: str, protocol: YesNoProtocol = "official") -> str | None:
    """What a POPE answer says: "yes", "no", or ``None`` for neither."""
    return _POPE[protocol](text)


def parse_yes_no_mme(text: str, protocol: YesNoProtocol = "official") -> str | None:
    """What an MME answer says: "yes", "no", or ``None`` for neither."""
    return _MME[protocol](text)


def pope_scores(counts: Sequence[Sequence[int]], protocol: YesNoProtocol = "official") -> dict[str, float]:
    """Accuracy, precision, recall, F1 and yes-ratio of a POPE set; "yes" is the positive class.

    Args:
        counts: ``[2][3]``: rows are the labels yes, no; columns the answers yes, no, neither.
        protocol: ``lmms_eval`` leaves an answer that is neither out of the recall, and its yes-ratio is that of the
            labels; the others take it for a "no" that is wrong.

    Returns:
        The scores in 0..1; 0 where a quotient is undefined (the official code raises there); all nan without questions.
    """
    (tp, fn, missed), (fp, tn, neither) = counts
    total = tp + fn + missed + fp + tn + neither
    if not total:
        return dict.fromkeys(("f1", "accuracy", "precision", "recall", "yes_ratio"), float("nan"))
    positives = tp + fn if protocol == "lmms_eval" else tp + fn + missed
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / positives if positives else 0.0
    yes = tp + fn + missed if protocol == "lmms_eval" else tp + fp
    return {
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "accuracy": (tp + tn) / total,
        "precision": precision,
        "recall": recall,
        "yes_ratio": yes / total,
    }


def mme_scores(images: Mapping[str, Sequence[tuple[int, int]]]) -> dict[str, float]:
    """The MME score: per task ``100 * (accuracy + accuracy+)``, and their sums over perception and cognition.

    Args:
        images: per task, for each image the pair (questions answered right, questions asked). Accuracy is over
            questions, accuracy+ over images of which both are right. An image of which only one question was asked (a
            limit has cut its pair) is left out: it would get full accuracy+ for half the work.

    Returns:
        ``total``, ``perception`` (at most 2000), ``cognition`` (at most 800) and one entry per given task. A task
        without a pair is nan and adds nothing; a sum over tasks that are all nan is nan.
    """
    tasks = {}
    for task, pairs in images.items():
        asked = [(right, count) for right, count in pairs if count >= _PAIR]
        if not asked:
            tasks[task] = float("nan")
            continue
        accuracy = sum(right for right, _ in asked) / sum(count for _, count in asked)
        tasks[task] = 100 * (accuracy + sum(right == count for right, count in asked) / len(asked))

    def total(names: Sequence[str]) -> float:
        scores = [tasks[name] for name in names if name in tasks and tasks[name] == tasks[name]]
        return sum(scores) if scores else float("nan")

    perception, cognition = total(MME_PERCEPTION), total(MME_COGNITION)
    return {"total": total(MME_PERCEPTION + MME_COGNITION), "perception": perception, "cognition": cognition} | tasks
