"""Qwen3-VL's DeepStack against transformers' ``Qwen3VLForConditionalGeneration`` on the same random weights.

Compared, for images of one size and one frame; then, whole, for images of a size each (:class:`NativeVisionEncoder`):

- vision path: what the encoder gives at the taps, against its blocks' outputs; and the projected levels, against
  ``get_image_features``: the merger's tokens and ``deepstack_features``;
- language path: the same features through our injector against its own ``deepstack_visual_embeds``;
- the whole model, from pixels to logits and generated ids, with its three-dimensional rotary positions.

Its vision transformer is wrapped here as a :class:`VisionEncoder`, as a stranger would do it; its decoder is read from
its folder as any other, and the stacking, the projector, the positions and the injection are ours. "After layer i" is
site i + 1, and its tap ``deepstack_visual_indexes[i]``, the output of that block, is our tap one higher.
"""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dslight.components import (
    DeepStack,
    DeepStackTaps,
    HFCausalLM,
    NativeVisionEncoder,
    PixelShuffleMLPProjector,
    Stack,
    VisionEncoder,
)
from dslight.data.native import NativeViews
from dslight.types import Batch, Views, VisualTokens
from dslight.vlm import VLM

transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "Qwen3VLForConditionalGeneration"):
    pytest.skip("this version of transformers has no Qwen3-VL", allow_module_level=True)

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402

IMAGE, START, END, VIDEO = 60, 61, 62, 63
GRID = (4, 6)
PATCH = 8
INDEXES = [0, 2, 3]
HALF = (0.5, 0.5, 0.5)


