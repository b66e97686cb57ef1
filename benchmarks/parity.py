"""Released families against what ``dslight import`` makes of them: tiny random checkpoints written by transformers.

    python -m benchmarks.parity                      (writes docs/parity.md; some minutes on one core)
    python -m benchmarks.parity llava internvl       (prints these)

Each checkpoint is random, wide enough to differ at every layer, and saved by transformers. It is imported by the
command, opened by ``dslight.load`` and asked side by side with transformers' own model: a left-padded batch of several
images, one and none.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

import dslight
from dslight.data.conversation import template
from dslight.run.release import import_release
from dslight.types import Batch, Views

SIZES = [(40, 64), (60, 30), (48, 48), (25, 90)]
"""(height, width) of the pictures: one in the first row, three in the second, none in the third."""

ROWS = [1, 3, 0]
MARKS = ["<pad>", "<s>", "</s>", "<image>", "<video>", "<start>", "<end>"]
PAD, IMAGE, VIDEO, START, END = 0, 3, 4, 5, 6
VOCABULARY = len(MARKS) + 256
TEXT: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 1024, "eos_token_id": None,
    "bos_token_id": 1, "pad_token_id": PAD,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 4, "image_size": 28,
    "patch_size": 7,
}  # fmt: skip
CLIP, SIGLIP = {"model_type": "clip_vision_model", **TOWER}, {"model_type": "siglip_vision_model", **TOWER}
GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]

Inputs = Callable[[Any, Views], dict[str, Tensor]]


def by_view(encoder: Any, views: Views) -> dict[str, Tensor]:
    """A view per image."""
    return {"pixel_values": encoder.normalise(views.pixels)}


def by_tile_last(encoder: Any, views: Views) -> dict[str, Tensor]:
    """InternVL's with tiles: of each image its tiles, then the whole one."""
    return {"pixel_values": torch.cat(_tiles(encoder, views))}


def by_split(encoder: Any, views: Views) -> dict[str, Tensor]:
    """Idefics 3's with tiles: those of a row of the batch, zeros behind."""
    images = iter(_tiles(encoder, views))
    rows = [torch.cat([encoder.normalise(views.pixels[:0]), *(next(images) for _ in range(count))]) for count in ROWS]
    most = max(map(len, rows))
    return {"pixel_values": torch.stack([torch.cat([r, r.new_zeros(most - len(r), *r.shape[1:])]) for r in rows])}


def _tiles(encoder: Any, views: Views) -> list[Tensor]:
    return [image.roll(-1, 0) for image in encoder.normalise(views.pixels).split(views.per_image)]


def by_image(encoder: Any, views: Views) -> dict[str, Tensor]:
    """LLaVA-NeXT's: the views of an image in a row, zeros behind."""
    images = encoder.normalise(views.pixels).split(views.per_image)
    most = max(len(image) for image in images)
    padded = [torch.cat([image, image.new_zeros(most - len(image), *image.shape[1:])]) for image in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(views.sizes)}


def by_conversation(encoder: Any, views: Views) -> dict[str, Tensor]:
    """LLaVA-OneVision's: as LLaVA-NeXT's, and how many images each conversation shows."""
    return {**by_image(encoder, views), "batch_num_images": torch.tensor([count for count in ROWS if count])}


def by_row(encoder: Any, views: Views) -> dict[str, Tensor]:
    """Idefics 3's: the images of a row of the batch, zeros behind."""
    pixels, most = encoder.normalise(views.pixels), max(ROWS)
    rows = [torch.cat([row, row.new_zeros(most - len(row), *row.shape[1:])]) for row in pixels.split(ROWS)]
    return {"pixel_values": torch.stack(rows)}


def by_tile(encoder: Any, views: Views) -> dict[str, Tensor]:
    """Granite Docling's: as Idefics 3's, and which of them are there."""
    there = torch.arange(max(ROWS)) < torch.tensor(ROWS)[:, None]
    return {**by_row(encoder, views), "pixel_attention_mask": there}


