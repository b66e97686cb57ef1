"""How the programs here run: what ends them is said in a sentence; the worker processes of those that use all cores."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable

from PIL import Image

from dslight.files.system import said_of
from dslight.texts import readable

_POLL = 0.2  # seconds


def program(main: Callable[[], None]) -> None:
    """Run a program. What its user can mend, a full disk among it, ends it with a sentence.

    Raises:
        SystemExit: with the sentence.
    """
    try:
        main()
    except SystemExit as left:
        raise SystemExit(readable(left.code) if isinstance(left.code, str) else left.code) from None
    except Exception as error:
        if (said := said_of(error)) is None:
            raise
        raise SystemExit(said) from None


def check_numbers(max_bad: float, **counts: int) -> None:
    """Refuse options that mean nothing, by name.

    Raises:
        SystemExit: a count below 1, a share outside of 0..1.
    """
    for name, value in counts.items():
        if value < 1:
            raise SystemExit(f"--{name.replace('_', '-')}: {value}; 1 or more")
    if not 0 <= max_bad <= 1:
        raise SystemExit(f"--max-bad: {max_bad}; a share from 0 to 1")


def begin_worker(parent: int) -> None:
    """Set up a worker process of process ``parent``: it ends with that one, and is silent about odd images."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process says when to stop
    be_silent()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def be_silent() -> None:
    """Say nothing about odd images."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are refused by size
    warnings.filterwarnings("ignore", module="PIL")  # odd EXIF and palettes, thousands of times


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL)
    os._exit(1)
