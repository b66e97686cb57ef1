"""``dslight watch``: the curves of runs in a browser, while they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dslight.run.page import check_page, serve_page


def watch(paths: Sequence[Path], host: str = "127.0.0.1", port: int = 7861) -> None:
    """Serve the page until Ctrl-C.

    Args:
        paths: runs, folders of runs, or ablation files, whose runs need not have begun.
        host: the address to listen on, see :func:`dslight.run.page.check_page`.
        port: of it; 0: a free one.

    Raises:
        RecipeError: a path is not there, the packages are not installed, or nobody agrees.
    """
    hosts = check_page("watch", host, port, "see the curves")
    from dslight.browser.server import watching
    from dslight.browser.watching import folders_of

    serve_page(watching(folders_of(paths), hosts), host, port)
