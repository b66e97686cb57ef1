"""The worker processes of the programs that use all cores."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings

from PIL import Image

_POLL = 0.2  # seconds


def begin_worker(parent: int) -> None:
    """Set up a worker process of process ``parent``: it ends with that one, and is silent about odd images."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process says when to stop
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are refused by size
    warnings.filterwarnings("ignore", module="PIL")  # odd EXIF and palettes, thousands of times
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL)
    os._exit(1)
