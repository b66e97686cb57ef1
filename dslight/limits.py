"""How much of what somebody hands over is read: a table of limits, each a setting of whoever runs the program.

A limit is raised by its environment variable, which worker processes inherit, and by nothing that a recipe or a file
says: what is to be bounded cannot bound itself. Every limit is far above what honest data has, and is asked *before*
the bytes are read or the layers are built.

    DSLIGHT_MAX_MEMBER_BYTES=1073741824 dslight fit my_arm.yaml
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Limit:
    """A limit: its default, and what it bounds."""

    default: int
    bounds: str


LIMITS = {
    "member_bytes": Limit(256 * MIB, "bytes of one member of a tar or zip (unpacked), or of one picture"),
    "upload_bytes": Limit(32 * MIB, "bytes of what a browser sends to the page of dslight chat, pictures included"),
    "json_bytes": Limit(64 * MIB, "bytes of one JSON line, entry or record"),
    "file_bytes": Limit(4 * GIB, "bytes of a JSON, parquet or text file that is read as a whole"),
    "manifest_bytes": Limit(256 * MIB, "bytes of a manifest"),
    "index_bytes": Limit(GIB, "bytes of the index of one shard"),
    "header_bytes": Limit(MIB, "bytes of one header inside a tar"),
    "recipe_bytes": Limit(MIB, "bytes of a YAML file"),
    "recipe_depth": Limit(64, "brackets within brackets of a YAML file"),
    "recipe_references": Limit(2_000, "${...} of a YAML file"),
    "recipe_values": Limit(100_000, "values of a recipe once YAML's aliases and ${...} are written out"),
    "recipe_text": Limit(16 * MIB, "characters of a recipe once ${...} is written out"),
    "runs": Limit(10_000, "runs of an ablation"),
    "layers": Limit(2_048, "layers, experts or stages that one number of a configuration asks for, and stacks"),
    "modules": Limit(200_000, "modules of a model"),
    "crops": Limit(1_024, "crops of an image"),
    "view_pixels": Limit(1 << 28, "pixels of a view of any size (data.views), enlarged ones too"),
    "parameters": Limit(10_000_000_000_000, "parameters of a model"),
    "epoch_records": Limit(4_000_000_000, "records that an epoch shows, weights included"),
    "workers": Limit(512, "data processes of a rank"),
    "template_seconds": Limit(10, "seconds of a chat template for one conversation"),
    "template_bytes": Limit(16 * MIB, "characters that a chat template writes for one conversation"),
    "template_memory": Limit(2 * GIB, "bytes of memory of a chat template that is tried out"),
}
"""By name; the setting of ``name`` is the environment variable ``DSLIGHT_MAX_NAME``."""


def setting(name: str) -> str:
    """The environment variable of a limit."""
    return f"DSLIGHT_MAX_{name.upper()}"


def limit(name: str) -> int:
    """The value that holds in this process.

    Raises:
        ValueError: the setting is no whole number above 0.
    """
    text = os.environ.get(setting(name))
    if text is None:
        return LIMITS[name].default
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{setting(name)}: {text!r}; a whole number above 0")
    return int(text)


def at_most(name: str, value: float, what: str, error: Callable[[str], BaseException] = ValueError) -> None:
    """Refuse more than the limit ``name`` allows.

    Args:
        name: of :data:`LIMITS`.
        value: what is asked for.
        what: begins the message: the key or the file, and what it has.
        error: makes what is raised.
    """
    most = limit(name)
    if value > most:
        raise error(f"{what}; at most {most:,} ({setting(name)}: {LIMITS[name].bounds})")


_COUNTS = {
    "layers": re.compile(r"layer|block|depth|expert|stage(?!d)|stack|repeat|sites"),
    "crops": re.compile(r"^(rows|cols|max_crops|up|fine|grids)$"),
    "workers": re.compile(r"^num_workers$"),
}
_NO_COUNT = re.compile(r"(size|dims?|rank|freq|step|steps|eps|rate|ratio|prob|drop\w*|lr|decay)$")


def check_counts(node: Any, path: str, error: Callable[[str], BaseException] = ValueError) -> None:
    """Refuse numbers of a configuration that ask for more layers, crops or processes than the limits allow, by the
    names of their keys: before anything counts up to them.

    Args:
        node: of a recipe, or the configuration of a checkpoint.
        path: its key, which begins the message.
        error: makes what is raised.
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            check_counts(value, f"{path}.{key}", error)
        return
    if isinstance(node, list | tuple):
        for i, value in enumerate(node):
            check_counts(value, f"{path}.{i}", error)
        return
    if not isinstance(node, int) or isinstance(node, bool):
        return
    key = next((word for word in reversed(path.split(".")) if not word.isdigit()), "")
    if not _NO_COUNT.search(key):
        for name, keys in _COUNTS.items():
            if keys.search(key):
                at_most(name, abs(node), f"{path}: {node:,}", error)


@cache
def image_formats() -> tuple[str, ...]:
    """Formats of pictures that are opened, as far as this Pillow has them. Of the others that it knows, some start a
    program (EPS: Ghostscript).
    """
    from PIL import Image

    Image.init()
    known = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
    return tuple(name for name in known if name in Image.OPEN)
