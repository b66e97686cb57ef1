"""A question of the validation loop: a word that data, model and metrics share, and that needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(unsafe_hash=True)  # not frozen: under `precision: bf16-true` Lightning refuses batches that hold such
class Question:
    """What the validation loop asks and how the answer is judged.

    Attributes:
        question_id: unique within its benchmark.
        text: the question as asked, without the chat template.
        references: the human answers, one or more (VQAv2 has ten); none where the set's authors keep them: such a
            question is answered, and not scored.
        type: key of the per-type breakdown, ``""`` for none.
        valid: false for a repeat that pads the last batch of a rank; metrics leave it out.
        key: the sample's key in its shard.
        suffix: what the prompt ends with, where this question has its own; ``None``: that of its benchmark.
        number: its place among the questions of its source, from 0.
        extra: what else its authors say about it (``options``, ``subject``, ...), as the shard has it.

    Example:
        >>> question = dslight.Question("7", "What is written?", references=("stop", "STOP"))
        >>> dslight.metrics.VQAAccuracy().update_questions(["stop"], [question])
        [Verdict(score=1.0, unresolved=False, unfinished=False)]
    """

    question_id: str
    text: str
    references: tuple[str, ...]
    type: str = ""
    valid: bool = True
    key: str = ""
    suffix: str | None = None
    number: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def official_id(self) -> Any:
        """The id as the authors' files have it, a number or a text: what their server reads."""
        return self.extra.get("official_id", self.question_id)
