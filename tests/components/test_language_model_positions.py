"""Decoders whose positions have several axes, against the multimodal models of transformers that they come from: the
same visual tokens, images of several shapes, several in a row, none, left padding, packing, chunks, caches, beams.
"""

from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from dslight.components import HFCausalLM
from dslight.places import TokenGrid
from dslight.types import IGNORE, Batch, VisualTokens

transformers = pytest.importorskip("transformers")

IMAGE, WIDTH = 60, 48
GRIDS = [(1, 4, 6), (1, 8, 2), (1, 4, 4), (1, 8, 2)]
"""Of patches, 2 x 2 a token: one in the first row, three in the second."""
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 256, "eos_token_id": None,
    "bos_token_id": 1, "pad_token_id": 0, "rope_parameters": {**ROPE, "mrope_section": [2, 2, 2]},
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
KINDS = ["full_attention", "sliding_attention"]
COMPASS = {
    "layer_types": [KINDS[1], KINDS[1], KINDS[1], KINDS[0]], "sliding_window": 9, "logit_scale": 0.5,
    "rope_parameters": {"sliding_attention": TEXT["rope_parameters"], "full_attention": None},
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "qwen3_vl": ("Qwen3VL", {"head_dim": 12}, 3),
    "qwen3_vl_moe": ("Qwen3VLMoe", {"head_dim": 12, **MOE}, 3),
    "qwen2_5_vl": ("Qwen2_5_VL", {}, 0),
    "cohere_compass": ("CohereCompass", COMPASS, 3),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> tuple[Any, HFCausalLM, int]:
    """Their model; ours, read from its folder; and how many levels are stacked."""
    name, text, levels = FAMILIES[request.param]
    config = getattr(transformers, f"{name}Config")(
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4,
            "spatial_merge_size": 2, "out_hidden_size": WIDTH, "num_position_embeddings": 25,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config={**TEXT, **text},
        image_token_id=IMAGE, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.15) if parameter.ndim >= 2 else parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, HFCausalLM(str(folder)).eval(), levels


def batch() -> Batch:
    """Left-padded: an image, three images, text alone."""
    images = [[IMAGE] * (h * w // 4) for _, h, w in GRIDS]
    rows = [[5, 6, *images[0], 7, 8], [*images[1], 9, 10, *images[2], 11, *images[3], 12, 13], [14, 15, 16]]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return Batch(ids, mask, ids == IMAGE)


def tokens(levels: int) -> VisualTokens:
    count = sum(h * w // 4 for _, h, w in GRIDS)
    slots = torch.randn(1 + levels, count, WIDTH, generator=torch.Generator().manual_seed(3))
    grids = tuple(TokenGrid(t, h // 2, w // 2) for t, h, w in GRIDS)
    return VisualTokens(slots, tuple(range(1, 1 + levels)), grids=grids)


def given(model: Any, batch: Batch, visual: VisualTokens) -> dict[str, Any]:
    """What their model is called with for our tokens: those of its encoder, as it takes them ready-made."""
    kinds = __import__(type(model).__module__, fromlist=["x"])
    sizes = [grid.tokens for grid in visual.grids]
    made: dict[str, Any] = {"pooler_output": visual.base.split(sizes)}
    made |= {"deepstack_features": [level.split(sizes) for level in visual.stacks]} if len(visual.stacks) else {}
    output = kinds.BaseModelOutputWithDeepstackFeatures if len(visual.stacks) else kinds.BaseModelOutputWithPooling
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "mm_token_type_ids": (batch.input_ids == IMAGE).int(),
        "image_grid_thw": torch.tensor(GRIDS),
        "mm_encoder_outputs": {"image": output(**made)},
    }


def ours(lm: HFCausalLM, batch: Batch, visual: VisualTokens, **options: Any) -> Tensor:
    return lm.generate(batch.input_ids, batch.attention_mask, batch.visual_mask, visual, **options)


@torch.no_grad()
def test_logits_are_those_of_the_whole_model(family):
    model, lm, levels = family
    made, visual = batch(), tokens(levels)
    real = made.attention_mask.bool()
    expected = model(**given(model, made, visual)).logits[real]
    assert lm.axes == 3
    found = lm(made.input_ids, made.attention_mask, made.visual_mask, visual)[real]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    plain = VisualTokens(visual.slots, visual.sites)
    assert (lm(made.input_ids, made.attention_mask, made.visual_mask, plain)[real] - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"prefill_chunk_size": 5}], ids=["greedy", "beams", "chunks"]
)
@torch.no_grad()
def test_answers_are_those_of_the_whole_model(family, options):
    model, lm, levels = family
    made, visual = batch(), tokens(levels)
    inputs = given(model, made, visual)
    plain = {name: value for name, value in options.items() if name != "prefill_chunk_size"}  # which changes nothing
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False, **plain)[:, made.input_ids.shape[1] :]
    found = ours(lm, made, visual, max_new_tokens=8, **options)
    assert found.tolist() == expected.tolist()
    assert len(set(found.flatten().tolist())) > 3


@torch.no_grad()
def test_two_generations_take_turns_with_one_model(family):
    """Nothing is kept on the model: not even the offset of a row's answer."""
    _, lm, levels = family
    made, visual = batch(), tokens(levels)
    alone = Batch(made.input_ids[2:], made.attention_mask[2:], made.visual_mask[2:])
    expected = ours(lm, made, visual, max_new_tokens=6)
    between: list[list[int]] = []

    def answer() -> None:
        between.append(ours(lm, alone, visual.none(), max_new_tokens=2).flatten().tolist())

    def meanwhile(ids: Tensor, scores: Tensor) -> Tensor:
        thread = Thread(target=answer)
        thread.start()
        thread.join()
        return scores

    found = ours(lm, made, visual, max_new_tokens=6, logits_processor=[meanwhile])
    assert found.tolist() == expected.tolist()
    assert between == [expected[2, :2].tolist()] * 6


@torch.no_grad()
def test_documents_that_share_a_row_give_the_loss_that_each_gives_alone(family):
    _, lm, levels = family
    made, visual = batch(), tokens(levels)
    rows = [row[mask.bool()] for row, mask in zip(made.input_ids, made.attention_mask, strict=True)]
    labels = torch.cat(rows)[None].clone()
    labels[labels == IMAGE] = IGNORE
    starts = torch.tensor([len(row) for row in rows]).cumsum(0)[:-1]
    labels[:, [0, *starts.tolist()]] = IGNORE
    segments = torch.cat([torch.full_like(row, number) for number, row in enumerate(rows, 1)])[None]
    ids = torch.cat(rows)[None]
    packed = Batch(ids, torch.ones_like(ids), ids == IMAGE, labels, segments=segments).located()
    apart = Batch(made.input_ids, made.attention_mask, made.visual_mask, made.input_ids.clone())
    assert apart.labels is not None
    apart.labels[(made.input_ids == IMAGE) | (made.attention_mask == 0)] = IGNORE
    first = made.attention_mask.argmax(1)
    apart.labels[torch.arange(3), first] = IGNORE
    (loss, count), (expected, number) = lm.loss(packed, visual), lm.loss(apart, visual)
    assert count == number
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    moved = VisualTokens(visual.slots, visual.sites)
    assert abs(float(lm.loss(packed, moved)[0] - expected)) > 1e-2


def test_a_narrow_copy_does_not_hide_axes():
    """Qwen3.5 turns a quarter of a head: in a tiny copy, by a single frequency, which is time's."""
    text = {name: value for name, value in TEXT.items() if name not in ("rope_parameters", "intermediate_size")}
    rope = {**TEXT["rope_parameters"], "partial_rotary_factor": 0.25}
    assert HFCausalLM(config={"model_type": "qwen3_5_text", **text, "rope_parameters": rope}).axes == 3


def test_several_axes_that_were_not_found_out_are_said():
    with pytest.warns(UserWarning, match="several axes .* was not found out; visual tokens count as text"):
        HFCausalLM(config={"model_type": "ernie4_5_vl_moe_text", **TEXT})


def test_a_decoder_of_one_axis_is_not_asked_for_more():
    lm = HFCausalLM(config={"model_type": "qwen3", **{k: v for k, v in TEXT.items() if k != "rope_parameters"}})
    assert lm.axes == 1
