"""The per-question files of a run, ``questions/SOURCE.jsonl``: what was asked, answered and scored, a line each.

Only ids, types and scores are kept in memory; a line is read again when a page shows it. Runs are compared on the
questions that all of them have a score for, found by id, so it does not matter whether one of them answered a slice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dslight.files.typed import FileError
from dslight.report import forms

FOLDER = "questions"


@dataclass(frozen=True)
class Answers:
    """What a run answered to the questions of a source.

    Attributes:
        path: the file.
        ids: by question; the second one of the same id is called ``ID#2``.
        scores: float64 ``[Q]`` in 0..1, nan for an answer that was not scored (hidden, or judged elsewhere).
        types: by question, "" for none.
        places: int64 ``[Q]``, where the lines begin.
        keys: by question, of the record that it stands in with its picture; "" if the line does not say.
    """

    path: Path
    ids: tuple[str, ...]
    scores: NDArray[np.float64]
    types: tuple[str, ...]
    places: NDArray[np.int64] = field(repr=False)
    keys: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean score of the answers that were scored; nan if none was."""
        scored = self.scores[np.isfinite(self.scores)]
        return float(scored.mean()) if len(scored) else float("nan")

    def clusters(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """``[Q]``: of some questions, which are about the same picture, numbered from 0."""
        key_of = dict(zip(self.ids, self.keys, strict=True)) if self.keys else {}
        numbers: dict[tuple[bool, str], int] = {}
        keys = [(True, key) if (key := key_of.get(one)) else (False, one) for one in ids]
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)

    def lines(self, ids: Sequence[str]) -> list[forms.Line]:
        """The lines of some questions."""
        place_of = dict(zip(self.ids, self.places.tolist(), strict=True))
        with self.path.open("rb") as file:
            found = []
            for one in ids:
                file.seek(place_of[one])
                found.append(forms.line(file.readline(), f"{self.path}: {one}"))
        return found


def read_answers(run: Path) -> dict[str, Answers]:
    """The answers of a run by source; empty for a run that wrote none.

    Raises:
        FileError: naming the file and line that is not as it should be.
    """
    return {path.stem: _read(path) for path in sorted((run / FOLDER).glob("*.jsonl"))}


def aligned(runs: Sequence[Answers]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Ids ``[Q]`` and scores ``[R, Q]`` of the questions that every run has a score for, in the first one's order."""
    first = runs[0]
    if all(run.ids == first.ids for run in runs):
        ids, scores = first.ids, np.stack([run.scores for run in runs])
    else:
        numbers = [{one: i for i, one in enumerate(run.ids)} for run in runs]
        ids = tuple(one for one in first.ids if all(one in number for number in numbers))
        rows = [run.scores[[number[one] for one in ids]] for run, number in zip(runs, numbers, strict=True)]
        scores = np.stack(rows) if ids else np.empty((len(runs), 0))
    scored = np.isfinite(scores).all(axis=0)
    return (ids if scored.all() else tuple(np.array(ids, dtype=object)[scored])), scores[:, scored]


def _read(path: Path) -> Answers:
    if not path.is_file():
        raise FileError(f"{path}: is no file")
    seen: dict[str, int] = {}
    ids, scores, types, places, keys, place = [], [], [], [], [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                entry = forms.line(line, f"{path}:{number}")
                one = str(entry.question_id)
                scores.append(float("nan") if entry.score is None else entry.score)
                seen[one] = seen.get(one, 0) + 1
                # the runs of a report have the same ids, so that they are kept once
                ids.append(sys.intern(one if seen[one] == 1 else f"{one}#{seen[one]}"))
                types.append(sys.intern(entry.type or ""))
                places.append(place)
                keys.append(sys.intern(entry.key or ""))
            place += len(line)
    numbers = np.array(places, np.int64)
    return Answers(path, tuple(ids), np.array(scores, np.float64), tuple(types), numbers, tuple(keys))
