"""``dslight serve``: an exported model behind transformers' own server, which speaks OpenAI's protocol."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dslight.files.typed import FileError, read_json
from dslight.recipe.errors import RecipeError
from dslight.run.folder import RunFolder
from dslight.run.page import check_port

_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""What transformers takes in place of a device."""


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
        RecipeError: it is no export, the server's packages are not installed, or an option makes no sense.
    """
    if missing := [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]:
        raise RecipeError(f"serve: needs {', '.join(missing)}; pip install 'dslight[serve]'")
    check_port(port)
    _check_place(device, dtype)
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


def _check_place(device: str, dtype: str) -> None:
    import torch

    kind = getattr(torch, dtype, None)
    if dtype != "auto" and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise RecipeError(f"--dtype: {dtype!r} is no torch dtype of weights; auto, bfloat16, float16 and float32 are")
    if device in _SPREAD:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise RecipeError(f"--device: {device!r} is none that is here ({why}); auto, cpu, cuda:0, ...") from None
