"""The optimizer's groups, shown and written at the start of a run, and held against what is meant to train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.optim import Optimizer

from dslight.train.callbacks import GradientError, _some

HEAD = ("part", "group", "tensors", "parameters", "lr", "weight decay")


class ShowGroups(pl.Callback):
    """Prints a table of the optimizer's groups, and writes it to ``file``; the first rank does.

    Raises:
        GradientError: for a parameter that is meant to train and is in no group, or is frozen and in one.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check, and show."""
        check(dict(pl_module.named_parameters()), trainer.optimizers)
        if trainer.is_global_zero:
            text = table(trainer.optimizers, len(list(pl_module.parameters())))
            self.file.write_text(text + "\n")
            print(text, flush=True)


def check(named: Mapping[str, nn.Parameter], optimizers: list[Optimizer]) -> None:
    """Whether exactly what has ``requires_grad`` is in a group.

    Raises:
        GradientError: by name.
    """
    grouped = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    left_out = [name for name, p in named.items() if p.requires_grad and id(p) not in grouped]
    frozen = [name for name, p in named.items() if not p.requires_grad and id(p) in grouped]
    if left_out:
        raise GradientError(
            f"stage.train: {len(left_out)} parameters are meant to train, but no group of the optimizer has them: "
            f"{_some(left_out)}. Does the part's param_groups leave them out?"
        )
    if frozen:
        raise GradientError(f"stage.train: {len(frozen)} frozen parameters are in the optimizer: {_some(frozen)}")


def table(optimizers: list[Optimizer], tensors: int) -> str:
    """One line per group; ``lr`` is the peak. ``tensors``: of the whole model, frozen ones included."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rows = [_row(group, i) for i, group in enumerate(groups)]
    total, count = sum(p.numel() for g in groups for p in g["params"]), sum(len(g["params"]) for g in groups)
    rows.append(("total", f"of {tensors} tensors", str(count), f"{total:,}", "", ""))
    widths = [max(len(row[i]) for row in [HEAD, *rows]) for i in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [HEAD, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def _row(group: Mapping[str, Any], index: int) -> tuple[str, ...]:
    part, _, name = str(group.get("name", index)).partition(".")
    count = sum(p.numel() for p in group["params"])
    lr = group.get("initial_lr", group["lr"])
    return part, name, str(len(group["params"])), f"{count:,}", f"{lr:.4g}", f"{group.get('weight_decay', 0):g}"
