"""Vision transformers of any image size: the towers of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and their descendants.

Decided here:

- ``model`` is transformers' own tower without its mergers, so its weights have transformers' names and its attention is
  its own: packed, each view by itself, in windows where the model has them. The mergers are the projector's
  (:class:`~dslight.components.PixelShuffleMLPProjector`).
- A *piece* is what a merger makes one token of, ``spatial_merge_size`` patches each way. These towers read an image
  piece by piece, so the features need no reordering; where a tower sorts them into windows, that is undone.
- A still image is a clip of one frame, repeated as often as the tower's patches are deep. These towers look at each
  temporal patch of a video by itself, as at an image, so that it passes as a view of its own, some frames deep.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from dslight.components.transformers_config import check_attention, check_source
from dslight.components.unread import weights_wait
from dslight.components.vision_encoder import Tap, VisionEncoder
from dslight.components.vision_encoders.hf_models import OF_ANY_SIZE, of_checkpoint, refuse_lacking, vision_settings
from dslight.components.vision_encoders.statistics import statistics
from dslight.components.vision_encoders.stream import first_layers, one_line, whole_layers
from dslight.components.vision_encoders.views_attention import geometry, use
from dslight.nn.injector import inject_packed, record
from dslight.places import moved
from dslight.types import Grid
from dslight.upstream.torch import real_tensors
from dslight.upstream.transformers import from_settings

KINDS = OF_ANY_SIZE["NativeVisionEncoder"]

_LAYERS = "blocks"


class NativeVisionEncoder(VisionEncoder):
    """A tower of transformers that takes images of any size, each with a grid of its own.

    Args:
        pretrained: hub name or local folder; weights and configuration come from there. Of a model with text and
            vision, the vision part.
        config: the configuration of the vision part, ``{model_type: qwen3_vl_vision, hidden_size: ..., ...}``. Alone:
            random weights. With ``pretrained``: what the checkpoint must be.
        dtype: of the weights, e.g. ``bfloat16``.
        attention: transformers' ``attn_implementation``; default: all views at once where a kernel does so, else views
            of equal length at once.
        mean: normalisation, per channel; default: the checkpoint's own, or what its kind is published with.
        std: normalisation, per channel.
        trust_remote_code: see :class:`HFVisionEncoder`.
        tokens_per_second: see :class:`VisionEncoder`; default: what the configuration says.

    Raises:
        ValueError: starting with the argument to change.
        WeightsError: for a checkpoint that lacks weights.

    Example:
        >>> small = {"model_type": "qwen3_vl_vision", "depth": 3, "hidden_size": 32, "intermediate_size": 48}
        >>> small |= {"num_heads": 2, "patch_size": 8, "num_position_embeddings": 16}
        >>> tower = dslight.NativeVisionEncoder(config=small)
        >>> tower.image_size, tower.grid  # of a piece: 2 x 2 patches of 8 x 8 pixels
        ((16, 16), (2, 2))
        >>> two = torch.zeros(6 + 2, 3, 16, 16, dtype=torch.uint8)  # images of 2 x 3 and of 2 x 1 pieces
        >>> tower(two, taps=[1], pieces=[(2, 3), (2, 1)])[0].shape
        torch.Size([8, 4, 32])
    """

    native = True

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        dtype: str = "float32",
        attention: str | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        trust_remote_code: bool = False,
        tokens_per_second: float | None = None,
    ) -> None:
        super().__init__()
        kind = check_source(pretrained, config, dtype)
        implementation = check_attention(attention, kind, trust_remote_code)
        settings, key = vision_settings(pretrained, config, trust_remote_code)
        if settings.model_type not in KINDS:
            raise ValueError(
                f"{key}: {settings.model_type!r} is no tower of any size that is known ({', '.join(KINDS)}); "
                f"HFVisionEncoder takes those of one size"
            )
        options: dict[str, Any] = {"dtype": kind, "attn_implementation": implementation}
        tower, missing = _tower(settings, key), set[str]()
        if pretrained is None or weights_wait():
            try:
                self.model: Any = from_settings(tower, settings, options)
            except Exception as error:  # whatever transformers says of a configuration
                raise ValueError(f"{key}: {settings.model_type} cannot be built: {one_line(error)}") from error
        else:
            self.model, missing = of_checkpoint(tower, pretrained, settings, options)
        self.model.merger = nn.Identity()
        if hasattr(self.model, "deepstack_merger_list"):
            del self.model.deepstack_merger_list
            self.model.deepstack_visual_indexes = []
        self.model.train()  # from_pretrained leaves evaluation mode, and Lightning trains in the mode that it finds
        refuse_lacking(self.model, missing, pretrained)
        if implementation in (None, "sdpa"):
            use(self.model)
        self.model.patch_embed = PatchProjection(self.model.patch_embed)
        merge, self._patch, self.depth_in_time = (
            int(getattr(settings, name)) for name in ("spatial_merge_size", "patch_size", "temporal_patch_size")
        )
        self.width = int(self.model.patch_embed.embed_dim)
        self.grid, self.image_size = (merge, merge), (merge * self._patch, merge * self._patch)
        own = getattr(settings, "tokens_per_second", None)
        self.tokens_per_second = own if tokens_per_second is None else tokens_per_second
        window = getattr(settings, "window_size", None)
        self._window = window // self.image_size[0] if window else 0
        self.mean, self.std = statistics(pretrained, _processor_of(settings.model_type), mean, std, False)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The tower's own list of blocks; what they take and give is packed, ``[V * P, C]``."""
        return whole_layers(self.model, _LAYERS)

    def read(
        self,
        pixels: Tensor,
        taps: Sequence[Tap],
        stacks: Tensor | None,
        sites: Sequence[int],
        pieces: Sequence[Grid] | None = None,
    ) -> list[Tensor | None]:
        """See :meth:`VisionEncoder.read`."""
        views = tuple(pieces or [(1, 1)] * len(pixels))
        order = moved(_windows(views, self._window), pixels.device) if self._window else None
        indices = [self.resolve_tap(tap) for tap in taps]
        with ExitStack() as hooks:
            if stacks is not None:
                hooks.enter_context(inject_packed(self.layers, stacks if order is None else stacks[:, order], sites))
            seen = hooks.enter_context(record(self.layers, indices))
            self.encode(self.normalise(pixels), self.needed(indices, sites), views)
        found = (seen[index].view(len(pixels), -1, self.width) for index in indices)
        return [each if order is None else each[order.argsort()] for each in found]

    def encode(self, pixels: Tensor, depth: int, pieces: Sequence[Grid] | None = None) -> Tensor | None:
        """The tower's own forward pass, or only its first layers; its features are read at its layers."""
        (high, wide), patch = self.grid, self._patch
        deep = pixels if pixels.ndim == 5 else pixels.unsqueeze(1)
        if deep.shape[1] not in (1, self.depth_in_time):
            raise ValueError(f"views: {deep.shape[1]} frames deep; the patches of this tower are {self.depth_in_time}")
        patches = deep.unflatten(-1, (wide, patch)).unflatten(-3, (high, patch))
        patches = patches.permute(0, 3, 5, 2, 1, 4, 6).flatten(0, 2)  # [V * P, 3, F, patch, patch], piece by piece
        frames = patches.expand(-1, -1, self.depth_in_time, -1, -1).flatten(1)
        views = [(rows * high, columns * wide) for rows, columns in pieces or [(1, 1)] * len(pixels)]
        with first_layers(self.model, _LAYERS, depth):
            self.model(frames, **geometry(self.model, views, pixels.device))
        return None


