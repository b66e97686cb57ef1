"""Compose a recipe: its ``bases``, then the file itself, then ``key=value`` from the command line.

    bases: [parts/siglip.yaml, parts/vicuna.yaml]      # files relative to this one, in this order; later wins
    model:
      stacking: {init_args: {crops: 4}}

OmegaConf reads the YAML and resolves ``${...}``, once everything is merged. What is decided here, because a plain merge
does otherwise:

- Classes may be named in short (:mod:`dslight.recipe.forms`).
- A node that names another ``class_path`` than the node it lands on replaces it: no argument of the old class stays.
- A mapping whose keys are all numbers, landing on a list, changes those items; so does ``data.sources.0.weight=2``.
- A list of names landing on ``data.val`` keeps those of its sources, in that order: ``data.val=[textvqa,pope]``.
- ``model.stacking: null`` leaves out what a base stacks, and keeps what it lays into the sequence.
- A file that is reached twice through ``bases`` counts once, where it is first reached: in ``[a, b]``, both based on
  ``common``, what ``a`` changes is not undone by ``b``'s copy of ``common``.
- Every value remembers the file that set it (``compose_with_sources``), for the messages of whoever checks the recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dslight.recipe.errors import RecipeError
from dslight.recipe.expansion import check_aliases, check_expansion, read
from dslight.recipe.forms import Recipe, renamed, written_out
from dslight.recipe.no_stack import KEY, with_null, without_stacks

COMMAND_LINE = "command line"
HOW_IT_RUNS = re.compile(
    r"(run_dir|hub_push|checkpoint_(keep|holds)|data\.(num_workers|worker_\w+|micro_batch_size|keep_features)|trainer\.(devices|num_nodes|accelerator|strategy|logger|enable_\w+))(\.|$)"
)
"""Keys that say where, on what and in which portions a recipe is run, not what it computes: a run may be continued
with others.
"""
_SELECTABLE = "data.val"
"""A mapping of which a list keeps some entries."""
_DEEPEST = 50
"""Levels of a file: whoever walks through a recipe after this may do so by recursion."""
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")


@dataclass(frozen=True)
class Layer:
    """Values that are laid over what came before.

    Attributes:
        source: the file, or ``"command line"``, for messages.
        values: a nested mapping, interpolations unresolved, classes in full.
        short: the keys under which a class was named in short, and how.
    """

    source: str
    values: Mapping[str, Any]
    short: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", written_out(self.values, self.short))


def compose(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe in ``path`` with its bases and ``overrides`` (``key.path=value``, YAML values), in plain containers.

    A key that the recipe does not have may be set here: which keys exist is for whoever builds from the recipe to say.

    Raises:
        RecipeError: a file that is missing, is not YAML or not a mapping; bases in a circle; an override that is not
            ``key=value``; an interpolation to nothing; a value left at ``???``.
    """
    return compose_with_sources(path, overrides)[0]


def compose_with_sources(path: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """``compose``, and for every leaf the file that set it, or ``"command line"`` (look up with ``source_of``)."""
    files = read_layers(Path(path))
    layers = [*files, *map(parse_override, overrides)]
    recipe, sources = fold(layers)
    made = remembering(resolve(recipe, lambda: sources), layers)
    bases = {layer.source for layer in files[:-1]}
    found = {name: source_of(sources, f"data.val.{name}.root") for name in _val_sources(made)}
    made.inherited = {name: source for name, source in found.items() if source in bases}
    return made, sources


def _val_sources(recipe: Mapping[str, Any]) -> list[str]:
    data = recipe.get("data")
    val = data.get("val") if isinstance(data, Mapping) else None
    return list(map(str, val)) if isinstance(val, Mapping) else []


def remembering(recipe: Mapping[str, Any], layers: Sequence[Layer]) -> Recipe:
    """A composed recipe that knows which of its classes the layers named in short."""
    made = Recipe(with_null(recipe))
    if short := {key: name for layer in layers for key, name in layer.short.items()}:
        leaves = flatten(made)
        made.short = {key: name for key, name in short.items() if str(leaves.get(f"{key}.class_path")).endswith(name)}
    return made


def source_of(sources: Mapping[str, str], key: str) -> str | None:
    """Where ``key`` was set: its own source, else its nearest parent's, else that of the first value inside it."""
    parent = key
    while parent:
        if parent in sources:
            return sources[parent]
        parent = parent.rpartition(".")[0]
    return next((source for path, source in sources.items() if path.startswith(f"{key}.")), None)


def read_layers(path: Path, asked_by: str = "") -> list[Layer]:
    """The file at ``path`` and all its bases, those that give way first. ``asked_by``: who named it, for messages."""
    layers: dict[Path, Layer] = {}

    def visit(file: Path, asked_by: str, chain: tuple[Path, ...]) -> None:
        if file in chain:
            circle = " -> ".join(map(str, (*chain[chain.index(file) :], file)))
            raise RecipeError(f"{asked_by}: bases go in a circle, {circle}; take one of them out")
        values = _load(file, asked_by, chain[-1].parent if chain else None)
        for base in _bases(values.pop("bases", None), f"{file}: bases"):
            visit(Path(os.path.normpath(file.parent / base)), f"{file}: bases", (*chain, file))
        layers.setdefault(file.resolve(), Layer(str(file), values))

    visit(Path(os.path.normpath(path)), asked_by, ())
    return list(layers.values())


def parse_override(text: str) -> Layer:
    """``key.path=value`` as a layer."""
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"{text}: not an override; write key=value, as in trainer.max_steps=100")
    if not _KEY.fullmatch(key):
        hint = key.lstrip("-+~")
        hint = f"write {hint}={value}" if _KEY.fullmatch(hint) else "write names with dots between them"
        raise RecipeError(f"{text}: {key!r} is not a key; {hint}")
    if key.split(".")[0] == "bases":
        raise RecipeError(f"{text}: bases cannot be set from the command line; write a recipe with these bases")
    try:
        check_aliases(value, key)
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
        if _is_deep(parsed):
            raise RecipeError(f"{key}: the value is nested more than {_DEEPEST} levels deep")
    except RecipeError:
        raise
    except RecursionError:
        raise RecipeError(f"{key}: the value is nested too deeply") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise RecipeError(f"{key}: the value {value!r} is not YAML, {_problem(error)}") from error
    assert isinstance(parsed, dict)
    return Layer(COMMAND_LINE, nest(key, parsed["value"]))


