"""Whether a sharded checkpoint (a folder per checkpoint, a file per process) is complete, told without torch.

It is written down in ``complete.json`` (names and sizes), which comes last. Folders that were written before there was
one are measured by their table of contents, and ``meta.pt``, which came last then.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from dslight.errors import WeightsError
from dslight.files.atomic import write_atomically
from dslight.limits import at_most
from dslight.names import UnsafeNameError, below

TABLE, REST, COMPLETE = ".metadata", "meta.pt", "complete.json"
"""The table of contents, what is no tensor of model and optimizer (Lightning's), and the list of all files."""

_FORMAT = "dslight-checkpoint"


def is_sharded(path: Path) -> bool:
    """Whether ``path`` is such a folder."""
    return (path / TABLE).is_file()


def seal(folder: Path) -> None:
    """Write ``complete.json``: all files are there."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    content = json.dumps({"format": _FORMAT, "version": 1, "files": sizes}, indent=1) + "\n"
    write_atomically(folder / COMPLETE, content)


def is_complete(folder: Path) -> bool:
    """Whether all bytes of a sharded checkpoint are there. Nothing of it is unpickled."""
    try:
        if (folder / COMPLETE).is_file():
            return all((folder / name).stat().st_size == size for name, size in listed(folder).items())
        if not zipfile.is_zipfile(folder / REST):
            return False
        from dslight.checkpoints.sharded import read_table

        pieces = read_table(folder).storage_data.values()
        return all((folder / p.relative_path).stat().st_size >= p.offset + p.length for p in pieces)
    except (OSError, WeightsError):
        return False


def listed(folder: Path) -> dict[str, int]:
    """The files that ``complete.json`` names -> their sizes.

    Raises:
        WeightsError: it is damaged, or names what does not lie in the folder.
    """
    path = folder / COMPLETE
    at_most("manifest_bytes", path.stat().st_size, f"{path}: {path.stat().st_size:,} bytes", WeightsError)
    try:
        content = json.loads(path.read_text())
        assert content["format"] == _FORMAT
        return {name_of_file(folder, name): size_of(size) for name, size in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise WeightsError(f"{path} is no list of a checkpoint's files ({type(error).__name__}: {error})") from error


def name_of_file(folder: Path, name: Any) -> str:
    """``name``, if it names a file in ``folder``.

    Raises:
        WeightsError: it leads elsewhere.
    """
    try:
        below(folder, name, f"{folder}: the name of a file")
    except UnsafeNameError as error:
        raise WeightsError(str(error)) from error
    return name


def size_of(value: Any) -> int:
    """``value``, if it counts bytes or elements.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} where a size is expected")
    return value
