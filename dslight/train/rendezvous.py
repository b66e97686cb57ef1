"""Meeting again after a restart: the processes of one attempt find each other, and nobody of an attempt before.

torchrun restarts all workers when one dies, but keeps its store, and a new process group would read the addresses that
the dead ones left there: it connects to nobody, until its timeout. Decided here: the processes agree on a corner of the
store that is new. The number of the restart would not do, since an agent that is started anew counts from zero.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist

from dslight.upstream.lightning import group_settings

_ATTEMPT = "dslight/attempt"


def meet(strategy: Any) -> None:
    """Make the process group that ``strategy`` (a parallel one of Lightning) would make, where torchrun keeps the
    store; anywhere else Lightning does it.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True) or dist.is_initialized():
        return
    found = group_settings(strategy)
    if found is None:
        return
    (backend, timeout), device = found, strategy.root_device
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=False, timeout=timeout
    )
    store = dist.PrefixStore(agree(store, rank, world, timeout), store)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=timeout, device_id=device if on_gpu else None
    )
    if backend == "nccl":
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())


def agree(store: dist.Store, rank: int, world: int, timeout: timedelta = timedelta(minutes=5)) -> str:
    """A prefix for this attempt's keys: rank 0 proposes, everybody answers with a number of their own, and rank 0 says
    whose answers it has seen. What an earlier attempt has left cannot hold the number of this one.

    Raises:
        dist.DistError: when not all are there in time.
    """
    me = uuid4().hex
    if rank == 0:
        store.set(_ATTEMPT, me)
        answers = [f"{_ATTEMPT}/{me}/{other}" for other in range(1, world)]
        store.wait(answers, timeout) if answers else None
        store.set(f"{_ATTEMPT}/{me}/met", json.dumps([store.get(key).decode() for key in answers]))
        return f"{_ATTEMPT}/{me}"
    end = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < end:
        proposed = f"{_ATTEMPT}/{store.get(_ATTEMPT).decode()}"
        store.set(f"{proposed}/{rank}", me)
        if store.check([f"{proposed}/met"]) and me in json.loads(store.get(f"{proposed}/met")):
            return proposed
        time.sleep(0.1)
    raise dist.DistStoreError(f"rank {rank} met nobody within {timeout.total_seconds():.0f} s")
