"""What a harness shows, as the data path takes it: pictures as PNG, which keeps every pixel, and videos as frames."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dslight.data.video import Sampling

_VIDEO = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv")


def shown(visual: Any, key: str, sampling: Sampling) -> list[bytes]:
    """The images that a task's visual is shown as: frames of a video or of a folder of them, else the picture."""
    if isinstance(visual, str | Path):
        path = Path(visual)
        if path.is_dir() or (path.suffix.lower() in _VIDEO and path.is_file()):
            return sampling.images(path)
        if path.is_file():
            return [path.read_bytes()]
        raise FileNotFoundError(f"{key}: its doc_to_visual names {str(visual)!r}, which is not there")
    return [_encoded(visual, key)]


def _encoded(visual: Any, key: str) -> bytes:
    """A picture as the data path takes it; PNG keeps every pixel."""
    from PIL import Image

    if not isinstance(visual, Image.Image):
        raise TypeError(f"{key}: its doc_to_visual gave a {type(visual).__name__}; dslight takes pictures and videos")
    if visual.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"):
        visual = visual.convert("RGB")
    file = io.BytesIO()
    visual.save(file, format="png", compress_level=1)
    return file.getvalue()