def by_patch(encoder: Any, views: Views) -> dict[str, Tensor]:
    """Qwen's: the patches of all images, each twice as deep, piece by piece, and their grids."""
    merge, side = encoder.grid[0], encoder.image_size[0] // encoder.grid[0]
    patches = encoder.normalise(views.pixels).unflatten(-1, (merge, side)).unflatten(-3, (merge, side))
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)[:, :, None].expand(-1, -1, 2, -1, -1)
    grids = [[1, rows * merge, columns * merge] for rows, columns in views.pieces]
    return {"pixel_values": patches.flatten(1), "image_grid_thw": torch.tensor(grids)}


@dataclass(frozen=True)
class Case:
    """A released family, tiny.

    Attributes:
        name: of its configuration and its model in transformers, without ``Config`` and ``ForConditionalGeneration``.
        config: arguments of the configuration.
        inputs: what the model takes, out of our views.
        axes: whether positions have several axes, which the model then makes itself.
        attributes: of the configuration, which its class does not name and its model reads.
        watcher: its video processor in transformers, and the argument of its model that seconds are given by.
        types: what it is told of each token of a prompt, beside its id: whether it is an image's (``images``), or that
            none is of an answer (``prompt``).
        pixels: what its image processor is told.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    inputs: Inputs = by_view
    axes: bool = False
    attributes: dict[str, int] = field(default_factory=dict)
    watcher: tuple[str, str] | None = None
    types: str = ""
    pixels: dict[str, Any] = field(default_factory=dict)


ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
AXES: dict[str, Any] = {**TEXT, "rope_parameters": ROPE, "tie_word_embeddings": False}
WIDE = {**AXES, "head_dim": 12}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
COMPASS = {
    **AXES, "sliding_window": 9, "logit_scale": 0.5, "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "rope_parameters": {"sliding_attention": ROPE, "full_attention": None},
}  # fmt: skip
NATIVE: dict[str, Any] = {
    "depth": 5, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
    "out_hidden_size": 48, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2, 3],
}  # fmt: skip
WINDOWS = {
    "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
    "out_hidden_size": 48, "window_size": 16, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2,
}  # fmt: skip
SOUND: dict[str, Any] = {
    "encoder_layers": 1, "d_model": 16, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "output_dim": 48,
    "downsample_hidden_size": 8,
}  # fmt: skip
STAMPED = ("Qwen3VLVideoProcessor", "")
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}

CASES: dict[str, Case] = {
    "llava": Case(
        "Llava",
        {"vision_config": CLIP, "text_config": {"model_type": "llama", **TEXT}, "image_token_index": IMAGE},
    ),
    "llava (SigLIP, Qwen 2, two layers)": Case(
        "Llava",
        {
            "vision_config": SIGLIP, "text_config": {"model_type": "qwen2", **TEXT}, "image_token_index": IMAGE,
            "vision_feature_layer": [1, -1], "vision_feature_select_strategy": "full",
        },
    ),
    "llava_next": Case(
        "LlavaNext",
        {
            "vision_config": CLIP, "text_config": {"model_type": "mistral", **TEXT}, "image_token_index": IMAGE,
            "image_grid_pinpoints": [[28 * rows, 28 * cols] for rows, cols in GRIDS],
        },
        by_image,
    ),
    "llava_onevision": Case(
        "LlavaOnevision",
        {
            "vision_config": SIGLIP, "text_config": {"model_type": "qwen2", **TEXT}, "image_token_index": IMAGE,
            "image_grid_pinpoints": [[28 * rows, 28 * cols] for rows, cols in [*GRIDS, (2, 3), (4, 1), (3, 3)]],
            "vision_aspect_ratio": "anyres_max_2",
        },
        by_conversation,
    ),
    "paligemma": Case(
        "PaliGemma",
        {
            "vision_config": SIGLIP, "text_config": {"model_type": "gemma", **TEXT, "head_dim": 12},
            "image_token_index": IMAGE, "projection_dim": 48,
        },
        types="prompt",
    ),
    "paligemma (2: Gemma 2, sliding windows)": Case(
        "PaliGemma",
        {
            "vision_config": SIGLIP, "image_token_index": IMAGE, "projection_dim": 48,
            "text_config": {"model_type": "gemma2", **TEXT, "head_dim": 12, "sliding_window": 11},
        },
        types="prompt",
    ),
    "gemma3": Case(
        "Gemma3",
        {
            "vision_config": {**SIGLIP, "image_size": 56}, "mm_tokens_per_image": 16, "image_token_index": IMAGE,
            "boi_token_index": START, "eoi_token_index": END,
            "text_config": {
                **TEXT, "head_dim": 12, "sliding_window": 11,
                "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            },
        },
        types="images",
    ),
    "granite4_vision": Case(
        "Granite4Vision",
        {
            "vision_config": {**SIGLIP, "hidden_size": 64, "image_size": 56},
            "text_config": {
                **TEXT, "num_hidden_layers": 6, "model_type": "granite4_vision_text", "embedding_multiplier": 3.0,
                "residual_multiplier": 0.6, "attention_multiplier": 0.2, "logits_scaling": 2.0,
            },
            "image_token_index": IMAGE, "image_grid_pinpoints": [[56 * rows, 56 * cols] for rows, cols in GRIDS],
            "downsample_rate": "2/4", "deepstack_layer_map": [(-2, 4), (1, 0)], "spatial_vision_layer": -1,
            "spatial_target_layers": [1, 2, 3, 5], "vision_feature_select_strategy": "full",
            "qformer_config": {"model_type": "blip_2_qformer", "num_hidden_layers": 2, "intermediate_size": 96,
                               "hidden_size": 64, "encoder_hidden_size": 64, "num_attention_heads": 1,
                               "cross_attention_frequency": 1, "use_qformer_text_input": False},
        },
        by_image,
    ),
    "internvl": Case(
        "InternVL",
        {
            "vision_config": {**TOWER, "model_type": "internvl_vision", "use_mask_token": True},
            "text_config": {"model_type": "qwen3", **TEXT, "head_dim": 12}, "image_token_id": IMAGE,
        },
    ),
    "idefics3": Case(
        "Idefics3",
        {
            "vision_config": {**TOWER, "image_size": 42}, "text_config": {"model_type": "llama", **TEXT},
            "image_token_id": IMAGE, "scale_factor": 2,
        },
        by_row,
    ),
    "smolvlm": Case(
        "SmolVLM",
        {
            "vision_config": {**TOWER, "image_size": 56}, "image_token_id": IMAGE, "scale_factor": 4,
            "text_config": {"model_type": "llama", **TEXT, "tie_word_embeddings": True}, "tie_word_embeddings": True,
        },
        by_row,
    ),
    "internvl (tiles)": Case(
        "InternVL",
        {
            "vision_config": {**TOWER, "model_type": "internvl_vision", "use_mask_token": True},
            "text_config": {"model_type": "qwen3", **TEXT, "head_dim": 12}, "image_token_id": IMAGE,
        },
        by_tile_last,
        pixels={"max_patches": 4},
    ),
    "smolvlm (tiles)": Case(
        "SmolVLM",
        {
            "vision_config": {**TOWER, "image_size": 56}, "image_token_id": IMAGE, "scale_factor": 4,
            "text_config": {"model_type": "llama", **TEXT, "tie_word_embeddings": True}, "tie_word_embeddings": True,
        },
        by_split,
        pixels={"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
    ),
    "granite_docling": Case(
        "GraniteDocling",
        {
            "vision_config": {
                **TOWER, "image_size": 56, "out_hidden_size": 48, "scale_factor": 4, "use_fine_route": True,
                "deepstack_visual_indexes": [2, 0, 1],
            },
            "text_config": {
                **TEXT, "embedding_multiplier": 0.7, "residual_multiplier": 1.2, "attention_multiplier": 0.2,
                "logits_scaling": 2.0,
            },
            "image_token_id": IMAGE, "density_router_hidden_size": 8,
        },
        by_tile,
    ),
    "qwen2_vl": Case(
        "Qwen2VL",
        {
            "vision_config": {
                "depth": 3, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
            },
            "text_config": AXES, **TOKENS,
        },
        by_patch, axes=True, watcher=("Qwen2VLVideoProcessor", ""),
    ),
    "qwen2_5_vl": Case(
        "Qwen2_5_VL", {"vision_config": WINDOWS, "text_config": AXES, **TOKENS}, by_patch, axes=True,
        watcher=("Qwen2VLVideoProcessor", "second_per_grid_ts"),
    ),
    "qwen3_vl": Case(
        "Qwen3VL", {"vision_config": NATIVE, "text_config": WIDE, **TOKENS}, by_patch, axes=True, watcher=STAMPED
    ),
    "qwen3_vl_moe": Case(
        "Qwen3VLMoe", {"vision_config": NATIVE, "text_config": {**WIDE, **EXPERTS}, **TOKENS}, by_patch, axes=True,
        watcher=STAMPED,
    ),
    "cosmos3_omni": Case(
        "Cosmos3Omni", {"vision_config": NATIVE, "text_config": WIDE, **TOKENS}, by_patch, axes=True, watcher=STAMPED
    ),
    "qwen3_omni_moe_thinker": Case(
        "Qwen3OmniMoeThinker",
        {
            "vision_config": NATIVE, "text_config": {**WIDE, **EXPERTS}, "audio_config": SOUND,
            "image_token_id": IMAGE, "video_token_id": VIDEO,
        },
        by_patch, axes=True,
        attributes={"vision_start_token_id": START, "vision_end_token_id": END},
        watcher=("Qwen2VLVideoProcessor", "video_second_per_grid"),
    ),
    "cohere_compass": Case(
        "CohereCompass", {"vision_config": NATIVE, "text_config": COMPASS, **TOKENS}, by_patch, axes=True,
        watcher=("CohereCompassVideoProcessor", ""),
    ),
}  # fmt: skip


HEAD = f"""# Parity

