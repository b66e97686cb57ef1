"""A run that goes on is the same run to its loggers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from dslight.cli import main
from dslight.recipe.schema import Section
from dslight.run.loggers import name_loggers

LOGGERS = "lightning.pytorch.loggers"


def named(kind: str, **arguments) -> list:
    given = [{"class_path": f"{LOGGERS}.CSVLogger", "init_args": {"save_dir": "."}}]
    given.append({"class_path": f"{LOGGERS}.{kind}", "init_args": arguments})
    section = Section("trainer", Trainer, {"logger": given})
    name_loggers(section, "1a2b3c4d")
    return section.config.trainer.logger


@pytest.mark.parametrize(
    ("kind", "arguments", "version"),
    [
        ("WandbLogger", {"project": "p"}, "1a2b3c4d"),
        ("WandbLogger", {"id": "mine"}, None),
        ("TensorBoardLogger", {"save_dir": "b"}, "1a2b3c4d"),
        ("TensorBoardLogger", {"save_dir": "b", "version": 0}, 0),
    ],
)
def test_a_logger_without_a_version_gets_the_runs(kind, arguments, version):
    first, second = named(kind, **arguments)
    assert first.init_args.version == "1a2b3c4d"
    assert second.init_args.version == version


def test_no_logger_needs_no_name():
    for values in ({}, {"logger": True}, {"logger": False}):
        section = Section("trainer", Trainer, values)
        name_loggers(section, "1a2b3c4d")


def test_attempts_share_a_tensorboard_and_a_fresh_start_has_another(recipe, tmp_path):
    board = tmp_path / "board"
    logger = f"trainer.logger=[{{class_path: {LOGGERS}.TensorBoardLogger, init_args: {{save_dir: {board}}}}}]"
    call = ["fit", str(recipe), f"run_dir={tmp_path / 'run'}", "trainer.max_steps=2", "trainer.max_time={seconds: 0}"]
    call += [logger, "data.val=null"]

    def boards() -> dict[str, int]:
        return {path.name: len(list(path.glob("events.*"))) for path in Path(board / "lightning_logs").iterdir()}

    assert [main(call), main(call)] == [130, 0]
    run = json.loads((tmp_path / "run" / "environment.json").read_text())["id"]
    assert boards() == {run: 2}
    assert main([*call, "--fresh"]) == 130
    assert len(boards()) == 2
