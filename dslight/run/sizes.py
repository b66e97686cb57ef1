"""How long the images of a data set are: what a budget of pixels means in positions of the sequence, before training.

Where images have sizes of their own (native resolution, any-resolution tiles), no single number says what they cost.
Only the heads of the images are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dslight.data.caches.lengths import HEAD, shapes
from dslight.data.datamodule import open_shards
from dslight.data.sample import BadSample, Sample, parse_sample
from dslight.data.views.frames import AS_USUAL
from dslight.recipe.build import check
from dslight.recipe.errors import RecipeError

MOST = 20_000
"""Records that are looked at; of more, that many at even distances."""
SHARES = (0, 10, 50, 90, 99, 100)


@dataclass(frozen=True)
class Sizes:
    """Of the images of a folder of shards.

    Attributes:
        folder: the shards.
        images: how many were looked at.
        unread: records whose images could not be read.
        height, width: in pixels, by percentile.
        slots: positions that an image takes in the sequence, by percentile.
        mean_slots: their mean.
        patches: that the vision encoder reads of an image, by percentile.
    """

    folder: str
    images: int
    unread: int
    height: dict[int, int]
    width: dict[int, int]
    slots: dict[int, int]
    mean_slots: float
    patches: dict[int, int]

    def to_text(self) -> str:
        """A table, for people."""
        lines = [f"sizes of {self.images:,} images in {self.folder}", f"{'percentile':<17}" + _row(list(SHARES))]
        for name in ("height", "width", "patches", "slots"):
            lines.append(f"{name:<17}" + _row(list(getattr(self, name).values())))
        lines.append(f"mean slots       {self.mean_slots:.1f}")
        return "\n".join(lines + ([f"unread records   {self.unread}"] if self.unread else []))


def sizes(recipe: Mapping[str, Any], folder: Path) -> Sizes:
    """Look at the images of ``folder`` as the recipe's views and model would.

    Raises:
        RecipeError: a recipe without views of its own, or shards that cannot be opened or hold no image.
    """
    experiment = check(recipe)
    if experiment.slots is None or not experiment.of_shards:
        raise RecipeError("--sizes: is of a model that answers, trained on shards")
    views, encoder, slots = experiment.data.views, experiment.encoder, experiment.slots
    frames = getattr(experiment.data, "video", AS_USUAL).seen_by(encoder.depth_in_time).undecoded
    try:
        reader = open_shards("--sizes", str(folder), "size")
    except (ValueError, FileNotFoundError) as error:
        raise RecipeError(str(error)) from None

    def seen(sample: Sample) -> list[tuple[Any, Any, Any]]:
        cutting = views.among(len(sample.images))
        return [each for image in sample.images for each in shapes(image, cutting, encoder.image_size)]

    found, unread = [], 0
    for row in np.unique(np.linspace(0, len(reader) - 1, min(MOST, len(reader))).round().astype(int)).tolist():
        try:
            try:
                sample = parse_sample(reader.locate(row)[1], reader.read(row, head=HEAD), frames=frames)
                own = seen(sample)
            except BadSample:  # perhaps the head was too short
                sample = parse_sample(reader.locate(row)[1], reader.read(row), frames=frames)
                own = seen(sample)
            for grid, size, pieces in own:
                read = (1 + grid[0] * grid[1]) * (1 + views.fine**2) * pieces[0] * pieces[1]
                patches = read * encoder.grid[0] * encoder.grid[1]
                found.append((*size, patches, slots(grid, size, pieces)))
        except BadSample:
            unread += 1
    if not found:
        raise RecipeError(f"--sizes: {folder} holds no image that can be read")
    columns = np.array(found)
    height, width, patches, taken = (
        {share: int(np.percentile(column, share, method="nearest")) for share in SHARES} for column in columns.T
    )
    return Sizes(str(folder), len(found), unread, height, width, taken, float(columns[:, 3].mean()), patches)


def height_and_width(text: str) -> tuple[int, int]:
    """Of ``480x640``.

    Raises:
        RecipeError: for another text.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise RecipeError(f"--image: {text!r}; height and width in pixels, such as 480x640")
    return int(match[1]), int(match[2])


def _row(values: list[int]) -> str:
    return "".join(f"{value:>9,}" for value in values)