Released families against what `dslight import` makes of them, as `python -m benchmarks.parity` measured it: a tiny
random checkpoint of each is written by transformers, imported by the command, opened by `dslight.load`, and asked
beside transformers' own model, in float32 on a CPU. The batch is left-padded: a row with one image, one with
{max(ROWS)} of different shapes, one of text alone. With "videos", its rows are a video, an image and a video, text
alone, and two videos; their pixels, grids and seconds are given to transformers by the release's own video processor.
"""


BEHIND = """\
Where a video of Qwen2-VL or Qwen2.5-VL lasts longer than it is wide, counted in positions, transformers since
5.3 counts on from its height and width alone, so that the text behind it begins while it still lasts. Here, as in the
versions before, it begins behind the last frame; the videos above are short enough for both. Qwen3-Omni's frames have
positions between whole numbers where their rate asks for them; here they are rounded down.
"""


@dataclass(frozen=True)
class Compared:
    """What came out.

    Attributes:
        difference: the largest, of logits.
        spread: the standard deviation of logits.
        ids: generated by ours and by theirs, one list per row.
    """

    difference: float
    spread: float
    ids: tuple[list[list[int]], list[list[int]]]

    @property
    def same(self) -> bool:
        """Whether both answer alike."""
        return self.ids[0] == self.ids[1]


def tokenizer() -> Any:
    """Of bytes, and the marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*MARKS, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")
    made.add_special_tokens({"additional_special_tokens": MARKS[3:]})
    return made


