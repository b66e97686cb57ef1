"""Names in a recipe that no class has, found by reading sources: a slip is refused before torch is imported.

What :mod:`dslight.recipe.schema` says of such a name, from signatures, is said here from the text of the modules, in
the same words and in a fraction of a second. What cannot be told so (``**kwargs``, a base class made by a function, a
package that makes its names) is left to the signatures.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dslight.recipe.classes import NoClassError, look, spec_of
from dslight.recipe.errors import RecipeError
from dslight.recipe.explain import listing, words
from dslight.recipe.forms import WHOLE, as_written
from dslight.texts import closest

KEYS = {
    "name": str,
    "seed": int,
    "run_dir": str,
    "model": dict,
    "component": dict,
    "objective": dict,
    "weights": dict,
    "stage": dict,
    "data": dict,
    "trainer": dict,
    "checkpoint_every": int,
    "checkpoint_keep": int,
    "checkpoint_holds": str,
    "validate_every": int,
    "diagnostics": dict,
    "hub_push": str,
}
"""The top level of a recipe. ``model`` describes a VLM, ``component`` a part that is fitted alone with an
``objective``; ``weights`` names a checkpoint per part, or one of the whole ``model``; ``checkpoint_every``
and ``validate_every`` count optimizer steps (Lightning's ``trainer.val_check_interval`` counts micro-batches),
``checkpoint_keep`` the newest checkpoints that stay; ``checkpoint_holds`` says what they hold, ``trained`` or
``all``; ``hub_push`` names the repository of the Hub that a finished run is uploaded to."""

_SECTIONS = {
    "model": "dslight.vlm.VLM",
    "stage": "dslight.train.optim.Stage",
    "data": "dslight.data.datamodule.ShardData",
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "diagnostics": "dslight.diagnostics.settings.Diagnostics",
}
_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")
_DEEPEST = 20
"""Imports and bases that are followed to find a constructor."""


def check_spelling(recipe: Mapping[str, Any]) -> None:
    """Refuse the first name in a composed recipe that is not known; nothing that it names is imported.

    Raises:
        RecipeError: naming the key's path, and the name that it may have been meant for.
    """
    with as_written(recipe):
        check_keys(recipe)
        known = dict(_SECTIONS)
        if "component" in recipe and "model" in recipe:
            return  # which is refused as such
        if "component" in recipe:
            known["data"] = "dslight.data.dense.DenseLabelData"
        faults = (_section_fault(key, known[key], recipe.get(key)) for key in recipe if key in known)
        if found := next(filter(None, faults), None):
            raise RecipeError(found)


def check_keys(recipe: Mapping[str, Any]) -> None:
    """Refuse a key that no recipe has, or one whose value is of another kind.

    Raises:
        RecipeError: naming it.
    """
    for key, value in recipe.items():
        if key in ("variants", "grid"):
            raise RecipeError(f"{key}: this is an ablation, not one run's recipe; `dslight sweep FILE` runs it")
        if key not in KEYS:
            raise RecipeError(f"{key}: a recipe has no such key{closest(key, KEYS)}; it has {', '.join(KEYS)}")
        if value is not None and (not isinstance(value, KEYS[key]) or isinstance(value, bool)):
            raise RecipeError(f"{key}: expected {words(KEYS[key])}, got {value!r}")


@dataclass(frozen=True)
class _Constructor:
    """``given`` says of each argument how many arguments its value, a class, gets from the library."""

    given: Mapping[str, int]


def _section_fault(key: str, class_path: str, values: Any) -> str | None:
    if key in WHOLE and isinstance(values, Mapping) and "class_path" in values:
        class_path, values = str(values["class_path"]), {k: v for k, v in values.items() if k != "class_path"}
        if not class_path.startswith("dslight."):  # whether it belongs there is asked before what it takes
            return _class_fault(key, class_path)
    return _arguments_fault(key, class_path, values, 0)


def _class_fault(path: str, class_path: str) -> str | None:
    try:
        look(class_path)
    except NoClassError as error:
        return f"{path}.class_path: {error}"
    return None


def _arguments_fault(path: str, class_path: str, values: Any, given: int) -> str | None:
    constructor = _constructor(class_path)
    if constructor is None or not isinstance(values, Mapping) or len(constructor.given) < given:
        return None
    named = list(constructor.given)[given:]
    for name in values:
        if name not in named:
            return f"{path}.{name}: there is no such argument{closest(str(name), named)}{listing('it takes', named)}"
    faults = (_fault(f"{path}.{name}", value, constructor.given[name]) for name, value in values.items())
    return next(filter(None, faults), None)


def _fault(path: str, value: Any, given: int) -> str | None:
    if isinstance(value, list):
        return next(filter(None, (_fault(f"{path}.{i}", one, given) for i, one in enumerate(value))), None)
    if not isinstance(value, Mapping) or not isinstance(class_path := value.get("class_path"), str):
        return None
    if "." not in class_path:
        return None
    for key in value:
        if key not in _OF_A_CLASS:
            hint = closest(key, _OF_A_CLASS[:2]) or "; put the arguments of a class under init_args"
            return f"{path}.{key}: beside class_path there is only init_args{hint}"
    wrong = _class_fault(path, class_path)
    return wrong or _arguments_fault(f"{path}.init_args", class_path, value.get("init_args"), given)


# --- what a constructor takes


@cache
def _constructor(class_path: str) -> _Constructor | None:
    module, _, name = class_path.rpartition(".")
    found = _class(module, name, _DEEPEST)
    return None if found is None else _taken(*found, _DEEPEST)


def _taken(module: str, node: ast.ClassDef, depth: int) -> _Constructor | None:
    """What ``node``, a class of ``module``, takes; ``None`` where its text does not say."""
    if node.keywords or depth == 0:
        return None
    methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
    if "__new__" in methods:
        return None
    if (own := methods.get("__init__")) is not None:
        if own.args.vararg or own.args.kwarg:
            return None
        arguments = [*own.args.posonlyargs, *own.args.args, *own.args.kwonlyargs][1:]
        return _Constructor({one.arg: _filled_in(one.annotation) for one in arguments})
    above = [_class_named(module, base, depth - 1) for base in node.bases]
    if any(_name(one) == "dataclass" for one in node.decorator_list):
        fields = {
            one.target.id: _filled_in(one.annotation)
            for one in node.body
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        }
        return _Constructor(fields) if not node.bases else None
    taken = [_taken(*one, depth - 1) if one is not None else None for one in above[:1]]
    return taken[0] if taken else None


def _class(module: str, name: str, depth: int) -> tuple[str, ast.ClassDef] | None:
    """The class ``name`` of a module, or of the one that it is imported from, and the module it is written in."""
    tree = _tree(module)
    if tree is None or depth == 0:
        return None
    for one in _statements(tree.body):
        if isinstance(one, ast.ClassDef) and one.name == name:
            return module, one
        if isinstance(one, ast.ImportFrom) and not one.level and one.module:
            for alias in one.names:
                if (alias.asname or alias.name) == name:
                    return _class(one.module, alias.name, depth - 1)
    return None


def _class_named(module: str, node: ast.expr, depth: int) -> tuple[str, ast.ClassDef] | None:
    return _class(module, node.id, depth) if isinstance(node, ast.Name) else None


@cache
def _tree(module: str) -> ast.Module | None:
    spec = spec_of(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under ``if TYPE_CHECKING`` too, where lazy packages say what they offer."""
    for one in body:
        yield one
        if isinstance(one, ast.If):
            yield from _statements(one.body)


def _filled_in(annotation: ast.expr | None) -> int:
    """n of ``Callable[[n arguments], ...]`` anywhere in an annotation."""
    for one in ast.walk(annotation) if annotation is not None else ():
        if isinstance(one, ast.Subscript) and _name(one.value) == "Callable" and isinstance(one.slice, ast.Tuple):
            first = one.slice.elts[0]
            return len(first.elts) if isinstance(first, ast.List) else 0
    return 0


def _name(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
