"""Real photographs that come with installed packages: two of scikit-learn's and, if it is installed, scikit-image's.

A photograph belongs to one split: what is under the labels of a page that is scored was never trained on.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.evidence.sheet import SIDE
from data_prep.evidence.words import SPLITS, Split

_LEARN = ("china.jpg", "flower.jpg")
_IMAGE = ("astronaut.png", "chelsea.png", "camera.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg")
_IMAGE += ("rocket.jpg", "coffee.png")  # for val and for test


@cache
def photographs() -> tuple[Path, ...]:
    """Those that are there, in a fixed order."""
    folders = (("sklearn", "datasets/images", _LEARN), ("skimage", "data", _IMAGE))
    found = []
    for package, folder, names in folders:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            found += [path for name in names if (path := Path(spec.origin).parent / folder / name).is_file()]
    return tuple(found)


def cut_out(split: Split, rng: np.random.Generator) -> Image.Image:
    """A square of a photograph, at random, brought to the side of a sheet.

    The last two photographs are for val and for test, the others for training; of only two, the second is cut in halves
    for val and for test.
    """
    paths = photographs()
    number = SPLITS.index(split)
    few = len(paths) < 3
    mine = paths[min(number, 1) : min(number, 1) + 1] if few else _shared(paths, number)
    photo = _opened(mine[rng.integers(len(mine))])
    left, right = (
        (0, photo.width) if not few or number == 0 else ((number - 1) * photo.width // 2, number * photo.width // 2)
    )
    side = int(rng.integers(min(SIDE, right - left, photo.height), min(right - left, photo.height) + 1))
    x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(photo.height - side + 1))
    return photo.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def _shared(paths: tuple[Path, ...], number: int) -> tuple[Path, ...]:
    """The last two are val's and test's."""
    return (paths[:-2], paths[-2:-1], paths[-1:])[number]


@cache
def _opened(path: Path) -> Image.Image:
    with Image.open(path) as photo:
        return photo.convert("RGB")
