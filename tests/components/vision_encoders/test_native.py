"""Towers of any image size against transformers' own, on images of unequal sizes: features, merged tokens."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from dslight.components import NativeVisionEncoder
from dslight.components.vision_encoders.native import KINDS, _tower
from dslight.errors import WeightsError
from dslight.testing import VisionEncoderContract
from dslight.types import Grid

SMALL = {
    "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "out_hidden_size": 24,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_vl_vision": {
        "depth": 4,
        "embed_dim": 32,
        "hidden_size": 24,
        "mlp_ratio": 2,
        "num_heads": 2,
        "patch_size": 8,
    },
    "qwen2_5_vl_vision": {**SMALL, "window_size": 32, "fullatt_block_indexes": [1, 3]},
    "qwen3_vl_vision": {**SMALL, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]},
    "qwen3_vl_moe_vision": {**SMALL, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]},
    "qwen3_5_vision": {**SMALL, "num_position_embeddings": 25},
    "qwen3_5_moe_vision": {**SMALL, "num_position_embeddings": 25},
    "cohere_compass_vision": {**SMALL, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]},
}
PIECES: list[Grid] = [(2, 3), (1, 1), (5, 2), (3, 4)]


def config(kind: str, **more: Any) -> dict[str, Any]:
    return {"model_type": kind, **CONFIGS[kind], **more}


def settings_of(kind: str) -> Any:
    return transformers.AutoConfig.for_model(**config(kind))


def filled(model: nn.Module) -> nn.Module:
    """With weights that make a difference everywhere."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1))
    return model


def both(kind: str) -> tuple[NativeVisionEncoder, Any]:
    theirs: Any = filled(_tower(settings_of(kind), "config")._from_config(settings_of(kind))).eval()
    ours = NativeVisionEncoder(config=config(kind), mean=(0.5,) * 3, std=(0.5,) * 3).eval()
    ours.model.load_state_dict(theirs.state_dict(), strict=False)
    return ours, theirs


def pieces(grids: list[Grid] = PIECES) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    count = sum(rows * cols for rows, cols in grids)
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)


def their_patches(grids: list[Grid] = PIECES) -> dict[str, Tensor]:
    """What their processor makes of the same pixels."""
    images = []
    for (rows, cols), own in zip(grids, pieces(grids).split([r * c for r, c in grids]), strict=True):
        images.append(own.view(rows, cols, 3, 16, 16).permute(2, 0, 3, 1, 4).reshape(3, rows * 16, cols * 16))
    processor = transformers.Qwen2VLImageProcessor(
        do_resize=False, patch_size=8, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    made = processor(images, return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, rows * 2, cols * 2] for rows, cols in grids]
    return {"hidden_states": made["pixel_values"], "grid_thw": made["image_grid_thw"]}


def test_every_kind_is_tried_here():
    assert set(CONFIGS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_merged_features_of_unequal_images_are_the_towers_own_tokens(kind):
    """Its merger over our pieces, each row by row, is what it gives itself; in windows as well."""
    ours, theirs = both(kind)
    (final,) = ours(pieces(), pieces=PIECES)
    expected = theirs(**their_patches()).pooler_output
    assert expected.std() > 0.1
    torch.testing.assert_close(theirs.merger(final.flatten(0, 1)), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2_5_vl_vision", "qwen3_vl_vision"])
@torch.no_grad()
def test_taps_are_the_outputs_of_the_blocks(kind):
    ours, theirs = both(kind)
    seen: list[Tensor] = []
    for block in theirs.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    theirs(**their_patches())
    for tap, (feature, block) in enumerate(zip(ours(pieces(), taps=[1, 2, 3, 4], pieces=PIECES), seen, strict=True), 1):
        if kind == "qwen3_vl_vision":  # the other sorts its tokens; the merged ones are compared above
            torch.testing.assert_close(feature.flatten(0, 1), block, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(feature.flatten(0, 1).sum(0), block.sum(0), atol=1e-3, rtol=1e-3)
        (alone,) = ours(pieces(), taps=[tap], pieces=PIECES)
        assert torch.equal(alone, feature)


@pytest.mark.parametrize("kind", ["qwen2_vl_vision", "qwen2_5_vl_vision", "qwen3_vl_vision"])
@torch.no_grad()
def test_an_image_is_seen_alike_whatever_stands_beside_it(kind):
    ours, _ = both(kind)
    together = ours(pieces(), pieces=PIECES)[0].split([rows * cols for rows, cols in PIECES])
    for own, grid, expected in zip(pieces().split([r * c for r, c in PIECES]), PIECES, together, strict=True):
        torch.testing.assert_close(ours(own, pieces=[grid])[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2_5_vl_vision", "qwen3_vl_vision"])
@torch.no_grad()
def test_a_stack_is_added_to_each_patch_at_its_place(kind):
    """At the input of the last layer but one: what is read there is the stream plus the stack, piece by piece."""
    ours, _ = both(kind)
    stacks = torch.randn(1, len(pieces()), 4, 32, generator=torch.Generator().manual_seed(2))
    (plain,) = ours(pieces(), taps=[2], pieces=PIECES)
    stacked, final = ours(pieces(), taps=[2, "final"], stacks=stacks, sites=[2], pieces=PIECES)
    torch.testing.assert_close(stacked, plain + stacks[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(final, ours(pieces(), pieces=PIECES)[0], atol=1e-3)


def test_a_whole_checkpoint_gives_its_vision_part(tmp_path):
    text = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 12, "vocab_size": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
    }  # fmt: skip
    whole = transformers.Qwen3VLConfig(
        text_config=text, vision_config={k: v for k, v in config("qwen3_vl_vision").items() if k != "model_type"}
    )
    model = transformers.Qwen3VLForConditionalGeneration(whole)
    filled(model)
    model.save_pretrained(tmp_path / "whole")
    ours = NativeVisionEncoder(str(tmp_path / "whole"), mean=(0.5,) * 3, std=(0.5,) * 3).eval()
    with torch.no_grad():
        expected = model.model.visual.eval()(**their_patches()).last_hidden_state
        torch.testing.assert_close(ours(pieces(), pieces=PIECES)[0].flatten(0, 1), expected, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_without_some_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = _tower(settings_of("qwen3_vl_vision"), "config")._from_config(settings_of("qwen3_vl_vision"))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["blocks.1.norm1.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks blocks\.1\.norm1\.weight"):
        NativeVisionEncoder(str(tmp_path))


def test_a_model_of_one_size_is_refused():
    with pytest.raises(ValueError, match=r"config\.model_type: 'siglip_vision_model'.*HFVisionEncoder"):
        NativeVisionEncoder(config={"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4})


def test_views_of_other_pieces_than_there_are_pixels_are_refused():
    with pytest.raises(ValueError, match=r"pieces: views of \[\(2, 2\)\] pieces, and 3 of them"):
        both("qwen3_vl_vision")[0](pieces()[:3], pieces=[(2, 2)])


class TestQwen3(VisionEncoderContract):
    """Each piece as a view of its own."""

    def make(self) -> NativeVisionEncoder:
        return NativeVisionEncoder(config=config("qwen3_vl_vision"))


class TestQwen25(VisionEncoderContract):
    """With windows."""

    def make(self) -> NativeVisionEncoder:
        return NativeVisionEncoder(config=config("qwen2_5_vl_vision"))
