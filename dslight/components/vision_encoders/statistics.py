"""How pixels are normalised for an encoder of transformers: as its checkpoint's ``preprocessor_config.json`` says.

An image processor computes ``(x * rescale_factor - mean) / std`` of pixels in 0..255, with either half switched off or
not; an encoder here computes ``(x / 255 - mean) / std``. The one is the other with another mean and std.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dslight.components.component import on_meta

Colours = tuple[float, float, float]


def statistics(
    pretrained: str | None, kind: str, mean: Sequence[float] | None, std: Sequence[float] | None, inside: bool
) -> tuple[Colours, Colours]:
    """Mean and standard deviation of pixels in 0..1: as given, else the checkpoint's, else its kind's.

    Args:
        pretrained: a checkpoint.
        kind: its model type.
        mean: as given.
        std: as given.
        inside: whether the model normalises for itself, so that nothing is left to do where a checkpoint does not ask.

    Raises:
        ValueError: for numbers that are no mean or std of three colours.
    """
    found = _of_checkpoint(pretrained) or ({"do_normalize": False} if inside else _of_kind(kind))
    scale = 255 * float(found.get("rescale_factor") or 1 / 255) if found.get("do_rescale", True) else 255.0
    normalises = found.get("do_normalize", True)
    theirs = [
        _colours(found.get(key) if normalises else None, fallback, key)
        for key, fallback in (("image_mean", 0.0), ("image_std", 1.0))
    ]
    means, stds = (tuple(value / scale for value in values) for values in theirs)
    divides = stds if std is None else std
    if not all(0 < value < math.inf for value in divides):
        where = "pretrained: preprocessor_config.json: image_std" if std is None else "std"
        raise ValueError(f"{where}: {list(divides)}; pixels are divided by it: numbers above 0")
    return _given(mean) or means, _given(std) or stds  # type: ignore[return-value]


def _given(values: Sequence[float] | None) -> Colours | None:
    return None if values is None else (values[0], values[1], values[2])


def _colours(value: Any, fallback: float, key: str) -> Colours:
    """Three numbers, out of three, one or none."""
    value = fallback if value is None else value
    values = list(value) if isinstance(value, Sequence) else [value] * 3
    if len(values) != 3 or not all(isinstance(number, int | float) for number in values):
        raise ValueError(
            f"pretrained: preprocessor_config.json: {key}: {value!r}; a number, or one for each of 3 colours"
        )
    return values[0], values[1], values[2]


def _of_checkpoint(pretrained: str | None) -> dict[str, Any]:
    from transformers import ImageProcessingMixin

    if pretrained is None or on_meta():
        return {}
    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(pretrained)
    except OSError:  # a checkpoint without preprocessing
        return {}
    return found


def _of_kind(kind: str) -> dict[str, Any]:
    """What the kind's own image processor does where nothing is said; DINO is published with other statistics than the
    processor that it borrows.
    """
    from transformers import image_utils
    from transformers.models.auto import image_processing_auto

    if kind.startswith(("dinov2", "dinov3")):
        return {"image_mean": image_utils.IMAGENET_DEFAULT_MEAN, "image_std": image_utils.IMAGENET_DEFAULT_STD}
    names = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES
    for name in (kind, kind.removesuffix("_model"), kind.removesuffix("_vision_model"), kind.removesuffix("_vision")):
        classes = names.get(name)
        for each in classes.values() if isinstance(classes, dict) else classes or ():
            processor = image_processing_auto.get_image_processor_class_from_name(each) if each else None
            if getattr(processor, "image_mean", None) is not None:
                keys = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor")
                return {key: value for key in keys if (value := getattr(processor, key, None)) is not None}
    return {"image_mean": 0.5, "image_std": 0.5}