class PatchProjection(nn.Module):
    """A tower's embedding of patches: its convolution never overlaps, so it is one product of matrices, with the same
    weights under the same names, in a tenth of the time.

    Args:
        theirs: the tower's own.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.proj, self.embed_dim = theirs.proj, int(theirs.embed_dim)

    def forward(self, patches: Tensor) -> Tensor:
        """From ``[n, 3 * frames * patch * patch]`` to ``[n, C]``."""
        weight = self.proj.weight
        return nn.functional.linear(patches.to(weight.dtype), weight.flatten(1), self.proj.bias)


def _tower(settings: Any, key: str) -> Any:
    """The class of transformers that is built from these settings and called with patches and grids."""
    name = type(settings).__module__.replace("configuration_", "modeling_")
    found: Any
    for _, found in inspect.getmembers(import_module(name), inspect.isclass):
        if getattr(found, "config_class", None) is type(settings) and found.__module__ == name:
            wanted = list(inspect.signature(found.forward).parameters)
            if wanted[1:3] == ["hidden_states", "grid_thw"]:
                return found
    raise ValueError(f"{key}: this version of transformers has no tower of patches and grids for {settings.model_type}")


def _processor_of(kind: str) -> str:
    """The model type whose image processor normalises for a tower."""
    return kind.removesuffix("_vision")


@lru_cache(maxsize=64)
def _windows(views: tuple[Grid, ...], side: int) -> Tensor:
    """The order of the pieces in a stream that is sorted by windows of ``side`` x ``side`` pieces, int64 ``[V]``."""
    order: list[int] = []
    for rows, columns in views:
        first = len(order)
        places = sorted((y // side, x // side, y, x) for y in range(rows) for x in range(columns))
        order += [first + y * columns + x for _, _, y, x in places]
    with real_tensors():  # it is kept, whatever pass asks first
        return torch.tensor(order, dtype=torch.int64)
