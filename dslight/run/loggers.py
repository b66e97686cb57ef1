"""The recipe's loggers go on where the attempt before has ended, instead of beginning a run of their own each time."""

from __future__ import annotations

from typing import Any

from dslight.recipe.schema import Section


def name_loggers(trainer: Section, run: str) -> None:
    """Give every logger that takes a ``version`` (TensorBoard's folder, W&B's id) that of the run, unless the recipe
    gives it one, or an ``id``.
    """
    named: Any = trainer.config[trainer.key].get("logger")
    for logger in named if isinstance(named, list) else [named]:
        arguments = getattr(logger, "init_args", None)
        if arguments is None or "version" not in arguments:
            continue
        if arguments["version"] is None and arguments.get("id") is None:
            arguments["version"] = run
