"""Where the work of a program is done: in processes of this machine, or on a Ray cluster; to the same bytes.

Decided here: an engine is told what to run and knows nothing of shards. A piece of work (a shard to write, a tar to
index, a shard to read) is a function of what it is given alone, so that it may be done anywhere, and twice; what has to
be in order is put in order by the main process, which alone writes what is about the whole.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol, TypeVar

from data_prep.processes import begin_worker, check_numbers

Part = TypeVar("Part")
Result = TypeVar("Result")


class Tally(Protocol):
    """What the processes of a job tell each other: how many of its entries are done, how many are bad, and whether to
    stop. An engine whose processes share nothing has one for each piece of work."""

    @property
    def done(self) -> int:
        """Entries done, as far as this process knows."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether somebody said so."""
        ...

    def entry_done(self) -> None:
        """One more is."""
        ...

    def entry_bad(self) -> int:
        """One more is; how many are, as far as this process knows."""
        ...

    def stop(self) -> None:
        """Say so."""
        ...


class Engine(Protocol):
    """See the module."""

    @property
    def at_once(self) -> int:
        """Pieces of work that are handed out and not done: more than are worked on, so that nobody waits."""
        ...

    def tally(self, bad: int) -> Tally:
        """For a job that has so many bad entries already."""
        ...

    def pool(
        self, reads: Sequence[Path], writes: Path | None, begin: Callable[..., None], *args: Any
    ) -> AbstractContextManager[Executor]:
        """What does the work.

        Args:
            reads: files and folders that it reads.
            writes: the folder that it writes to, if it does.
            begin: called with ``args`` before there is work, in each process.

        Raises:
            UserError: the engine is not there, or a process of it does not see those.
        """
        ...


@dataclass(frozen=True)
class Local:
    """Processes of this machine.

    Attributes:
        workers: how many.
    """

    workers: int = 1

    @property
    def at_once(self) -> int:
        """See :class:`Engine`."""
        return self.workers + 1

    def tally(self, bad: int) -> Tally:
        """See :class:`Engine`."""
        context = _context()
        return _SharedTally(context.Value("q", 0), context.Value("q", bad), context.Event())

    def pool(self, reads: Sequence[Path], writes: Path | None, begin: Callable[..., None], *args: Any) -> Executor:
        """See :class:`Engine`."""
        del reads, writes  # which are those of this machine
        return ProcessPoolExecutor(self.workers, _context(), _begin, (os.getpid(), begin, args))


def nothing() -> None:
    """Where a piece of work needs nothing that stays from one to the next."""


def in_order(pool: Executor, work: Callable[[Part], Result], parts: Iterable[Part], at_once: int) -> Iterator[Result]:
    """The results of pieces of work, in the order of these; so many are under way at once, and no more are kept."""
    waiting: deque[Any] = deque()
    for part in parts:
        waiting.append(pool.submit(work, part))
        if len(waiting) > at_once:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say where the work is done."""
    parser.add_argument("--workers", type=int, help="pieces of work at a time (default: a process for every core)")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="processes of this machine, or a Ray cluster"
    )
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of the cluster, HOST:PORT (default: RAY_ADDRESS, or the one that this machine is a node of)",
    )


def engine_of(args: argparse.Namespace) -> Engine:
    """The engine that arguments name.

    Raises:
        SystemExit: a number that means nothing.
        UserError: Ray is not installed, or not there.
    """
    if args.workers is not None:
        check_numbers(0, workers=args.workers)
    if args.engine == "ray":
        from data_prep.on_ray import Ray

        return Ray.reached(args.ray_address, args.workers)
    if args.ray_address is not None:
        raise SystemExit(f"--ray-address: {args.ray_address}; is for --engine ray")
    return Local(args.workers or os.cpu_count() or 1)


def _context() -> BaseContext:
    # forked, workers share what is loaded; macOS's libraries do not survive a fork
    return multiprocessing.get_context("fork" if os.uname().sysname == "Linux" else "spawn")


def _begin(parent: int, begin: Callable[..., None], args: Sequence[Any]) -> None:
    begin_worker(parent)
    begin(*args)


@dataclass(frozen=True)
class _SharedTally:
    """Of processes that share memory."""

    _done: Any
    _bad: Any
    _stop: Any

    @property
    def done(self) -> int:
        return self._done.value

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def entry_done(self) -> None:
        with self._done.get_lock():
            self._done.value += 1

    def entry_bad(self) -> int:
        with self._bad.get_lock():
            self._bad.value += 1
            return self._bad.value

    def stop(self) -> None:
        self._stop.set()


@dataclass
class OwnTally:
    """Of a process that shares nothing."""

    bad: int
    done: int = field(default=0, init=False)
    stopped: bool = field(default=False, init=False)

    def entry_done(self) -> None:
        """See :class:`Tally`."""
        self.done += 1

    def entry_bad(self) -> int:
        """See :class:`Tally`."""
        self.bad += 1
        return self.bad

    def stop(self) -> None:
        """See :class:`Tally`."""
        self.stopped = True
