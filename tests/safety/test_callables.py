"""What stands where a class is wanted is one of the right kind before anything of it is called."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from dslight.recipe.build import check
from dslight.recipe.classes import NoClassError, named
from dslight.recipe.errors import RecipeError

PROMISE = "what is no class of the right kind is not called"

RECIPE: dict[str, Any] = {
    "name": "callables",
    "model": {
        "vision_encoder": {
            "class_path": "dslight.components.TimmEncoder",
            "init_args": {
                "name": "vit_tiny_patch16_224",
                "model_args": {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 1},
            },
        },
        "projector": {"class_path": "dslight.components.MLPProjector"},
        "stacking": {"class_path": "dslight.components.DeepStackL", "init_args": {"num_stacks": 1}},
        "language_model": {
            "class_path": "dslight.components.HFCausalLM",
            "init_args": {
                "config": {
                    "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
                    "num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1,
                },
            },
        },
    },
    "stage": {"train": {"projector": {"lr": 0.1}}},
    "data": {
        "train": ["nowhere"],
        "views": {"class_path": "dslight.data.images.GridViews", "init_args": {"rows": 1, "cols": 1}},
        "global_batch_size": 1,
    },
    "trainer": {},
}  # fmt: skip

LOW = RECIPE["model"] | {"stacking": {"class_path": "dslight.components.LowResolution"}}

SLOTS = {
    "the vision encoder": "model.vision_encoder",
    "the projector": "model.projector",
    "the stacking": "model.stacking",
    "the language model": "model.language_model",
    "the operation of a stacking": "model.stacking.init_args.operation",
    "the views": "data.views",
    "the optimizer": "stage.optimizer",
    "the strategy": "trainer.strategy",
    "a callback": "trainer.callbacks",
    "the logger": "trainer.logger",
    "the profiler": "trainer.profiler",
}

THEIRS = """
import os
os.mkdir({imported!r})

def function(*args, **kwargs):
    os.mkdir({called!r})

def annotated(*args, **kwargs) -> int:
    os.mkdir({called!r})

class Other:
    def __init__(self, *args, **kwargs):
        os.mkdir({called!r})

instance = Other
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch) -> Any:
    """A module of somebody's: ``(name, imported, called)``, the folders that are there once it was imported, or
    something of it called."""
    name = f"theirs_{tmp_path.name.replace('-', '_')}"
    imported, called = tmp_path / "imported", tmp_path / "called"
    (tmp_path / f"{name}.py").write_text(THEIRS.format(imported=str(imported), called=str(called)))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name, imported, called
    sys.modules.pop(name, None)


def put(key: str, value: Any) -> dict[str, Any]:
    """The recipe with ``value`` at ``key``."""
    recipe = deepcopy(RECIPE)
    node, last = recipe, key.split(".")
    for part in last[:-1]:
        node = node.setdefault(part, {})
    node[last[-1]] = value
    return recipe


FORMS: dict[str, Callable[[str], Any]] = {
    "a mapping": lambda path: {"class_path": path},
    "with arguments": lambda path: {"class_path": path, "init_args": {"x": 1}},
    "a text": lambda path: path,
}


@pytest.mark.promise(PROMISE, "a function, or a class of another kind, for")
@pytest.mark.parametrize("slot", SLOTS)
def test_functions_and_other_classes_are_not_called(slot, theirs, outcome):
    name, _, called = theirs
    said = ""
    for what in ("function", "annotated", "Other"):
        for form, make in FORMS.items():
            value = make(f"{name}.{what}")
            if slot == "a callback":
                value = [value]
            if isinstance(value, str) and slot in ("the strategy", "the profiler"):
                continue  # names of Lightning's, which it looks up
            with pytest.raises(RecipeError, match=SLOTS[slot].replace(".", r"\.")) as refused:
                check(put(SLOTS[slot], value))
            assert not called.exists(), (what, form)
            said = str(refused.value)
            assert "\n" not in said
    outcome(said)


@pytest.mark.promise(PROMISE, "a function of the system for the optimizer, the strategy or a part:")
@pytest.mark.parametrize("path", ["os.system", "os.mkdir", "builtins.eval", "builtins.print", "subprocess.run"])
def test_functions_of_the_system_are_not_called(path, monkeypatch, outcome):
    started: list[Any] = []
    monkeypatch.setattr(subprocess.Popen, "__init__", lambda *a, **k: started.append(a))
    for key in ("stage.optimizer", "trainer.strategy", "model.projector", "data.views"):
        with pytest.raises(RecipeError, match=f"{key.split('.')[-1]}.*{path}") as refused:
            check(put(key, {"class_path": path}))
    assert not started
    outcome(refused)


@pytest.mark.promise("no module is imported to make a suggestion", "a name that a module does not have")
def test_a_name_that_is_not_there_is_found_missing_without_importing(theirs, outcome):
    name, imported, _ = theirs
    with pytest.raises(RecipeError, match="has no functoin; did you mean function") as refused:
        check(put("stage.optimizer", {"class_path": f"{name}.functoin"}))
    assert not imported.exists()
    outcome(refused)


@pytest.mark.promise("no module is imported to make a suggestion", "a module that is not there, in a package that is")
def test_a_package_is_not_imported_to_find_that_it_lacks_a_module(tmp_path, monkeypatch, outcome):
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'imported')!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match=r"No module named 'their_package\.optim'") as refused:
        check(put("stage.optimizer", {"class_path": "their_package.optim.Adam"}))
    assert not (tmp_path / "imported").exists()
    outcome(refused)


MODULE = """
from collections import OrderedDict as Ordered
try:
    import json
except ImportError as error:
    json = None
if True:
    class Inner: pass
for i in range(2):
    looped = i
with open(__file__) as handle:
    pass
a, (b, *c) = 1, (2, 3)
d: int = 4
"""


@pytest.mark.parametrize("name", ["Ordered", "json", "Inner", "looped", "handle", "a", "b", "c", "d"])
def test_names_that_are_there_are_found(name, tmp_path, monkeypatch):
    (tmp_path / "binds_names.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "binds_names", raising=False)
    assert named(f"binds_names.{name}") is not None
    monkeypatch.delitem(sys.modules, "binds_names", raising=False)
    with pytest.raises(NoClassError, match="has no nothing"):
        named("binds_names.nothing")


def test_a_function_that_says_what_it_returns_is_one_of_the_right_kind(tmp_path, monkeypatch):
    (tmp_path / "makes_views.py").write_text(
        "from dslight.data.images import GridViews\ndef wide() -> GridViews:\n    return GridViews(1, 2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = check(put("data.views", {"class_path": "makes_views.wide"}) | {"model": LOW})
    assert made.grids == [(1, 2)]


def test_the_recipe_itself_is_right():
    assert check(RECIPE).model.stage is not None
