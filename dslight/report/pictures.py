"""The pictures of questions, read from the shards of the run's recipe and made small enough for a page."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from dslight.data.shards import ShardReader, is_remote
from dslight.limits import image_formats
from dslight.recipe.compose import compose
from dslight.recipe.errors import RecipeError
from dslight.report.page import Gallery, Picture

LONGEST = 360
"""Pixels of the longer side of a picture on a page."""

SMALL = 128
"""A picture up to this size is kept as it is and shown with visible pixels."""

MOST = 6
"""Pictures shown of a sample that has more, such as the frames of a video or the pages of a document."""


class Pictures:
    """The pictures of samples by key; each sample is read and made small once."""

    def __init__(self) -> None:
        self._shards: dict[str, tuple[ShardReader, dict[bytes, int]]] = {}
        self._made: dict[tuple[str, str], Gallery | str] = {}
        self._roots: dict[tuple[Path, str], str | None] = {}

    def of(self, run: Path, source: str, key: str) -> Gallery | str:
        """The pictures of the sample ``key`` of a source of a run, or why there are none."""
        if (run, source) not in self._roots:
            self._roots[run, source] = _root(run, source)
        root = self._roots[run, source]
        if root is None:
            return f"the run's recipe names no shards of {source}"
        if (root, key) not in self._made:
            try:
                self._made[root, key] = self._read(root, key)
            except Exception as error:  # Pillow raises whatever a format's reader stumbles upon
                self._made[root, key] = f"no picture: {error}"
        return self._made[root, key]

    def _read(self, root: str, key: str) -> Gallery | str:
        if is_remote(root):
            return f"no picture: the shards are at {root}"
        if root not in self._shards:
            reader = ShardReader(root)
            self._shards[root] = reader, {bytes(one): row for row, one in enumerate(reader.index.keys.tolist())}
        reader, rows = self._shards[root]
        row = rows.get(key.encode())
        if row is None:
            return f"no picture: {root} has no sample {key}"
        members = reader.read(row)
        names = json.loads(members.get("json", b"{}")).get("images")
        if names is None:
            names = sorted(name for name in members if name in ("jpg", "jpeg", "png", "webp"))
        if not names:
            return "a question without a picture"
        shown = [_small(members[name]) for name in names[:MOST] if name in members]
        more = [f"{len(names) - MOST} more pictures are not shown"] if len(names) > MOST else []
        return Gallery([*shown[:-1], Picture(shown[-1].data, *more, small=shown[-1].small)]) if shown else "no picture"


def _root(run: Path, source: str) -> str | None:
    """Where the shards of a source lie, as the run's recipe has it."""
    try:
        node: Any = compose(run / "recipe.yaml")
    except (RecipeError, OSError):
        return None
    for part in ("data", "val", source, "root"):
        node = node.get(part) if isinstance(node, Mapping) else None
    return None if node is None else str(node)


def _small(data: bytes) -> Picture:
    with Image.open(io.BytesIO(data), formats=image_formats()) as file:
        if max(file.size) > SMALL:
            file.draft("RGB", (LONGEST, LONGEST))  # a JPEG is decoded at about this size
        image = ImageOps.exif_transpose(file)
        small = max(image.size) <= SMALL
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        if not small:
            image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    out = io.BytesIO()
    image.save(out, "PNG") if small else image.save(out, "JPEG", quality=82)
    return Picture(out.getvalue(), small=small)
