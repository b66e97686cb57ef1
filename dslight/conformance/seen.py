"""The families' vision paths, composed of dslight's parts with the families' weights: as ``dslight import`` does it
where a family's images are read at their own size.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dslight.checkpoints.families import FAMILIES
from dslight.components.projectors.window import WindowQFormerProjector
from dslight.components.schedulers.deepstack import DeepStack
from dslight.components.schedulers.stack import Stack
from dslight.components.vision_encoders.hugging_face import HFVisionEncoder
from dslight.conformance.kit import Family, Request
from dslight.conformance.protocol import NotOffered
from dslight.run.python import load
from dslight.run.release import import_release
from dslight.types import Views
from dslight.vlm import VLM

PIXELS = {"size": {"shortest_edge": 64, "longest_edge": 4096}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
"""What the kit's images were made with: their budget of pixels, and their colours."""
CORNERS = ["top_left", "top_right", "bottom_left", "bottom_right"]


def seeing(family: Family) -> Callable[[Request], Tensor] | None:
    """From a request to its slots ``[S + 1, N, D]``; ``None`` where dslight has not all parts."""
    kind = json.loads((family.folder / "config.json").read_text())["model_type"]
    if kind == "granite4_vision":
        return _granite4(family)
    if kind not in FAMILIES:
        return None
    return {"patches": _pictures, "tiles": _tiles}[family.facts["pixels"]](_imported(family))


def _imported(family: Family) -> VLM:
    """What ``dslight import`` makes of it; one without an image processor's file gets what the kit's images have."""
    with tempfile.TemporaryDirectory() as folder:
        released = Path(shutil.copytree(family.folder, Path(folder) / "released"))
        pixels = released / "preprocessor_config.json"
        if not pixels.is_file():
            pixels.write_text(json.dumps(PIXELS))
        import_release(str(released), Path(folder) / family.name)
        return load(Path(folder) / family.name, device="cpu").float().eval()  # its checkpoint is in bfloat16


def _tiles(model: VLM) -> Callable[[Request], Tensor]:
    """From the kit's tiles, each a view of its own, which pass the encoder and the projector one by one."""

    def see(request: Request) -> Tensor:
        tiles = torch.cat([torch.from_numpy(one["pixel_values"]) for one in request.pixels])
        return model.see(Views(_as_bytes(tiles), [(0, 0)] * len(tiles))).slots

    return see


def _pictures(model: VLM) -> Callable[[Request], Tensor]:
    """From pictures, through the model's own processor."""

    def see(request: Request) -> Tensor:
        if len(request.pictures) < len(request.pixels):
            raise NotOffered("frames of a video are images in dslight, without Qwen's pairs of frames")
        asked = model.processor.ask("w1", [Image.fromarray(picture) for picture in request.pictures])
        return model.see(asked.views).slots

    return see


def _granite4(family: Family) -> Callable[[Request], Tensor]:
    """Tiles in the sequence as zeros, window Q-Formers of taps and of corners stacked on them."""
    settings = json.loads((family.folder / "config.json").read_text())
    weights = load_file(family.folder / "model.safetensors")
    taps, spatial = settings["deepstack_layer_map"], settings["spatial_target_layers"]
    stacks = [Stack([site], "base", "identity", tap) for tap, site in taps]
    stacks += [Stack([site], "base", "identity", settings["spatial_vision_layer"]) for site in spatial]
    stacking = DeepStack(stacks, sequence="tiles", base="zero", newline=True, unpad=True)
    encoder = HFVisionEncoder(config=settings["vision_config"]).eval().requires_grad_(False)
    _fill(encoder.model, weights, "model.vision_tower.vision_model.")
    width = settings["text_config"]["hidden_size"]
    projector = WindowQFormerProjector(
        stacking.widths(encoder), width, window=4, queries=2, per_level=True,
        hidden=settings["qformer_config"]["intermediate_size"],
        queries_from=["area"] * len(taps) + CORNERS[: len(spatial)],
    ).eval()  # fmt: skip
    names = [f"model.layerwise_projectors.{i}." for i in range(len(taps))]
    names += [f"model.spatial_projectors.{i}." for i in range(len(spatial))]
    for net, name in zip(projector.nets, names, strict=True):
        _fill(net, weights, name)
    stacking.connect(width)
    stacking.newline.data.copy_(weights["model.image_newline"])

    def see(request: Request) -> Tensor:
        tiles = [torch.from_numpy(one["pixel_values"]) for one in request.pixels]
        pixels = _as_bytes(torch.cat(tiles))
        sizes = [tuple(one["image_sizes"][0].tolist()) for one in request.pixels]
        grids = [
            (len(one) - 1, 1) if height > width else (1, len(one) - 1)
            for one, (height, width) in zip(tiles, sizes, strict=True)
        ]
        views = Views(pixels, grids, sizes=sizes)
        return stacking.lay_out(projector(stacking(encoder, views)), views).slots

    return see


def _as_bytes(tiles: Tensor) -> Tensor:
    """The kit's tiles, which have mean and std 0.5, as uint8."""
    return ((tiles * 0.5 + 0.5) * 255).round().to(torch.uint8)


def _fill(module: Any, weights: dict[str, Tensor], prefix: str) -> None:
    given = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    module.load_state_dict({name: given[name.removeprefix("vision_model.")] for name in module.state_dict()})
