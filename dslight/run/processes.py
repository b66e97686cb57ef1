"""Which of a job's processes this is, before the processes have met."""

from __future__ import annotations

import os


def processes() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_WORLD_SIZE" in os.environ else 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks, whatever has started it: torchrun, SLURM or Lightning."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    return not any(int(os.environ.get(name) or 0) for name in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