def fold(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """The merged, unresolved recipe, and the source of each of its leaves."""
    recipe: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        recipe = merge(recipe, layer.values)
        set_here = flatten(layer.values)
        sources = {
            path: layer.source if path in set_here else sources.get(path, layer.source) for path in flatten(recipe)
        }
    return recipe, sources


def merged(layers: Sequence[Layer], onto: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """As :func:`fold`, without the sources; laid over ``onto``, which is not changed."""
    recipe: dict[str, Any] = dict(onto or {})
    for layer in layers:
        recipe = merge(recipe, layer.values)
    return recipe


def merge(old: Any, new: Any, at: str = "") -> Any:
    """``new`` laid over ``old``, neither of them changed. ``at`` is their key path, for messages."""
    if isinstance(old, list) and isinstance(new, Mapping) and new and all(str(key).isdigit() for key in new):
        items = list(old)
        for key, value in new.items():
            if int(key) >= len(old):
                raise RecipeError(
                    f"{at}.{key}: the list has {len(old)} items, counted from 0; set {at} as a whole to make it longer"
                )
            items[int(key)] = merge(items[int(key)], value, f"{at}.{key}")
        return items
    if at == _SELECTABLE and isinstance(old, Mapping) and isinstance(new, list):
        return _selected(old, new, at)
    if at == KEY and new is None and isinstance(old, Mapping) and "class_path" in old:
        return without_stacks(old)
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    was, named = old.get("class_path"), new.get("class_path")
    if was is not None and named is not None and was != named:
        return dict(new)
    new = renamed(new, named or was, at)
    path = f"{at}." if at else ""
    return {
        **old,
        **{key: merge(old[key], value, f"{path}{key}") if key in old else value for key, value in new.items()},
    }


def _selected(old: Mapping[str, Any], names: list[Any], at: str) -> dict[str, Any]:
    for name in names:
        if name not in list(old):
            raise RecipeError(
                f"{at}: {name!r} is not one of the recipe's sources; there are {', '.join(old) or 'none'}"
            )
    return {name: old[name] for name in names}


def resolve(recipe: Mapping[str, Any], sources: Callable[[], Mapping[str, str]], only: str = "") -> dict[str, Any]:
    """``recipe``, or ``only`` one top-level key of it, with every ``${...}`` replaced by what it names; ``sources`` are
    asked for where that is not possible.
    """
    node = recipe[only] if only else recipe
    if not _asks(node):
        return _copied(node)
    check_expansion(recipe)
    try:
        root = OmegaConf.create(dict(recipe))
        resolved = OmegaConf.to_container(root[only] if only else root, resolve=True, throw_on_missing=True)
    except RecursionError:
        raise RecipeError("${...}: names what names what names ..., too many times to be followed") from None
    except OmegaConfBaseException as error:
        key = re.sub(r"\[(\d+)\]", r".\1", str(error.full_key or ""))
        where = source_of(sources(), key)
        if isinstance(error, MissingMandatoryValue):
            what = "has no value (???); set it"
        else:
            what = f"cannot resolve {_leaf(recipe, key)!r}, {_problem(error)}"
        raise RecipeError(f"{key}: {what}" + (f"; it comes from {where}" if where else "")) from error
    assert isinstance(resolved, dict)
    return resolved  # type: ignore[return-value]


def _asks(node: Any) -> bool:
    """Whether a string somewhere in a node is not what it says: ``${...}``, or ``???``."""
    if isinstance(node, str):
        return "${" in node or node == "???"
    values = node.values() if isinstance(node, Mapping) else node if isinstance(node, (list, tuple)) else ()
    return any(map(_asks, values))


def _copied(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _copied(value) for key, value in node.items()}
    return [_copied(value) for value in node] if isinstance(node, (list, tuple)) else node


def to_yaml(recipe: Mapping[str, Any]) -> str:
    """YAML that ``compose`` reads back as the same recipe (a literal ``${`` is escaped)."""

    def escape(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: escape(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return [escape(value) for value in node]
        return node.replace("${", r"\${") if isinstance(node, str) else node

    return OmegaConf.to_yaml(OmegaConf.create(escape(recipe)))


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that two recipes share exactly when ``differences`` finds none."""
    return hashlib.sha256(json.dumps(_identity(recipe), sort_keys=True).encode()).hexdigest()[:16]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """``key: old -> new`` for every leaf in which ``b`` differs from ``a``; how it is run (``HOW_IT_RUNS``) is left
    out.
    """
    old, new = _identity(a), _identity(b)
    keys = [*old, *(key for key in new if key not in old)]
    return [
        f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def flatten(node: Any, at: str = "") -> dict[str, Any]:
    """The leaves by their dotted key path; an empty mapping or list is a leaf."""
    leaves: dict[str, Any] = {}

    def visit(node: Any, at: str) -> None:
        if isinstance(node, (Mapping, list, tuple)) and node:
            for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
                visit(value, f"{at}.{key}" if at else str(key))
        elif at:
            leaves[at] = node

    visit(node, at)
    return leaves


def nest(key: str, value: Any) -> dict[str, Any]:
    """``a.b, value`` as ``{a: {b: value}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


_encoded = json.JSONEncoder(default=str).encode


def _identity(recipe: Mapping[str, Any]) -> dict[str, str]:
    return {key: _encoded(value) for key, value in flatten(recipe).items() if not HOW_IT_RUNS.match(key)}


def _leaf(recipe: Mapping[str, Any], key: str) -> Any:
    return flatten(recipe).get(key, key)


def _bases(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(base, str) for base in value):
        raise RecipeError(f"{where}: must be a list of files, not {value!r}; write bases: [a.yaml, b.yaml]")
    return value


def _load(path: Path, asked_by: str, beside: Path | None = None) -> dict[str, Any]:
    """The values of a file; ``beside``: the folder of the file that names it."""
    if not os.path.isfile(path):  # pathlib raises for a name that is too long
        what = "is a folder, not a recipe file" if os.path.isdir(path) else "no such recipe file"
        for kind, name in (("a run", "recipe.yaml"), ("an export", "dslight.yaml")):
            what += f"; {kind}'s is {path / name}" if os.path.isfile(path / name) else ""
        here = ""
        if beside is not None and os.path.isfile(asked := os.path.relpath(path, beside)):
            here = f"; files under bases are sought from the file that names them: {os.path.relpath(asked, beside)}"
        raise RecipeError(f"{path}: {what}" + (f", named in {asked_by}" if asked_by else "") + here)
    try:
        node = check_aliases(read(path), str(path))
        values = OmegaConf.to_container(OmegaConf.load(path)) if node is None or node.id == "mapping" else None
        deep = values is not None and _is_deep(values)
    except RecursionError:
        raise RecipeError(f"{path}: not YAML that can be read (nested too deeply)") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        hint = "; between { } or [ ] quote '${...}'" if "${" in (*read(path).splitlines(), "")[line] else ""
        raise RecipeError(f"{path}:{line + 1}: not YAML, {_problem(error)}{hint}") from error
    except OmegaConfBaseException as error:
        raise RecipeError(
            f"{error.full_key}: cannot read the interpolation, {_problem(error)}; it comes from {path}"
        ) from error
    except RecipeError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: no UTF-8, a number of many digits
        raise RecipeError(f"{path}: not YAML, {_problem(error)}") from error
    if deep:
        raise RecipeError(f"{path}: nested more than {_DEEPEST} levels deep")
    if not isinstance(values, dict):
        kind = "a list" if node is not None and node.id == "sequence" else "a single value"
        raise RecipeError(f"{path}: a recipe is a mapping (key: value), this file holds {kind}")
    for key, value in flatten(values).items():
        if isinstance(value, str) and "\0" in value:
            raise RecipeError(f"{path}: {key}: holds a null character, which ends the name of a file")
    return values  # type: ignore[return-value]


def _is_deep(node: Any, left: int = _DEEPEST) -> bool:
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    return left < 0 or any(_is_deep(one, left - 1) for one in inner)


def _problem(error: Exception) -> str:
    """The first line of a message of YAML or OmegaConf, without its "while parsing" preamble."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return error.problem
    return str(error).splitlines()[0] if str(error) else type(error).__name__
