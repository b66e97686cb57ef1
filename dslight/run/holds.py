"""What the checkpoints of a run hold: what trains, and what is in no file (``checkpoint_holds``).

Lightning writes and reads whole states; here tensors are taken out before one is written, and put back before anything
sees one that was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dslight.checkpoints.elsewhere import KEY, Elsewhere, elsewhere, put_back
from dslight.run.deletion import is_run


class HoldWhatTrains(pl.Callback):
    """Leaves out of checkpoints what does not train and comes from a file. What comes from another run is held: its
    folder may be trained anew, or deleted.

    Args:
        files: part -> file, see :class:`dslight.checkpoints.elsewhere.Elsewhere`.
    """

    def __init__(self, files: Mapping[str, str | None]) -> None:
        self.elsewhere = Elsewhere({part: file for part, file in files.items() if file is None or _lasts(file)})

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Of one that is about to be written."""
        self.elsewhere.leave_out(checkpoint, pl_module.parts())  # type: ignore[operator]


def _lasts(file: str) -> bool:
    return Path(file).suffix != ".ckpt" and not any(is_run(folder) for folder in list(Path(file).parents)[:3])


def complete_when_read(strategy: Any, model: pl.LightningModule) -> None:
    """Let ``strategy.load_checkpoint`` give whole checkpoints, of what was left out too.

    Raises:
        WeightsError: when called, where a file that weights are read from has changed.
    """
    read: Callable[..., dict[str, Any]] = strategy.load_checkpoint

    def load_checkpoint(path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint = read(path, *args, **kwargs)
        if said := checkpoint.pop(KEY, None):
            put_back(checkpoint.get("state_dict", {}), said, model.state_dict(), path)  # a sharded model has taken it
        return checkpoint

    strategy.load_checkpoint = load_checkpoint


def weights_of(checkpoint: Path) -> dict[str, str]:
    """The section ``weights`` that a model is built with before a checkpoint of a run is read into it: the files of
    what the checkpoint does not hold, but for those that parts name themselves.
    """
    return {part: file for part, file in elsewhere(checkpoint).items() if file is not None}
