"""``dslight serve``: an exported model behind transformers' own server, which speaks OpenAI's protocol."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dslight.files.typed import FileError, read_json
from dslight.recipe.errors import RecipeError
from dslight.run.folder import RunFolder


def serve(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    dtype: str = "auto",
    background: bool = False,
) -> Any:
    """Answer ``/v1/chat/completions`` and what else ``transformers serve`` answers, until Ctrl-C.

    Args:
        folder: what ``dslight export`` wrote; its path is the model's name.
        host: the address to listen on; there is no password.
        port: of it.
        device: where the model is put.
        dtype: of its weights; ``auto``: as they were written.
        background: return at once; ``kill_server()`` of what is returned ends it.

    Raises:
        RecipeError: it is no export, or the server's packages are not installed.
    """
    if missing := [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]:
        raise RecipeError(f"serve: needs {', '.join(missing)}; pip install 'dslight[serve]'")
    if RunFolder(folder).recipe_file.exists():
        raise RecipeError(f"FOLDER: {folder} is a run; write its model first: dslight export {folder} OUT")
    try:
        about = read_json(folder / "config.json", dict[str, Any])
    except (FileError, OSError):
        raise RecipeError(f"FOLDER: {folder} is no model that dslight export wrote") from None
    if not about.get("architectures"):
        raise RecipeError(f"FOLDER: {folder}/config.json names no architecture")
    import transformers.processing_utils  # noqa: F401 - it makes the package anew, and the server must see the last one
    from transformers.cli.serve import Serve

    return Serve(force_model=str(folder), host=host, port=port, device=device, dtype=dtype, non_blocking=background)  # pyright: ignore[reportArgumentType]
