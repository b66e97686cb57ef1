"""Average normalised Levenshtein similarity, the score of DocVQA, InfographicVQA and ST-VQA (Biten et al. 2019).

``s = 1 - distance / length`` against the nearest reference, and 0 where ``s`` is below the threshold of 0.5. What is
done to the strings first, and which length is meant, differs:

``rrc``
    The challenge's script (also VLMEvalKit): lower case, white space collapsed; but the length is that of the strings
    as they came, so padding an answer with blanks raises its score. Two empty strings match.
``lmms_eval``
    ``rrc`` on a stripped prediction.
``stvqa``
    mmf's: lower case and stripped, inner white space kept. Raises on two empty strings; here that is unresolved.
``mp_docvqa``
    The multi-page DocVQA repository's: as ``stvqa``, but an empty prediction and the word "none" (its way to say that
    there is no answer) score 0.
``pix2struct``
    No normalisation, and a similarity of exactly the threshold scores 0. Raises on two empty strings, as ``stvqa``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from rapidfuzz.distance import Levenshtein

ANLSProtocol = Literal["rrc", "lmms_eval", "stvqa", "mp_docvqa", "pix2struct"]
ANLS_PROTOCOLS: tuple[str, ...] = get_args(ANLSProtocol)


def _collapse(text: str) -> str:
    return " ".join(text.strip().lower().split())


def _distance(prediction: str, reference: str, protocol: ANLSProtocol) -> float | None:
    if protocol in ("rrc", "lmms_eval"):
        raw_length = max(len(prediction.upper()), len(reference.upper()))  # upper() may lengthen: "ß" -> "SS"
        return Levenshtein.distance(_collapse(prediction), _collapse(reference)) / raw_length if raw_length else 0.0
    if protocol != "pix2struct":
        prediction, reference = prediction.lower().strip(), reference.lower().strip()
    length = max(len(prediction), len(reference))
    return Levenshtein.distance(prediction, reference) / length if length else None


def anls_score(
    prediction: str, references: Sequence[str], protocol: ANLSProtocol = "rrc", threshold: float = 0.5
) -> float | None:
    """The similarity of one answer to the nearest reference, in 0..1; ``None`` where the protocol's code raises.

    Args:
        prediction: the model's answer; pass it stripped, or ``rrc`` will reward its blanks.
        references: the accepted answers, one or more.
        protocol: whose rules; see the module.
        threshold: similarities below it score 0.
    """
    if protocol == "lmms_eval":
        prediction = prediction.strip()
    if protocol == "mp_docvqa" and prediction.lower().strip() in ("", "none"):
        return 0.0
    distances = [_distance(prediction, reference, protocol) for reference in references]
    if None in distances:
        return None
    similarity = 1.0 - min(distance for distance in distances if distance is not None)
    passes = similarity > threshold if protocol == "pix2struct" else similarity >= threshold
    return similarity if passes else 0.0