class QwenVision(VisionEncoder):
    """Qwen3-VL's vision transformer, without its mergers, at one image size."""

    prefix_tokens, mean, std, stackable = 0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        del self.model.merger, self.model.deepstack_merger_list
        self.model.deepstack_visual_indexes, self.model.merger = [], nn.Identity()
        self.width, self.grid = model.config.hidden_size, GRID
        self.image_size = (GRID[0] * PATCH, GRID[1] * PATCH)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.blocks

    def read(self, pixels: Tensor, taps: Any, stacks: Tensor | None, sites: Any) -> list[Tensor | None]:
        """Its tokens stand in the order of the merged blocks, all images in one row: [V * P, C]."""
        (rows, cols), count = GRID, len(pixels)
        patches = self.normalise(pixels).reshape(count, 3, rows // 2, 2, PATCH, cols // 2, 2, PATCH)
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count * rows * cols, 3, 1, PATCH, PATCH)
        thw = torch.tensor([[1, rows, cols]] * count)
        seen: dict[int, Tensor] = {}
        hooks = [
            block.register_forward_hook(lambda m, a, out, i=i: seen.update({i + 1: out}))
            for i, block in enumerate(self.layers)
        ]
        self.model(patches.repeat(1, 1, 2, 1, 1).flatten(1), grid_thw=thw)
        for hook in hooks:
            hook.remove()
        maps = [seen[self.resolve_tap(tap)].view(count, rows // 2, cols // 2, 2, 2, -1) for tap in taps]
        return [one.transpose(2, 3).reshape(count, rows * cols, -1) for one in maps]

    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        raise NotImplementedError


@pytest.fixture
def theirs() -> Any:
    config = transformers.Qwen3VLConfig(
        vision_config={
            "depth": 5, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": PATCH,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 48, "num_position_embeddings": 25,
            "deepstack_visual_indexes": INDEXES,
        },
        text_config={
            "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 64, "max_position_embeddings": 256,
            "eos_token_id": None, "bos_token_id": 1, "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
        },
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen3VLForConditionalGeneration(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.15) if parameter.ndim >= 2 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def views() -> Views:
    generator = torch.Generator().manual_seed(0)
    size = (3, 3, GRID[0] * PATCH, GRID[1] * PATCH)
    return Views(torch.randint(0, 256, size, dtype=torch.uint8, generator=generator), [(0, 0)] * 3)


@pytest.fixture
def batch(views) -> Batch:
    """One image in the first row, two in the second; left-padded."""
    image = [START, *[IMAGE] * (GRID[0] * GRID[1] // 4), END]
    rows = [[5, 6, *image, 7, 8, 9, 10], [11, *image, 12, 13, *image, 14, 15]]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    attention = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return Batch(ids, attention, ids == IMAGE, views=views)


def their_pixels(views: Views) -> dict[str, Tensor]:
    """What their processor makes of our pixels."""
    processor = transformers.Qwen2VLImageProcessor(
        do_resize=False, patch_size=PATCH, temporal_patch_size=2, merge_size=2,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    made = processor(list(views.pixels), return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, *GRID]] * len(views)
    return dict(made)


def make_stacking() -> DeepStackTaps:
    """The released model as a recipe would write it."""
    return DeepStackTaps(taps=[i + 1 for i in INDEXES], tap=-1)


def make_projector(theirs: Any) -> Any:
    """Ours with the weights of the merger and of ``deepstack_merger_list``."""

    def make(in_widths: Sequence[int], out_width: int) -> PixelShuffleMLPProjector:
        projector = PixelShuffleMLPProjector(
            in_widths, out_width, hidden="merged", norm="pre", stack_norm="post", per_level=True
        )
        mergers = [theirs.model.visual.merger, *theirs.model.visual.deepstack_merger_list]
        for net, merger in zip(projector.nets, mergers, strict=True):
            for mine, given in zip(net.parameters(), merger.parameters(), strict=True):
                assert mine.shape == given.shape
                mine.data.copy_(given)
        return projector

    return make


def make_decoder(theirs: Any, folder: Path) -> HFCausalLM:
    theirs.save_pretrained(folder)
    return HFCausalLM(str(folder)).eval()


def make_ours(theirs: Any, folder: Path) -> VLM:
    decoder = make_decoder(theirs, folder)
    return VLM(QwenVision(theirs.model.visual), make_projector(theirs), make_stacking(), decoder).eval()


def their_features(theirs: Any, views: Views) -> Tensor:
    """[S + 1, N, D]."""
    found = theirs.model.get_image_features(**their_pixels(views), return_dict=True)
    levels = (found.pooler_output, *found.deepstack_features)  # of each image; before 5.20 some of all images together
    return torch.stack([level if torch.is_tensor(level) else torch.cat(list(level)) for level in levels])


@torch.no_grad()
def test_the_levels_before_the_projector_are_the_outputs_of_the_blocks(theirs, views):
    """Vision path, first half. Their tokens stand block by block; here they are put into rows by hand."""
    levels, seen = make_stacking()(QwenVision(theirs.model.visual), views), []
    for index in [4, *INDEXES]:
        theirs.model.visual.blocks[index].register_forward_hook(lambda m, a, out, i=index: seen.append((i, out)))
    made = their_pixels(views)
    theirs.model.visual(made["pixel_values"], grid_thw=made["image_grid_thw"])
    outputs, area = dict(seen), GRID[0] * GRID[1]
    for level, index in zip(levels, [4, *INDEXES], strict=True):
        for image in range(3):
            for place, token in enumerate(outputs[index][image * area : (image + 1) * area]):
                block, (dy, dx) = place // 4, divmod(place % 4, 2)
                y, x = block // (GRID[1] // 2) * 2 + dy, block % (GRID[1] // 2) * 2 + dx
                torch.testing.assert_close(level[image, y, x], token, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_slots_are_its_image_features_level_by_level(theirs, views, tmp_path):
    """Vision path, whole."""
    visual = make_ours(theirs, tmp_path).see(views)
    assert visual.sites == (1, 2, 3)
    expected = their_features(theirs, views)
    assert expected.abs().amax((1, 2)).min() > 0.1
    torch.testing.assert_close(visual.slots, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("written", ["after", "sites"])
@torch.no_grad()
def test_its_features_through_our_injector_are_its_own_text_model(theirs, views, batch, written, tmp_path):
    """Language path: their features, plain positions."""
    features = their_features(theirs, views)
    stack = partial(Stack, view="base", sampler="identity")
    after = DeepStack([stack([i], after=True) for i in range(3)])
    sites = after.sites if written == "after" else make_stacking().sites
    visual = VisualTokens(features, sites)
    lm = make_decoder(theirs, tmp_path)
    logits = lm(batch.input_ids, batch.attention_mask, batch.visual_mask, visual)
    embedded = theirs.get_input_embeddings()(batch.input_ids)
    embedded[batch.visual_mask] = features[0]
    hidden = theirs.model.language_model(
        inputs_embeds=embedded,
        attention_mask=batch.attention_mask,
        visual_pos_masks=batch.visual_mask,
        deepstack_visual_embeds=list(features[1:]),
    ).last_hidden_state
    real = batch.attention_mask.bool()
    expected = theirs.lm_head(hidden)[real]
    torch.testing.assert_close(logits[real], expected, atol=1e-5, rtol=1e-5)
    without = lm(batch.input_ids, batch.attention_mask, batch.visual_mask, VisualTokens(features[:1]))
    assert (without[real] - expected).abs().max() > 0.1


@torch.no_grad()
def test_the_whole_model_is_the_whole_model(theirs, batch, tmp_path):
    ours = make_ours(theirs, tmp_path)
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "mm_token_type_ids": (batch.input_ids == IMAGE).int(),
        **their_pixels(batch.views),
    }
    real = batch.attention_mask.bool()
    expected = theirs(**inputs).logits[real]
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(batch)[real], expected, atol=1e-5, rtol=1e-5)
    generated = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[:, batch.input_ids.shape[1] :]
    ids = ours.generate(batch, max_new_tokens=8)
    assert ids.tolist() == generated.tolist()
    assert len(set(ids.flatten().tolist())) > 3


# --- images of a size each


SIZES = [(40, 100), (33, 31), (90, 50)]
"""Of the images, (height, width): 3 x 6, 2 x 2 and 5 x 3 merged tokens within the budget."""


@pytest.fixture
def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.fixture
def native(theirs, tmp_path) -> VLM:
    """The released model as a recipe would write it, out of its folder."""
    decoder = make_decoder(theirs, tmp_path)
    encoder = NativeVisionEncoder(str(tmp_path), mean=HALF, std=HALF)
    return VLM(encoder, make_projector(theirs), make_stacking(), decoder).eval().requires_grad_(False)


@torch.no_grad()
def test_images_of_a_size_each_make_the_whole_model(theirs, native, pictures):
    """From pictures to logits and generated ids: our views and its own processor, our slots and its own expansion."""
    views, least, most = NativeViews(16 * 16, 4096), 16 * 16, 4096
    made = [views(picture, native.vision_encoder.image_size) for picture in pictures]
    pieces = [views.pieces(picture.shape[:2], (16, 16)) for picture in pictures]
    assert len(set(pieces)) == 3
    seen = Views(torch.cat([pixels for pixels, _ in made]), [grid for _, grid in made], sizes=SIZES, pieces=pieces)
    layout = native.stacking.slot_layout(native.vision_encoder, native.projector)
    images = [[START, *[IMAGE] * layout((0, 0), size, each), END] for size, each in zip(SIZES, pieces, strict=True)]
    rows = [[5, 6, *images[0], 7, 8, 9, 10], [11, *images[1], 12, 13, *images[2], 14, 15]]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    attention = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    batch = Batch(ids, attention, ids == IMAGE, views=seen)

    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": least, "longest_edge": most}, patch_size=PATCH, merge_size=2,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    inputs = {"input_ids": ids, "attention_mask": attention, "mm_token_type_ids": (ids == IMAGE).int()}
    inputs |= dict(processor(pictures, return_tensors="pt"))
    assert inputs["image_grid_thw"].tolist() == [[1, rows * 2, cols * 2] for rows, cols in pieces]

    real = attention.bool()
    expected = theirs(**inputs).logits[real]
    assert expected.std() > 0.1
    torch.testing.assert_close(native(batch)[real], expected, atol=1e-5, rtol=1e-5)
    generated = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[:, length:]
    assert native.generate(batch, max_new_tokens=8).tolist() == generated.tolist()
    assert len(set(generated.flatten().tolist())) > 3
