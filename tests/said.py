"""What a command says on stderr, whatever versions of the libraries are installed."""

from __future__ import annotations


def messages(err: str) -> str:
    """``err`` without the line that names untested versions (docs/versions.md), which the first command of a process
    writes and ``tests/test_versions.py`` is about.
    """
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("dslight: not tested with "))
