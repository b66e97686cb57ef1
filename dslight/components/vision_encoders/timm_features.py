"""Feature maps of timm's convolutional networks (ConvNeXt, ResNet, ...) as visual tokens.

Their stages differ in width and grid, so there is no residual stream to tap or to stack on: one stage's map is the
whole answer. What lies behind that stage is not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dslight.components.component import on_meta
from dslight.components.vision_encoder import VisionEncoder, say_unseen
from dslight.components.vision_encoders.discovery import covering, key_of, leaves_of, remembered
from dslight.components.vision_encoders.stream import drop, one_line
from dslight.components.vision_encoders.timm_models import create_timm_model
from dslight.types import Grid


class TimmFeatureMaps(VisionEncoder):
    """Any timm model that has ``features_only`` feature maps, read at one stage. It can be read at ``final`` only.

    Args:
        name: timm's model name, e.g. ``convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_384``.
        pretrained: load timm's weights from the hub (never while building without memory).
        stage: which of timm's feature maps; negative counts from the last. The map comes without the network's last
            norm, which belongs to its classifier.
        model_args: more arguments of ``timm.create_model``, e.g. ``{depths: [1, 1], dims: [16, 32]}``.
        mean: normalisation, per channel; default: what the weights were trained with.
        std: normalisation, per channel.
        image_size: (height, width) in pixels of one view, or one number; default: what the weights were trained with.

    Example:
        >>> encoder = dslight.TimmFeatureMaps("convnext_atto", stage=1, image_size=64)
        >>> encoder.width, encoder.grid
        (80, (8, 8))
    """

    tappable = False
    stackable = False

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        stage: int = -1,
        model_args: dict[str, Any] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        given = (image_size, image_size) if isinstance(image_size, int) else image_size
        found = remembered(
            key_of("timm features", name, [stage, model_args, given]), lambda: _look(name, stage, model_args, given)
        )
        self.image_size, self.width, self.grid = found.size, found.width, found.grid
        self.mean, self.std = mean or found.mean, std or found.std
        self.model: Any = _feature_maps(name, pretrained, stage, model_args)
        drop(self.model, [(path, "identity") for path in found.idle])
        self._channels_last, stride = found.channels_last, found.stride
        say_unseen(self.image_size, (stride, stride), self.grid, "image_size")

    @property
    def layers(self) -> Sequence[nn.Module]:
        """None: the stages differ in width."""
        return ()

    @property
    def shard_units(self) -> list[nn.Module]:
        """One unit per stage, where timm calls the stages one by one."""
        from timm.models import FeatureListNet

        stages = self.model.children() if isinstance(self.model, FeatureListNet) else ()
        return [stage for stage in stages if any(True for _ in stage.parameters())]

    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        """The stage's map, row by row."""
        (features,) = self.model(pixels)
        return features.flatten(1, 2) if self._channels_last else features.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class _Map:
    """What a stage's map is, and what the stage does not need."""

    size: tuple[int, int]
    width: int
    grid: Grid
    channels_last: bool
    stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    idle: tuple[str, ...]


def _look(name: str, stage: int, model_args: dict[str, Any] | None, size: tuple[int, int] | None) -> _Map:
    """A pass that computes nothing."""
    with torch.device("meta"), torch.enable_grad():
        model = _feature_maps(name, False, stage, model_args).eval()
        settings = model.pretrained_cfg
        height, width = (int(side) for side in size or settings["input_size"][1:])
        try:
            (features,) = model(torch.empty(1, 3, height, width))
        except Exception as error:  # whatever timm's models raise
            said = f"image_size: {name} cannot see {height} x {width} pixels: {one_line(error)}"
            raise ValueError(said) from error
        if features.ndim != 4 or not features.requires_grad:
            raise ValueError(f"name: {name} gives {list(features.shape)}, and no map that learns")
        learnt = dict(model.named_parameters())
        idle = set(learnt) - leaves_of(features, learnt)
    last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
    rows, columns, channels = features.shape[1:] if last else features.permute(0, 2, 3, 1).shape[1:]
    return _Map(
        size=(height, width),
        width=int(channels),
        grid=(int(rows), int(columns)),
        channels_last=last,
        stride=int(model.feature_info.reduction()[-1]),
        mean=settings["mean"],
        std=settings["std"],
        idle=tuple(covering(model, idle)[0]),
    )


def _feature_maps(name: str, pretrained: bool, stage: int, model_args: dict[str, Any] | None) -> Any:
    from timm.models import FeatureHookNet

    try:
        model = create_timm_model(name, pretrained, model_args, features_only=True, out_indices=(stage,))
    except (ValueError, IndexError, RuntimeError) as error:
        count = _count(name, model_args)
        if count is not None and not -count <= stage < count:
            raise ValueError(f"stage: {stage} is beyond the {count} feature maps of {name}, 0 to {count - 1}") from None
        if isinstance(error, ValueError) or (pretrained and not on_meta()):
            raise
        raise ValueError(f"name: timm has no feature maps of {name}: {one_line(error)}") from error
    if isinstance(model, FeatureHookNet):  # it keeps and runs what lies behind the stage, and no gradient gets there
        raise ValueError(f"name: timm reads {name} by hooks and keeps all of it; choose a model that it can cut off")
    return model


def _count(name: str, model_args: dict[str, Any] | None) -> int | None:
    """How many feature maps there are, if that can be known."""
    with torch.device("meta"), suppress(ValueError, IndexError, RuntimeError):
        return len(create_timm_model(name, False, model_args, features_only=True).feature_info.info)
    return None
