"""What every test here says: a promise, what was tried against it, and how it ended. The table below a run is made of
these, one row per promise.

    @pytest.mark.promise("nothing of others is unpickled", "a sharded checkpoint whose table names a function")
    def test_...(outcome):
        with pytest.raises(WeightsError) as refused: ...
        outcome(refused)                 # the words of the refusal; without it the row says "held"

Where the name of a test says what was tried, the promise alone will do, also once for a whole file.

Every input is harmless: what would run, if anything did, makes a folder in the test's own ``tmp_path``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import pytest

from dslight.recipe.compose import compose, to_yaml

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart" / "deepstack_l.yaml"
_ROW = "promise"


@pytest.fixture(scope="session")
def recipe(pages, tmp_path_factory) -> Path:
    """A recipe file of three steps that saves after each."""
    values = compose(
        QUICKSTART,
        [
            f"data.train=[{pages / 'train'}]", f"data.val.pages.root={pages / 'val'}", "data.val_batch_size=8",
            "data.global_batch_size=8", "data.micro_batch_size=8", "checkpoint_every=1", "stage.warmup_steps=1",
            f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}", "trainer.max_steps=3",
            "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false",
        ],
    )  # fmt: skip
    del values["weights"]
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(to_yaml(values))
    return file


class Trap:
    """An object whose unpickling makes a folder."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sprung),)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """The folder that is there once code of a :class:`Trap` has run."""
    return tmp_path / "code-has-run"


@pytest.fixture
def trap(sprung: Path) -> Trap:
    return Trap(sprung)


@pytest.fixture
def outcome(record_property: Callable[[str, object], None]) -> Callable[[object], None]:
    """Note how a try ended: a text, or the exception that refused it."""

    def note(what: object) -> None:
        record_property("outcome", str(getattr(what, "value", what)))

    return note


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    marker = item.get_closest_marker("promise")
    if marker is not None and (report.when == "call" or report.outcome != "passed"):
        case = getattr(item, "callspec", None)
        tried = marker.args[1] if len(marker.args) > 1 else item.name.partition("[")[0][5:].replace("_", " ")
        tried += f": {case.id}" if case else ""
        report.user_properties.append((_ROW, (marker.args[0], tried)))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for kind in ("passed", "failed", "error") for r in terminalreporter.getreports(kind)]
    rows: dict[str, list[tuple[str, str, bool]]] = {}
    for report in reports:
        said = dict(getattr(report, "user_properties", ()))
        if _ROW in said:
            promise, tried = said[_ROW]
            rows.setdefault(promise, []).append((tried, said.get("outcome", "held"), report.outcome == "passed"))
    if not rows:
        return
    terminalreporter.section("promises")
    terminalreporter.write_line(_line("promise", "what was tried", "outcome"), bold=True)
    for promise, tries in rows.items():
        broken = [tried for tried, _, good in tries if not good]
        of = f"BROKEN, {len(broken)}" if broken else f"held, {len(tries)}"
        ended = next((ended for _, ended, good in tries if good and ended != "held"), "")
        tried = "; ".join(broken or [tried for tried, *_ in tries])
        line = _line(promise, tried, f"{of} of {len(tries)}" + (f": {ended}" if ended and not broken else ""))
        terminalreporter.write_line(line, red=bool(broken))


def _line(*cells: str) -> str:
    return " | ".join(
        shorten(cell, width, placeholder="...").ljust(width) for cell, width in zip(cells, (60, 60, 90), strict=True)
    )
