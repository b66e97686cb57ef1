"""Names that a package offers, imported when they are first asked for (PEP 562): ``import dslight`` costs no torch.

What a package offers is what it imports under ``if TYPE_CHECKING:``, so that an editor and Python know the same names.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def offered(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package, given its ``__name__`` and ``__file__``."""
    blocks = [node for node in ast.parse(Path(file).read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    places = {one.asname or one.name: (str(node.module), one.name) for node in imports for one in node.names}

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, theirs = places[name]
        found = getattr(import_module(module), theirs)
        setattr(sys.modules[package], name, found)  # the next time it is there
        return found

    return find, lambda: sorted(places), sorted(places)
