"""What diagnostics have left in a run: ``diagnostics.json`` and ``diagnostics/questions.jsonl``, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dslight.files.typed import FileError, parse_json, read_json_if_there
from dslight.names import UnsafeNameError, below
from dslight.report import forms


@dataclass(frozen=True)
class Diagnostics:
    """Of a run.

    Attributes:
        found: ``diagnostics.json``, with all keys of its form.
        scores: by source and by way to run the model, the scores by the number of the question.
    """

    found: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Mapping[int, float]]]


def read_diagnostics(run: Path) -> Diagnostics | None:
    """What was measured in a run; ``None``: nothing.

    Raises:
        FileError: naming file and key.
    """
    made = read_json_if_there(run / "diagnostics.json", forms.Diagnosed)
    if made is None:
        return None
    found = asdict(made)
    try:
        for one in made.heat_maps:
            if one.file:
                below(run / "diagnostics", one.file, f"{run / 'diagnostics.json'}: heat_maps: the name of a picture")
    except UnsafeNameError as error:
        raise FileError(str(error)) from error
    scores: dict[str, dict[str, dict[int, float]]] = {source: {} for source in found["comparisons"]}
    file = run / "diagnostics" / "questions.jsonl"
    if any(found["comparisons"].values()) and not file.is_file():
        raise FileError(f"{file}: missing, though diagnostics.json compares its scores")
    lines = file.read_bytes().splitlines() if file.is_file() else []
    for number, line in enumerate(lines, 1):
        row = parse_json(line, forms.DiagnosedQuestion, f"{file}:{number}")
        for name, score in row.scores.items():
            if score is not None:
                scores.setdefault(row.source, {}).setdefault(name, {})[row.number] = score
    for source, ways in found["comparisons"].items():
        if ways and not scores[source].get("all"):
            raise FileError(f"{file}: has no scores of {source} with all stacks, which the others are compared with")
    return Diagnostics(found, scores)
