"""How like two texts are, as OCRBench v2 measures it: the mean of BLEU, METEOR, the F1 of the sets of words, and one
minus the normalised Levenshtein distance of letters. Words are separated by blanks, in Chinese by jieba."""

from __future__ import annotations

import re
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

from rapidfuzz.distance import Levenshtein

NEEDED = ("jieba", "lxml", "nltk")
"""Packages of ``dslight[ocrbench]``; lxml reads tables."""
_CHINESE = re.compile(r"[\u4e00-\u9fa5]")


@cache
def missing() -> str:
    """What has to be installed before texts and tables can be scored, "" for nothing."""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        return f"needs {', '.join(absent)}; pip install 'dslight[ocrbench]'"
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return "needs WordNet, for METEOR; python -m nltk.downloader wordnet"
    return ""


def text_similarity(prediction: str, reference: str) -> float:
    """The mean of the four, in 0..1.

    Args:
        prediction: what the model said.
        reference: the right text.
    """
    from nltk.translate.bleu_score import sentence_bleu
    from nltk.translate.meteor_score import meteor_score

    said, right = _words(prediction, reference)
    with warnings.catch_warnings():  # of texts that have no four words in common
        warnings.simplefilter("ignore")
        bleu = float(cast(Any, sentence_bleu([right], said)))
    both = len(set(said) & set(right))
    f1 = 2 * both / (len(set(said)) + len(set(right))) if both else 0.0
    longest = max(len(prediction), len(reference))
    near = 1 - Levenshtein.distance(prediction, reference) / longest if longest else 1.0
    return (bleu + float(meteor_score([right], said)) + f1 + near) / 4


def _words(prediction: str, reference: str) -> tuple[list[str], list[str]]:
    if not (_CHINESE.search(prediction) or _CHINESE.search(reference)):
        return prediction.split(), reference.split()
    import jieba

    jieba.setLogLevel("WARNING")
    return jieba.lcut(prediction), jieba.lcut(reference)