def checkpoint(case: Case, folder: Path) -> Any:
    """Write a random model and its tokenizer; returns the model."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.name}Config")(**case.config)
    for key, value in case.attributes.items():
        setattr(config, key, value)
    model = getattr(transformers, f"{case.name}ForConditionalGeneration")(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # the usual start, 0.02, leaves all logits nearly equal at this size
        parameter.normal_(std=0.15) if parameter.ndim >= 2 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if case.watcher:
        watcher(case).save_pretrained(folder)
    if case.pixels:
        (folder / "preprocessor_config.json").write_text(json.dumps(case.pixels))
    return model


def watcher(case: Case) -> Any:
    """Its video processor, for patches of 4 pixels and a budget that changes the size of every clip."""
    assert case.watcher
    whole = case.watcher[0] != "Qwen2VLVideoProcessor"  # whether the budget is of all frames together
    size = {"shortest_edge": 256, "longest_edge": 6000 if whole else 1500}
    return getattr(transformers, case.watcher[0])(patch_size=4, size=size, cap_pixels_per_frame=False)


CLIPS = [((5, 40, 64), 2.0), ((4, 60, 30), 1.25), ((2, 30, 30), 1.0)]
"""(frames, height, width) of clips, and their frames a second."""

WATCHED = [("What?", [], [0]), ("See <image> and <video> here", [0], [1]), ("Why?", [], []), ("A", [], [2, 0])]
"""Questions, and which pictures and clips they are about."""


def clips() -> list[np.ndarray]:
    """Smooth ones, of several shapes and lengths."""
    made, generator = [], np.random.default_rng(1)
    for (count, height, width), _ in CLIPS:
        small = [Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)) for _ in range(count)]
        made.append(np.stack([np.asarray(one.resize((width, height), Image.Resampling.BICUBIC)) for one in small]))
    return made


def watched(case: Case, model: Any) -> tuple[Batch, dict[str, Tensor]]:
    """A left-padded batch of :data:`WATCHED`, and what transformers' model is given beside its mask: pixels and grids
    of clips are its own processor's.
    """
    made, shown = clips(), pictures()
    videos = [[dslight.Video(made[i], fps=CLIPS[i][1]) for i in which] for _, _, which in WATCHED]
    rows = model.processor.rows
    between = replace(rows, template=template("vicuna_v1", image_marks=(MARKS[START], MARKS[END])))
    asked = replace(model.processor, rows=between).ask(
        [text for text, _, _ in WATCHED], [[shown[i] for i in which] or None for _, which, _ in WATCHED], videos
    )
    views, encoder = asked.views, model.vision_encoder
    assert views is not None
    assert case.watcher
    depth = encoder.depth_in_time
    kinds = torch.tensor([kind for _, which, played in WATCHED for kind in _kinds(which, played, depth)])
    stills = (kinds == IMAGE).nonzero().flatten().tolist()
    tokens = torch.tensor([rows * columns for rows, columns in views.base_pieces])
    ids = asked.input_ids.masked_scatter(asked.visual_mask, kinds.repeat_interleave(tokens))
    first = [int(tokens[:i].sum()) for i in stills]
    own = [views.pixels[start : start + int(tokens[i]), 0] for i, start in zip(stills, first, strict=True)]
    images = Views(torch.cat(own), [(0, 0)] * len(stills), pieces=[views.pieces[i] for i in stills])
    order = [i for _, _, which in WATCHED for i in which]
    told = {"do_sample_frames": False, "image_mean": list(encoder.mean), "image_std": list(encoder.std)}
    found = watcher(case)([torch.from_numpy(made[i]).permute(0, 3, 1, 2) for i in order], **told)
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}
    inputs |= {name: torch.as_tensor(found[name]) for name in ("pixel_values_videos", "video_grid_thw")}
    if case.watcher[1]:
        inputs[case.watcher[1]] = torch.tensor([depth / CLIPS[i][1] for i in order])
    return asked, {**inputs, **case.inputs(encoder, images)}


def _kinds(images: list[int], videos: list[int], depth: int) -> list[int]:
    """What a question shows, as it is in our views: its pictures, and every temporal patch of its clips."""
    return [IMAGE] * len(images) + [VIDEO] * sum(-(-CLIPS[i][0][0] // depth) for i in videos)


def pictures() -> list[Image.Image]:
    """Smooth ones, of several shapes."""
    generator = np.random.default_rng(0)
    small = [Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)) for _ in SIZES]
    return [one.resize((w, h), Image.Resampling.BICUBIC) for one, (h, w) in zip(small, SIZES, strict=True)]


def batch(model: Any) -> Batch:
    """Rows of :data:`ROWS` images each, left-padded, with the views that the model is asked with."""
    processor = model.processor
    shown, seen = pictures(), iter(pictures())
    listed = [[next(seen) for _ in range(count)] for count in ROWS]
    asked = processor.ask(["a"] * len(ROWS), [row or None for row in listed])
    counts = iter(_slots(asked.views, processor.slots))
    rows = []
    for number, count in enumerate(ROWS):
        row = [20 + number, 21, 22 + number]
        for image in range(count):
            row += [START, *[IMAGE] * next(counts), END, 30 + image, 40 + number]
        rows.append([*row, 50 + number])
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    assert len(shown) == len(asked.views)
    return Batch(ids, mask, ids == IMAGE, views=asked.views)


def _slots(views: Views, layout: Any) -> list[int]:
    images = zip(views.grids, views.sizes, views.base_pieces, strict=True)
    return [layout(grid, size, pieces) for grid, size, pieces in images]


@torch.no_grad()
def compare(case: Case, theirs: Any, ours: Any, new: int = 8) -> Compared:
    """Logits of a batch, and ``new`` generated ids of each row."""
    made = batch(ours)
    assert made.views is not None
    inputs = {"input_ids": made.input_ids, **case.inputs(ours.vision_encoder, made.views)}
    if "mm_token_type_ids" in inspect.signature(theirs.forward).parameters:
        inputs["mm_token_type_ids"] = made.visual_mask.int()
    if case.types:
        inputs["token_type_ids"] = made.visual_mask.int() * (case.types == "images")
    return side_by_side(case, theirs, ours, made, inputs, new)


@torch.no_grad()
def compare_clips(case: Case, theirs: Any, ours: Any, new: int = 8) -> Compared:
    """The same of a batch with videos."""
    made, inputs = watched(case, ours)
    if "mm_token_type_ids" not in inspect.signature(theirs.forward).parameters:
        del inputs["mm_token_type_ids"]
    return side_by_side(case, theirs, ours, made, inputs, new)


def side_by_side(case: Case, theirs: Any, ours: Any, made: Batch, inputs: dict[str, Tensor], new: int) -> Compared:
    """Both models, of the same batch."""
    inputs = {**inputs, "attention_mask": made.attention_mask}
    placed = {} if case.axes else {"position_ids": (made.attention_mask.cumsum(-1) - 1).clamp(min=0)}
    real = made.attention_mask.bool()
    expected, found = theirs(**inputs, **placed).logits[real], ours(made)[real]
    said = theirs.generate(**inputs, max_new_tokens=new, do_sample=False, pad_token_id=PAD)[:, real.shape[1] :]
    ids = ours.generate(made, max_new_tokens=new, pad_token_id=PAD)
    return Compared(float((found - expected).abs().max()), float(expected.std()), (ids.tolist(), said.tolist()))


def tried(name: str, folder: Path) -> dict[str, Compared]:
    """One family, whole: written, imported, opened, compared; with videos too, where it has them."""
    case = CASES[name]
    theirs = checkpoint(case, folder / "released")
    import_release(str(folder / "released"), folder / "imported")
    ours = dslight.load(folder / "imported", device="cpu").eval()
    found = {name: compare(case, theirs, ours)}
    return found | ({f"{name}, videos": compare_clips(case, theirs, ours)} if case.watcher else {})


def page(found: dict[str, Compared]) -> str:
    """docs/parity.md."""
    lines = [
        HEAD,
        f"With transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}, dslight "
        f"{dslight.__version__}.",
        "",
        "| model type | largest difference of logits | their standard deviation | greedy ids |",
        "| --- | ---: | ---: | --- |",
    ]
    for name, one in found.items():
        count = sum(map(len, one.ids[0]))
        lines.append(
            f"| {name} | {one.difference:.1e} | {one.spread:.2f} | "
            f"{f'all {count} equal' if one.same else 'not equal'} |"
        )
    return "\n".join([*lines, "", BEHIND])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    """Try all and write the page, or some and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TYPE")
    parser.add_argument("--page", type=Path, default=Path("docs/parity.md"))
    args = parser.parse_args()
    found = {}
    with _quiet():
        for name in args.names or CASES:
            with tempfile.TemporaryDirectory() as folder:
                found |= tried(name, Path(folder))
    if args.names:
        print(page(found))
    else:
        args.page.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
