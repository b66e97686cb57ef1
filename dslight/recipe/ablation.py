"""Expand an ablation file into the runs of a table: named variants (the arms) times a grid (seeds and other values).

    bases: [../quickstart.yaml]
    name: deepstack-effect
    variants:
      low: {}                                    # the recipe as it is
      deepstack:
        bases: [../parts/deepstack.yaml]         # files relative to this one
        model: {stacking: {init_args: {crops: 4}}}
        cost: 2                                  # a hint: dearer runs start first
      control: {grid: {seed: [0]}, data: {repeat_low: true}}   # its own grid where it differs
    grid:
      seed: [0, 1]
      stage.train.projector.lr: [0.002, 0.004]
    report: {title: ..., baseline: low, claims: [...]}      # see dslight.recipe.report_section

Decided here: a run is, later wins, the file's recipe < the variant's bases < the variant < the point of the grid < the
command line. So ``trainer.max_steps=2`` shortens every run, whatever its variant says. Overrides of ``variants.``,
``grid.`` and ``report.`` change the ablation itself. The runs are in the order of the file, the last key of the grid
fastest. Two runs with the same recipe are refused: one of the variants changes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite, prod
from pathlib import Path
from typing import Any

from dslight.limits import at_most
from dslight.recipe.compose import (
    COMMAND_LINE,
    Layer,
    flatten,
    fold,
    merged,
    nest,
    parse_override,
    read_layers,
    recipe_hash,
    remembering,
    resolve,
)
from dslight.recipe.errors import RecipeError
from dslight.recipe.report_section import ReportSection, report_section

ABLATION_KEYS = ("variants", "grid", "report")
VARIANT_KEYS = ("bases", "grid", "cost")
"""Keys of a variant that are about the ablation and are not laid over the recipe."""

_FILE_NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Run:
    """One training run of an ablation.

    Attributes:
        index: position in the ablation, from 0.
        arm: the variant's name.
        point: the run's values of the grid, by dotted key.
        recipe: resolved, ready to build from; its ``name`` is ``<ablation>/<arm>``, its ``run_dir`` is ``run_dir``.
        run_dir: ``<run_dir of the ablation>/<arm>/<key>=<value>,...``
        layers: what the recipe was folded from.
        cost: how dear the run is in comparison with the others; only the order of starting depends on it.
    """

    index: int
    arm: str
    point: dict[str, Any]
    recipe: dict[str, Any]
    run_dir: Path
    layers: tuple[Layer, ...] = field(repr=False)
    cost: float = 1.0

    @cached_property
    def sources(self) -> dict[str, str]:
        """What set each leaf of the recipe, for ``source_of``."""
        return fold(self.layers)[1]


@dataclass(frozen=True)
class Ablation:
    """All runs of an ablation file, and what its report should say.

    Attributes:
        name: the file's ``name``, else its stem.
        path: the ablation file.
        overrides: the command line that went into it.
        runs: in the order of the file.
        run_dir: the folder that holds the runs: the file's ``run_dir``, else ``runs/<name>``.
        report: what the file says under ``report``, checked.
    """

    name: str
    path: Path
    overrides: tuple[str, ...]
    runs: list[Run]
    run_dir: Path
    report: ReportSection


def expand(path: str | Path, overrides: Sequence[str] = ()) -> Ablation:
    """Read an ablation file and compose the recipe of each of its runs.

    Raises:
        RecipeError: what ``compose`` raises, with the variant's name; variants, a grid or a report of the wrong form; a
            key of the grid that a variant or the command line sets; two equal runs.
    """
    path = Path(path)
    from_files, from_command_line = read_layers(path), [parse_override(text) for text in overrides]
    document, sources = fold([*from_files, *from_command_line])
    variants = _mapping(document.get("variants"), "variants")
    grid, report = (
        resolve(document, lambda: sources, only=key) if _mapping(document.get(key), key) else {}
        for key in ("grid", "report")
    )
    grid = _grid(grid, "grid")
    if not variants and not grid:
        raise RecipeError(f"{path}: neither variants nor a grid; a single run starts from a plain recipe")
    name = str(document.get("name") or path.stem)
    folder = document.get("run_dir") or f"runs/{name}"
    if not isinstance(folder, str):
        raise RecipeError(f"{path}: run_dir: must be the path of a folder, not {folder!r}")
    folder = Path(folder)
    base, command_line = map(_recipe_layers, (from_files, from_command_line))

    typed = [leaf for layer in command_line for leaf in flatten(layer.values)]
    runs: list[Run] = []
    seen: dict[str, str] = {}
    for arm, variant in (variants or {name: None}).items():
        arm, where = str(arm), f"variants.{arm}"
        if not _FILE_NAME.fullmatch(arm):
            raise RecipeError(f"{where}: a variant's name becomes a folder; use letters, digits and . _ - only")
        variant = _mapping(variant, where)
        cost = variant.get("cost", 1.0)
        if not isinstance(cost, (int, float)) or isinstance(cost, bool) or not isfinite(cost):
            raise RecipeError(f"{where}.cost: must be a number, not {cost!r}")
        own = {key: value for key, value in variant.items() if key not in VARIANT_KEYS}
        layers = [*base, *_variant_bases(variant, where, sources), Layer(f"{path} ({where})", own)]
        before, written = merged(layers), flatten(layers[-1].values)
        here_grid = grid | _grid(variant.get("grid"), f"{where}.grid")
        names = {key: short_names(values) for key, values in here_grid.items()}
        for at, point in _points(here_grid, f"{where}: grid"):
            at_most("runs", len(runs) + 1, f"{path}: {len(runs) + 1:,} runs or more", RecipeError)
            _refuse_keys_set_twice(point, written, typed, where)
            here = [Layer(f"{path} (grid)", nest(key, value)) for key, value in point.items()]
            at_point = merged(here, before)
            run_dir = folder / arm / _folder_name({key: names[key][i] for key, i in at.items()})
            title = f"{where} at {point}" if point else where
            same_recipe = recipe_hash(at_point)
            _refuse_twins(seen, same_recipe, title, "are the same recipe; one of them changes nothing")
            _refuse_twins(seen, str(run_dir).casefold(), title, f"would both be written to {run_dir}; rename one")
            identity = Layer(str(path), {"name": f"{name}/{arm}", "run_dir": str(run_dir)})
            last = [*command_line, identity]
            run_layers = (*layers, *here, *last)
            try:
                recipe = resolve(merged(last, at_point), lambda layers=run_layers: fold(layers)[1])
                recipe = remembering(recipe, run_layers)
            except RecipeError as error:
                raise RecipeError(f"{where}: {error}") from error
            if (repository := recipe.get("hub_push")) is not None:
                _refuse_twins(seen, f"hub {repository}", title, f"would take each other's place in {repository}")
            runs.append(Run(len(runs), arm, point, recipe, run_dir, run_layers, float(cost)))
    said = report_section(report, [str(arm) for arm in variants or [name]])
    return Ablation(name, path, tuple(overrides), runs, folder, said)


def _recipe_layers(layers: Sequence[Layer]) -> list[Layer]:
    """The layers without the keys that are about the ablation."""
    kept = [replace(at, values={k: v for k, v in at.values.items() if k not in ABLATION_KEYS}) for at in layers]
    return [layer for layer in kept if layer.values]


def _variant_bases(variant: Mapping[str, Any], where: str, sources: Mapping[str, str]) -> list[Layer]:
    bases = variant.get("bases") or []
    if not isinstance(bases, list):
        raise RecipeError(f"{where}.bases: must be a list of files, not {bases!r}")
    layers: list[Layer] = []
    for i, base in enumerate(bases):
        asked_by = sources[f"{where}.bases.{i}"]
        beside = Path() if asked_by == COMMAND_LINE else Path(asked_by).parent
        layers += read_layers(beside / str(base), f"{asked_by}: {where}.bases")
    return _recipe_layers(layers)


def _grid(node: Any, at: str) -> dict[str, list[Any]]:
    """Dotted key -> its values, whether the keys were written dotted or nested (as the command line does)."""
    grid: dict[str, list[Any]] = {}
    for key, values in _mapping(node, at).items():
        if not all(str(key).split(".")):
            raise RecipeError(f"{at}: {key!r} is not a key; write names with dots between them")
        if isinstance(values, dict):
            grid |= {f"{key}.{inner}": value for inner, value in _grid(values, f"{at}.{key}").items()}
        elif isinstance(values, list) and values:
            grid[str(key)] = values
        else:
            raise RecipeError(f"{at}.{key}: must be a list of at least one value, not {values!r}")
    return grid


def _points(grid: Mapping[str, list[Any]], where: str) -> list[tuple[dict[str, int], dict[str, Any]]]:
    """All points, as places in the lists and as values."""
    count = prod(map(len, grid.values()))
    at_most("runs", count, f"{where}: {' x '.join(str(len(values)) for values in grid.values())} runs", RecipeError)
    places = itertools.product(*(range(len(values)) for values in grid.values()))
    found = [dict(zip(grid, place, strict=True)) for place in places]
    return [(at, {key: grid[key][i] for key, i in at.items()}) for at in found]


def _refuse_keys_set_twice(point: Mapping[str, Any], written: Iterable[str], typed: Iterable[str], where: str) -> None:
    for key in point:
        (*_, full) = flatten(Layer("", nest(key, None)).values)  # of a class in short its path, then the argument
        if _touches(full, written):
            raise RecipeError(f"{where}: sets {key}, which the grid sets too; give the variant its own {where}.grid")
        if _touches(full, typed):
            raise RecipeError(f"{key}: set on the command line, but it is a key of the grid; write 'grid.{key}=[...]'")


def _touches(key: str, leaves: Iterable[str]) -> bool:
    return any(f"{leaf}.".startswith(f"{key}.") or f"{key}.".startswith(f"{leaf}.") for leaf in leaves)


def _refuse_twins(seen: dict[str, str], key: str, title: str, what: str) -> None:
    if key in seen:
        raise RecipeError(f"{title}: this run and {seen[key]} {what}")
    seen[key] = title


def short_names(values: Sequence[Any]) -> list[str]:
    """A word for each of several values, which may be sections of classes: names of files, alike for equal values only,
    also where no upper is told from lower case.
    """
    plain, kept = [_file_name(value) for value in values], list(map(repr, values))
    called: dict[str, set[str]] = {}
    for name, text in zip(plain, kept, strict=True):
        called.setdefault(name.casefold(), set()).add(text)
    return [
        f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:7]}".strip("-")
        if len(called[name.casefold()]) > 1
        else name
        for name, text in zip(plain, kept, strict=True)
    ]


def _folder_name(point: Mapping[str, str]) -> str:
    """``lr=0.002,seed=0``: the last word of each key where that tells the keys apart, else the whole key."""
    words = [key.rpartition(".")[2] for key in point]
    keys = words if len(set(words)) == len(words) else list(point)
    return ",".join(f"{key}={name}" for key, name in zip(keys, point.values(), strict=True))


def _file_name(value: Any) -> str:
    text = (
        str(value["class_path"]).rpartition(".")[2]
        if isinstance(value, Mapping) and "class_path" in value
        else str(value)
    )
    text = re.sub(r"[^\w.+-]+", "-", text).strip("-")
    return text if len(text) <= 40 else f"{text[:32]}-{hashlib.sha256(text.encode()).hexdigest()[:7]}"


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RecipeError(f"{key}: must be a mapping (key: value), not {value!r}")
    return value
