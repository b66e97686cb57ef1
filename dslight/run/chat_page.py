"""``dslight chat``: the page in a browser, for one run or for two side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dslight.recipe.compose import compose
from dslight.recipe.errors import RecipeError
from dslight.run.chat import opened
from dslight.run.evaluate import check_length
from dslight.run.folder import RunFolder
from dslight.run.page import check_page, serve_page


def chat_page(
    paths: Sequence[Path],
    recipe: Path | None = None,
    max_new_tokens: int = 64,
    host: str = "127.0.0.1",
    port: int = 7860,
    confirm: Callable[[str], bool] | None = None,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        paths: one or two, as :func:`dslight.load` takes them: runs, exports, checkpoints.
        recipe: of checkpoints that bring none.
        max_new_tokens: of an answer, where the page says nothing else.
        host: the address to listen on. Another than this machine's own is asked about first: there is no password.
        port: of it; 0: a free one.
        confirm: asks; default: on the terminal.

    Raises:
        RecipeError: a path cannot be opened, the packages are not installed, or nobody agrees.
    """
    check_length(max_new_tokens)
    if not 1 <= len(paths) <= 2:
        raise RecipeError(f"RUN: {len(paths)} of them; one, or two to compare")
    hosts = check_page("chat", host, port, "ask the model and look into it", confirm)
    from dslight.browser.examples import Examples
    from dslight.browser.models import Talker
    from dslight.browser.server import application

    talkers = [Talker(name, opened(path, recipe)) for name, path in zip(_names(paths), paths, strict=True)]
    run = RunFolder(paths[0])
    examples = Examples(compose(run.recipe_file)) if run.recipe_file.is_file() else None
    serve_page(application(talkers, max_new_tokens, hosts, examples), host, port)


def _names(paths: Sequence[Path]) -> list[str]:
    """What the page calls them: the last names of their paths, or as much more as tells them apart."""
    names = [path.resolve().name for path in paths]
    return [str(path) for path in paths] if len(set(names)) < len(names) else names
