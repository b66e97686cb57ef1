"""Features of an encoder that does not train, in place of pictures: ``data.keep_features``, and what it is to a data
worker.

A picture is known by its bytes and by all that decides its views; a view by its pixels. So arms of a sweep with other
views of the same pictures still share the views that are the same, and the base view is the same in most. Where all
features that the stacking asks of a picture are there, it is not even decoded.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import PIL
import torch
from torch import Tensor

from dslight.errors import UserError
from dslight.features.store import FeatureStore, OnFull
from dslight.features.views import KnownImage, Tap, digest, view_key
from dslight.types import Grid
from dslight.written import UNWRITTEN, written

Cut = Callable[[], tuple[Tensor, Grid, Grid]]
"""Gives views, their grid, and the size of the image."""


@dataclass
class KeepFeatures:
    """Keep what the vision encoder makes of each view, and read it instead of running the encoder.

    Args:
        folder: of its own; the arms, seeds and epochs that name it share it, on one node or on a shared disk.
        bytes: the most that lies in it.
        on_full: ``stop`` keeps no more; ``replace`` deletes the features of encoders that are not in use, longest
            unused first, and then stops. Nothing else is ever deleted.

    Raises:
        ValueError: naming the key.

    Example:
        >>> dslight.Data(train=["data/mine"], keep_features=dslight.KeepFeatures("runs/features")).keep_features.bytes
        100000000000
    """

    folder: str
    bytes: int = 100_000_000_000
    on_full: OnFull = "stop"

    def __post_init__(self) -> None:
        if self.bytes < 1:
            raise ValueError(f"data.keep_features.bytes: {self.bytes}; 1 or more")


@dataclass
class FeatureReader:
    """What a data worker knows of kept features.

    Args:
        store: the folder.
        encoder: the encoder's digest.
        sets: its sets, by tap.
        asked: what the stacking asks of the views of an image, by the grid of its crops: (number of the view, tap).
        settings: what decides the views of a picture, beside the picture itself (:func:`settings_of`).
    """

    store: FeatureStore
    encoder: str
    sets: Mapping[Tap, str]
    asked: Mapping[Grid, Sequence[tuple[int, Tap]]]
    settings: str
    _tried: bool = field(default=False, init=False)

    def image(self, data: bytes | None, cut: Cut, otherwise: str = "") -> tuple[KnownImage, Grid, Grid]:
        """The views of a picture, their grid, and its size.

        Args:
            data: the picture as it is in the shard; ``None``: it is none of a shard.
            cut: decodes it and makes its views.
            otherwise: how it is cut, if not as the settings say.

        Raises:
            UserError: for views that are not the same each time.
        """
        key = None if data is None else digest((self.settings + otherwise).encode(), data)
        said = None if key is None else self.store.picture(key)
        if said is not None:
            grid, size = tuple(said["grid"]), tuple(said["size"])
            known = self._known(said["keys"], grid)
            if known is not None and not known.rows:
                return known, grid, size
        pixels, grid, size = cut()
        keys = [view_key(view) for view in pixels]
        if not self._tried or said is not None:
            self._tried = True
            if keys != (said["keys"] if said is not None else [view_key(view) for view in cut()[0]]):
                raise UserError(
                    "data.keep_features: the views of a picture (data.views) are not the same each time, so its "
                    "features cannot be kept"
                )
        if key is not None and said is None:
            self.store.keep_picture(key, {"grid": list(grid), "size": list(size), "keys": keys})
        known = self._known(keys, grid) or KnownImage(keys, {}, None, list(range(len(keys))))
        known.pixels = pixels if len(known.rows) == len(keys) else pixels[known.rows]
        return known, grid, size

    def _known(self, keys: list[str], grid: Grid) -> KnownImage | None:
        """The features that are there; ``None`` for a grid of which it is not known what is asked."""
        if grid not in self.asked:
            return None
        found = KnownImage(keys)
        for view, tap in self.asked[grid]:
            feature = None if view in found.rows else self.store.feature(self.sets[tap], keys[view])
            if feature is not None:
                found.features[view, tap] = feature
            elif view not in found.rows:
                found.rows.append(view)
        found.rows.sort()
        return found


def settings_of(*what: Any) -> str:
    """All that decides which pixels come of a picture: settings, policies, and the versions of what decodes.

    Of a class that no recipe can name, or that is not this library's, the source counts too.
    """
    said = [[written(one), _source(one)] for one in what]
    return json.dumps([said, torch.__version__, PIL.__version__, version("dslight")])


def _source(value: Any) -> str | None:
    kind = type(value)
    if kind.__module__ == "builtins" or (kind.__module__.startswith("dslight.") and UNWRITTEN not in str(value)):
        return None
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return kind.__qualname__
