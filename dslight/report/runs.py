"""Read run folders: what a report is made from.

A run is finished when its folder holds a ``result.json``. ``run.json`` (written by a sweep) says which arm and which
point of the grid it is; a run without it is an arm of its own name. Nothing here imports torch.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dslight.errors import UserError
from dslight.files.typed import FileError, understood
from dslight.recipe.ablation import Ablation, short_names
from dslight.recipe.compose import compose, differences, recipe_hash
from dslight.recipe.errors import RecipeError
from dslight.report import forms
from dslight.report.measured import Diagnostics, read_diagnostics
from dslight.report.questions import Answers, read_answers

_LONGEST = 100
"""Characters of an arm, or of a value of the grid, that a label holds as it is."""

_IMPOSSIBLE = 1e100
"""A number that is no measurement, and would overflow where it is added up."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        path: its folder.
        arm: the variant, or the recipe's name for a run outside a sweep.
        point: its values of the grid.
        seed: ``None`` when the run does not say.
        values: ``result.json`` as it stands.
        scores: of ``result.json`` and of ``scores.json``, which ``dslight validate`` writes; the newer file wins.
        sources: how each was asked and judged, from the same files.
        rescored: the checkpoint of a newer ``scores.json``.
        curves: per metric its (step, value) pairs, by step; of validations, those while training.
        validated_on: where a validation while training was on a slice of the questions, the key that says so.
        versions: of the libraries, as ``result.json`` or else ``environment.json`` has them.
        commit: of the git checkout, or ``None``.
        label: the arm, and the setting where the runs that were collected have several.
        diagnosed: what was measured in it.
        words: for the sections and the long texts in its point.
        read: the answers, once they are.
    """

    path: Path
    arm: str
    point: dict[str, Any]
    seed: int | None
    values: dict[str, Any]
    scores: dict[str, Any]
    sources: dict[str, dict[str, Any]]
    rescored: str | None
    curves: dict[str, list[tuple[int, float]]]
    validated_on: str
    versions: dict[str, str]
    commit: str | None
    label: str
    diagnosed: Diagnostics | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    read: list[dict[str, Answers]] = field(default_factory=list, repr=False)

    @property
    def headline(self) -> str:
        """The metric that ``accuracy`` is."""
        return str(self.values.get("headline") or "accuracy")

    @property
    def accuracy(self) -> float | None:
        """The headline score; ``None`` when the run has none."""
        return _finite(self.scores.get(self.headline, self.values.get("accuracy")))

    def judged_by(self, key: str) -> Result:
        """The run with another headline: a key of the scores, or of ``result.json``."""
        return replace(self, values={**self.values, "headline": key, "accuracy": self.number(key)})

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """The point without the seed: runs of one arm that share it differ by seed alone."""
        return tuple(
            (key.rpartition(".")[2], self.words.get(key, str(value)))
            for key, value in self.point.items()
            if key != "seed"
        )

    @property
    def answers(self) -> dict[str, Answers]:
        """The answers by source, read when they are first asked for."""
        if not self.read:
            self.read.append(read_answers(self.path))
        return self.read[0]

    @cached_property
    def headlines(self) -> dict[str, str]:
        """By source the key of the score that is its benchmark's number; the first one where the run does not say."""
        first: dict[str, str] = {}
        for key in [self.headline, *self.scores]:
            if key.startswith("val/") and key.count("/") > 1 and not key.endswith("/loss"):
                first.setdefault(key.split("/")[1], key)
        return first | {source: key for source, facts in self.sources.items() if (key := facts.get("headline"))}

    def number(self, key: str) -> float | None:
        """A number of ``result.json``, ``parameters.total`` for a nested one; ``None`` if missing or not finite."""
        value: Any = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return _finite(value)


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) < _IMPOSSIBLE else None


def collect(source: Ablation | Iterable[str | Path]) -> tuple[list[Result], list[str]]:
    """The finished runs of an ablation, or below some folders, in the ablation's order; and which are left
    out, and why.

    Raises:
        RecipeError: a folder that does not exist, or no run at all.
    """
    if isinstance(source, Ablation):
        expected = {run.run_dir: recipe_hash(run.recipe) for run in source.runs}
    else:
        expected = dict.fromkeys(_run_folders([Path(path) for path in source]))
    results, unfinished = [], []
    for folder, wanted in expected.items():
        try:
            with understood(folder):
                values = forms.read(folder / "result.json", forms.Finished)
                if values is None:
                    started = any((folder / name).exists() for name in ("run.json", "recipe.yaml"))
                    unfinished.append(f"{folder}: {'started, not finished' if started else 'not started'}")
                elif wanted is not None and values.get("recipe_hash") != wanted:
                    unfinished.append(f"{folder}: {_other(folder, source)}")
                else:
                    results.append(_result(folder, values))
        except (UserError, OSError) as error:
            said = str(error)
            unfinished.append(said if said.startswith(str(folder)) else f"{folder}: {said}")
    results = _with_words(results)
    if len({result.setting for result in results}) > 1:
        results = [replace(one, label=" ".join([one.label, *map("=".join, one.setting)])) for one in results]
    return results, unfinished


