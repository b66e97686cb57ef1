"""The kit's pictures, and what the families' image processors make of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dslight.conformance.kit import Array
from dslight.conformance.tiny import PATCH

SIZES = {"a": (16, 24), "b": (16, 16), "c": (24, 8)}
"""(height, width) of the pictures, a multiple of 8."""
FRAMES = 4
"""Of the video, of the size of picture b."""
PAGES = {"a": (16, 32), "b": (32, 15), "c": (12, 32)}
"""For families that cut an image into tiles of 16 x 16."""


def picture(name: str, size: tuple[int, int]) -> Array:
    """uint8 ``[H, W, 3]``: noise, so that no two patches are alike."""
    generator = np.random.default_rng(sum(map(ord, name)))
    return generator.integers(0, 256, (*size, 3), dtype=np.uint8)


def as_patches(frames: Sequence[Array]) -> tuple[Array, list[int]]:
    """Pixels of one image, or of frames two by two, in the order of Qwen's processors: ``[patches, 3 * 2 * 4 * 4]``,
    and (time, rows, columns).
    """
    from transformers import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor(
        do_resize=False,
        patch_size=PATCH,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    if len(frames) == 1:
        made = processor([torch.from_numpy(frames[0]).permute(2, 0, 1)], return_tensors="pt")
        return made["pixel_values"].numpy(), made["image_grid_thw"][0].tolist()
    pairs = []
    for first, second in zip(frames[::2], frames[1::2], strict=True):
        one, two = (as_patches([frame])[0].reshape(-1, 3, 2, PATCH * PATCH) for frame in (first, second))
        pairs.append(np.stack([one[:, :, 0], two[:, :, 1]], axis=2).reshape(len(one), -1))
    height, width = frames[0].shape[:2]
    return np.concatenate(pairs), [len(pairs), height // PATCH, width // PATCH]


def as_tiles(page: Array) -> Array:
    """``[1 + tiles, 3, 16, 16]``: the whole page small, then its tiles of 16 x 16 pixels row by row, zeros around."""
    from PIL import Image

    height, width = page.shape[:2]
    rows, cols = -(-height // 16), -(-width // 16)
    canvas = np.zeros((rows * 16, cols * 16, 3), dtype=np.uint8)
    top, left = (rows * 16 - height) // 2, (cols * 16 - width) // 2
    canvas[top : top + height, left : left + width] = page
    small = np.asarray(Image.fromarray(page).resize((16, 16)))
    tiles = [small, *(canvas[y : y + 16, x : x + 16] for y in range(0, rows * 16, 16) for x in range(0, cols * 16, 16))]
    return (np.stack(tiles).transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.5) / 0.5


def pixels() -> dict[str, Array]:
    """What all families share: pictures, and what the families' processors make of them."""
    made: dict[str, Array] = {}
    for name, size in SIZES.items():
        made[f"picture/{name}"] = picture(name, size)
        patches, grid = as_patches([made[f"picture/{name}"]])
        made[f"patches/{name}.pixel_values"] = patches
        made[f"patches/{name}.image_grid_thw"] = np.array([grid])
    patches, grid = as_patches([picture(f"v{i}", SIZES["b"]) for i in range(FRAMES)])
    made["patches/v.pixel_values"], made["patches/v.video_grid_thw"] = patches, np.array([grid])
    made["patches/v.video_second_per_grid"] = np.ones(1, dtype=np.float32)
    for name, size in PAGES.items():
        tiles = as_tiles(picture(name, size))
        made[f"anyres/{name}.pixel_values"], made[f"anyres/{name}.image_sizes"] = tiles, np.array([size])
        made[f"tiles/{name}.pixel_values"] = np.concatenate([tiles[1:], tiles[:1]])
    return {name: np.ascontiguousarray(value) for name, value in made.items()}
