"""A row of the table of benchmarks, and the words that prompts end with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dslight.metrics.base import TextMetric

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
GROUPS = 10_000
"""Above the number of every base question that is asked with its options rotated (MMBench has about 3,000)."""
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


@dataclass(frozen=True)
class Benchmark:
    """One row of the table.

    Attributes:
        metric: makes the metric; its protocol and types are bound.
        suffix: what the prompt ends with, after the question (and its options).
        max_new_tokens: the longest answer.
        submission: the format of ``dslight.metrics.submission`` for a server, a judge, or the authors' own script.
        hidden: splits of which only a server knows the answers.
        judge: the language model that judges for the numbers in papers, where one does; without one, nothing or less is
            scored here.

    Example:
        >>> dslight.metrics.BENCHMARKS["docvqa"].max_new_tokens
        32
        >>> from dslight.metrics import ExactMatch
        >>> dslight.metrics.Benchmark(ExactMatch, suffix="\\nAnswer briefly.").build().headline
        'exact_match'
    """

    metric: Callable[..., TextMetric]
    suffix: str = SHORT
    max_new_tokens: int = 16
    submission: str | None = None
    hidden: str = ""
    judge: str = ""

    def build(self, **overrides: Any) -> TextMetric:
        """A fresh metric; ``overrides`` replace its arguments (``protocol``, ``types``, ...)."""
        return self.metric(**overrides)
