"""What the files of a run hold, as far as a report reads them: one that holds something else is named, and its run is
left out. Other keys are let be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from dslight.files.typed import Count, loaded, parse_json, read_json_if_there

Name = str | int | float
"""Of a run, as its recipe has it, or of a question."""

Score = Annotated[float, Ge(0), Le(1)]
"""Of one answer."""


@dataclass(frozen=True)
class Source:
    """How a source was asked and judged."""

    headline: str | None = None
    questions: Count = 0


@dataclass(frozen=True)
class Scored:
    """``scores.json``, which ``dslight validate`` writes."""

    checkpoint: str | None = None
    scores: dict[str, float | None] | None = None
    sources: dict[str, Source] | None = None


@dataclass(frozen=True)
class Parameters:
    """How many there are."""

    total: float | None = None
    trainable: float | None = None


@dataclass(frozen=True)
class Environment:
    """``environment.json``."""

    versions: dict[str, str] | None = None
    git_commit: str | None = None


@dataclass(frozen=True)
class Finished(Scored, Environment):
    """``result.json``."""

    arm: Name | None = None
    name: Name | None = None
    seed: int | None = None
    recipe_hash: str | None = None
    headline: str | None = None
    accuracy: float | None = None
    parameters: Parameters | None = None
    visual_tokens: float | None = None
    stacked_tokens: float | None = None
    context_length: float | None = None
    step_seconds: float | None = None
    steps: float | None = None
    train_seconds: float | None = None


@dataclass(frozen=True)
class About:
    """``run.json``, which a sweep writes."""

    arm: Name | None = None
    index: Count = 0
    point: dict[str, Any] | None = None


@dataclass(frozen=True)
class Line:
    """A line of ``questions/SOURCE.jsonl``."""

    question_id: Name
    score: Score | None
    type: str | None = None
    key: str | None = None
    question: str | None = None
    prompt: str | None = None
    prediction: str | None = None
    unresolved: bool | None = None
    references: list[Name] | None = None


@dataclass(frozen=True)
class Norm:
    """What a stack adds, in ``diagnostics.json``."""

    part: str
    layer: int
    relative: float
    cosine: float


@dataclass(frozen=True)
class Way:
    """A way in which the model was run, in ``diagnostics.json``."""

    name: str
    title: str


@dataclass(frozen=True)
class HeatMap:
    """A picture of a question, or why there is none, in ``diagnostics.json``."""

    file: str | None
    note: str = ""
    question: str = ""
    references: list[str] = field(default_factory=list)
    answer: str = ""
    log_likelihood: float = float("nan")
    heat: Literal["gradient_x_input", "gradient", "attention"] = "attention"


@dataclass(frozen=True)
class Diagnosed:
    """``diagnostics.json``."""

    stacks: list[Any]
    parts: dict[str, dict[str, float]]
    comparisons: dict[str, list[Way]]
    norms: list[Norm] = field(default_factory=list)
    heat_maps: list[HeatMap] = field(default_factory=list)


@dataclass(frozen=True)
class DiagnosedQuestion:
    """A line of ``diagnostics/questions.jsonl``."""

    source: str
    number: Count
    scores: dict[str, Score | None]


def read(path: Path, form: type[Any]) -> dict[str, Any] | None:
    """The mapping in a file, which has ``form``; ``None`` where there is no file.

    Raises:
        FileError: naming file and key.
    """
    if read_json_if_there(path, form) is None:
        return None
    return loaded(path.read_bytes(), path)


def line(data: bytes, where: str) -> Line:
    """A line of answers.

    Raises:
        FileError: beginning with ``where``.
    """
    return parse_json(data, Line, where)
