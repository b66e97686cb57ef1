"""Work of the programs here on a Ray cluster: ``--engine ray``, by the optional package ``ray``.

Decided here, and why:

* Ray is only told what to run. A piece of work whose node dies is run again by Ray, elsewhere, from the beginning.
* All nodes have to see the same folders under the same names. Where one did not, its pictures would be set aside as
  missing, so every piece of work first looks for what the main process saw.
* An address is tried before it is handed to Ray, which waits minutes for one that does not answer, and then ends the
  process.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.engines import OwnTally, Tally
from data_prep.processes import be_silent
from dslight.errors import UserError

TRIES = 4
"""Times that a piece of work may be lost with its process, before it is taken to be the work that kills it."""
_PATIENCE = 10  # seconds for an address to answer
_PROBE = ".seen-by-ray"


class EngineError(UserError):
    """Ray is not there, cannot be reached, or cannot do the work; the message says what to do."""


@dataclass(frozen=True)
class Ray:
    """A cluster.

    Attributes:
        address: of it, for messages.
        workers: pieces of work at a time.
    """

    address: str
    workers: int

    @classmethod
    def reached(cls, address: str | None, workers: int | None = None) -> Ray:
        """The cluster at an address; default: the one of RAY_ADDRESS, or that this machine is a node of.

        Raises:
            EngineError: there is none, or Ray is not installed.
        """
        ray, address = _ray(), address or os.environ.get("RAY_ADDRESS") or "auto"
        if not ray.is_initialized():
            _answers(address)
            try:
                ray.init(address=address, logging_level="ERROR")
            except ConnectionError:
                raise EngineError(
                    f"--engine ray: there is no Ray at {address}; start one with `ray start --head`, or say where it "
                    "is: --ray-address HOST:PORT"
                ) from None
            except (RuntimeError, ValueError) as error:  # another version of Ray or Python, a malformed address
                raise EngineError(f"--ray-address: {address}: {' '.join(str(error).split())[:300]}") from None
        cores = int(ray.cluster_resources().get("CPU", 0))
        if not cores:
            raise EngineError(f"--engine ray: no node of the cluster at {address} offers a CPU")
        return cls(address, workers or cores)

    @property
    def at_once(self) -> int:
        """See :class:`data_prep.engines.Engine`."""
        return 2 * self.workers

    def tally(self, bad: int) -> Tally:
        """See :class:`data_prep.engines.Engine`."""
        return OwnTally(bad)

    @contextmanager
    def pool(
        self, reads: Sequence[Path], writes: Path | None, begin: Callable[..., None], *args: Any
    ) -> Iterator[Executor]:
        """See :class:`data_prep.engines.Engine`."""
        with ExitStack() as stack:
            probes = [] if writes is None else [stack.enter_context(_probe(writes))]
            seen = _Seen(tuple(_fact(one) for path in (*probes, *reads) for one in _witnesses(path)))
            yield stack.enter_context(_Pool(_Setup(os.getcwd(), seen, begin, args)))


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError:
        raise EngineError("--engine ray: Ray is not installed: pip install 'dslight[ray]'") from None


def _answers(address: str) -> None:
    """Refuse an address where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # "auto", or what Ray itself refuses
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise EngineError(f"--ray-address: {address}: cannot be reached ({error})") from None


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A new file of a folder, which is there as long as there is work."""
    path = folder / f"{_PROBE}.{secrets.token_hex(4)}"
    path.touch()
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


# --- in a process of the cluster
# --------------------------------------------------------------------------------------------------------


class _Fact(NamedTuple):
    """A file or folder; of a file its size."""

    path: str
    size: int | None


@dataclass(frozen=True)
class _Seen:
    """What the main process saw."""

    facts: tuple[_Fact, ...]

    def check(self) -> None:
        """Refuse a node that does not see it."""
        for fact in self.facts:
            with suppress(OSError):
                if _fact(Path(fact.path)) == fact:
                    continue
            named = fact.path if _PROBE not in fact.path else os.path.dirname(fact.path)
            raise EngineError(
                f"--engine ray: {named}: is not the same on node {socket.gethostname()}; all nodes have to see the "
                "folders that are read and written, under the same names (a shared file system)"
            )


def _witnesses(path: Path) -> Iterator[Path]:
    """A file or folder, and the first one within it."""
    yield path.absolute()
    if path.is_dir():
        with os.scandir(path) as found:
            yield from (path.absolute() / one.name for one in [next(found, None)] if one is not None)


def _fact(path: Path) -> _Fact:
    return _Fact(str(path), None if path.is_dir() else path.stat().st_size)


@dataclass(frozen=True)
class _Setup:
    """What a piece of work needs beside its part."""

    folder: str
    seen: _Seen
    begin: Callable[..., None]
    args: Sequence[Any]


def _do(setup: _Setup, work: Callable[..., Any], args: Sequence[Any]) -> tuple[Any, Exception | None]:
    """Do a piece of work; what it raises is a result, as Ray would make another class of it."""
    try:
        be_silent()
        with suppress(OSError):
            os.chdir(setup.folder)  # where names begin that are not absolute
        if os.getcwd() != setup.folder:
            raise EngineError(
                f"--engine ray: node {socket.gethostname()} has no folder {setup.folder}, where this was started"
            )
        setup.seen.check()
        setup.begin(*setup.args)
        return work(*args), None
    except Exception as error:
        return None, error


# --- in the main process
# --------------------------------------------------------------------------------------------------------


class _Pool(Executor):
    """Hands pieces of work to Ray."""

    def __init__(self, setup: _Setup) -> None:
        ray = _ray()
        self._do = ray.remote(_do).options(num_cpus=1, max_retries=TRIES - 1)
        self._setup, self._running = ray.put(setup), dict[Future[Any], Any]()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See :class:`concurrent.futures.Executor`."""
        assert not kwargs
        reference, future = self._do.remote(self._setup, fn, args), Future[Any]()
        self._running[future] = reference

        def arrived(inner: Future[tuple[Any, Exception | None]]) -> None:
            self._running.pop(future, None)
            result, error = (None, inner.exception()) if inner.exception() else inner.result()
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(_said(error) if inner.exception() else error)

        reference.future().add_done_callback(arrived)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See :class:`concurrent.futures.Executor`."""
        ray, running = _ray(), list(self._running.values())
        if cancel_futures:
            for reference in running:
                ray.cancel(reference)
        if wait and running:  # whoever holds the folder may let it go only when nobody writes to it any more
            ray.wait(running, num_returns=len(running))

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self.shutdown(wait=True, cancel_futures=kind is not None)


def _said(error: BaseException) -> EngineError:
    """What became of a piece of work that Ray could not do."""
    what = " ".join(str(error).split())[:300]
    if "ModuleNotFoundError" in what:
        return EngineError(f"--engine ray: a node has not the packages of this one installed: {what}")
    return EngineError(f"--engine ray: a piece of work was lost {TRIES} times or cannot be done: {what}")
