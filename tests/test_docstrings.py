"""Every public name shows how it is used, and what it shows is what happens."""

import doctest
import inspect
from importlib import import_module
from pathlib import Path

import pytest
import tiny_world

import dslight
import dslight.metrics

ROOT = Path(dslight.__file__).parent
NAMES = [f"{package.__name__}.{name}" for package in (dslight, dslight.metrics) for name in dir(package)]
SHOWING = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if ">>>" in path.read_text()
)
"""Modules that have examples."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return tiny_world.write(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_an_example(name):
    module, _, last = name.rpartition(".")
    found = getattr(import_module(module), last)
    shown = inspect.getdoc(found) if callable(found) else Path(ROOT / "metrics/benchmarks.py").read_text()
    assert f"{last}" in str(shown).partition(">>>")[2]


@pytest.mark.parametrize("module", SHOWING)
def test_the_examples_of_a_module_are_true(module, world, monkeypatch):
    monkeypatch.chdir(world)
    examples = doctest.DocTestFinder(exclude_empty=True).find(import_module(module))
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for example in examples:
        if example.examples:
            example.globs |= tiny_world.parts()
            runner.run(example)
    assert runner.summarize(verbose=False).failed == 0