def _other(folder: Path, ablation: Ablation | Iterable[str | Path]) -> str:
    """Why a result is not the ablation's: what its recipe says otherwise."""
    assert isinstance(ablation, Ablation)
    saved = folder / "recipe.yaml"
    wanted = next(run.recipe for run in ablation.runs if run.run_dir == folder)
    other = differences(compose(saved), wanted) if saved.exists() else []
    said = f" ({', '.join(other[:3])}{', ...' if len(other) > 3 else ''})" if other else ""
    return f"its result is of another recipe{said}; a report takes the overrides of its sweep"


def _run_folders(roots: list[Path]) -> list[Path]:
    folders: dict[Path, int] = {}
    for root in roots:
        if not root.is_dir():
            raise RecipeError(f"{root}: no such folder of runs")
        for name in ("result.json", "run.json", "recipe.yaml"):
            for file in root.rglob(name):
                if file.parent not in folders:
                    folders[file.parent] = _index(file.parent)
    if not folders:
        raise RecipeError(f"{', '.join(map(str, roots))}: no runs in there (a run has a recipe.yaml and a result.json)")
    return sorted(folders, key=lambda folder: (str(folder.parent.parent), folders[folder], str(folder)))


def _index(folder: Path) -> int:
    try:
        return (forms.read(folder / "run.json", forms.About) or {}).get("index", 0)
    except FileError:  # said where the run is read
        return 0


def _with_words(results: list[Result]) -> list[Result]:
    """The runs with a word for each section (as of a class) or long text in their points, told from others."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in (pair for one in results for pair in one.point.items()):
        if isinstance(value, (dict, list)) or len(str(value)) > _LONGEST:
            sections.setdefault(key, {})[repr(value)] = value
    words = {key: dict(zip(found, short_names(list(found.values())), strict=True)) for key, found in sections.items()}
    return [
        replace(
            one,
            words={
                key: words[key][repr(value)] for key, value in one.point.items() if repr(value) in words.get(key, {})
            },
        )
        for one in results
    ]


def _result(folder: Path, values: dict[str, Any]) -> Result:
    about = forms.read(folder / "run.json", forms.About) or {}
    environment = forms.read(folder / "environment.json", forms.Environment) or {}
    point = about.get("point") or {}
    seed = values.get("seed", point.get("seed"))
    files = [folder / "result.json", folder / "scores.json"]
    found = sorted(filter(Path.exists, files), key=lambda file: file.stat().st_mtime_ns)
    recipe = compose(folder / "recipe.yaml") if (folder / "recipe.yaml").exists() else {}
    limit = (recipe.get("trainer") or {}).get("limit_val_batches")
    is_all = limit is None or (isinstance(limit, float) and limit == 1.0)
    arm = str(about.get("arm") or values.get("arm") or values.get("name") or recipe.get("name") or folder.name)
    both = [_whole(forms.read(file, forms.Scored) or {}, values.get("sources") or {}) for file in found]
    result = Result(
        path=folder,
        arm=arm,
        label=arm if len(arm) <= _LONGEST else short_names([arm])[0],
        point=point,
        seed=seed if isinstance(seed, int) else None,
        values=values,
        scores={key: score for one in both for key, score in (one.get("scores") or {}).items()},
        sources={source: facts for one in both for source, facts in (one.get("sources") or {}).items()},
        rescored=both[-1].get("checkpoint"),
        curves=_read_curves(folder / "metrics.csv"),
        validated_on="" if is_all else f"trainer.limit_val_batches: {limit}",
        versions=values.get("versions") or environment.get("versions") or {},
        commit=values.get("git_commit") or environment.get("git_commit"),
        diagnosed=read_diagnostics(folder),
    )
    assert result.answers is not None  # read now, so that a bad file leaves out this run alone
    return result


def _whole(scored: dict[str, Any], of: Mapping[str, Any]) -> dict[str, Any]:
    """What was scored, without sources of which ``of`` has answers to more questions: a slice replaces no score."""
    asked = {source: (of.get(source) or {}).get("questions", 0) for source in of}
    sources = scored.get("sources") or {}
    kept = {key: facts for key, facts in sources.items() if facts.get("questions", 0) >= asked.get(key, 0)}
    left_out = tuple(f"val/{source}/" for source in sources if source not in kept)
    scores = {key: score for key, score in (scored.get("scores") or {}).items() if not key.startswith(left_out)}
    return {**scored, "scores": scores, "sources": kept, **({} if kept or not left_out else {"checkpoint": None})}


def _read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Lightning's CSV log: sparse rows; where a step was logged twice (a resumed run) the later row holds. The last
    validation is the one after training, whose scores are those of ``result.json``: no point of a curve.
    """
    if not path.exists():
        return {}
    if not path.is_file():
        raise FileError(f"{path}: is no file")
    logged: dict[str, list[tuple[int, float]]] = {}
    with understood(path), path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, strict=True):
            for name, text in row.items():
                if name not in (None, "step", "epoch") and text and row.get("step"):
                    logged.setdefault(name, []).append((int(float(row["step"])), float(text)))
    curves = {name: points[:-1] if name.startswith("val/") else points for name, points in logged.items()}
    return {name: sorted(dict(points).items()) for name, points in curves.items() if points}
