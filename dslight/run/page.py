"""A page in the browser of this machine: what ``dslight chat`` and ``dslight watch`` have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from dslight.recipe.errors import RecipeError

LOOPBACK = ("127.0.0.1", "localhost")


def check_page(verb: str, host: str, port: int, shows: str, confirm: Callable[[str], bool] | None = None) -> list[str]:
    """Whether a page can be served, and may be.

    Args:
        verb: for messages.
        host: the address to listen on. Another than this machine's own is asked about: there is no password.
        port: of it.
        shows: what others could do there.
        confirm: asks; default: on the terminal.

    Returns:
        The names that the page may be called by beside this machine's own.

    Raises:
        RecipeError: the packages are not installed, or nobody agrees.
    """
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise RecipeError(f"{verb}: the page needs {', '.join(missing)}; pip install 'dslight[chat]'")
    check_port(port)
    if host in LOOPBACK:
        return []
    if not (confirm or _confirmed)(f"Everybody who reaches {host}:{port} could {shows}. Serve the page there? [y/N] "):
        raise RecipeError(f"--host: {host} is seen by others, and nobody agreed; the default is this machine's own")
    return ["*"]


def check_port(port: int) -> None:
    """Refuse what is no port.

    Raises:
        RecipeError: naming the option.
    """
    if not 0 <= port < 65_536:
        raise RecipeError(f"--port: {port}; 0 to 65535")


def serve_page(app: Any, host: str, port: int) -> None:
    """Serve an application until Ctrl-C, and say where it is."""
    import uvicorn

    _announced(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False)).run()


def _announced(config: Any) -> Any:
    """A server that says where it is once it listens."""
    import uvicorn

    class Announced(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            for socket in [socket for one in getattr(self, "servers", ()) for socket in one.sockets]:
                name, port = socket.getsockname()[:2]
                print(f"http://{f'[{name}]' if ':' in name else name}:{port} (Ctrl-C ends it)", flush=True)

    return Announced(config)


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    return input(question).strip().lower() in ("y", "yes")
