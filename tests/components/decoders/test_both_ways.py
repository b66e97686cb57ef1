"""Attention in both directions, against transformers' own Gemma 3 and PaliGemma 2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import dslight
from benchmarks.parity import CASES, PAD, TEXT, batch, checkpoint
from dslight.checkpoints.write import write_tensors
from dslight.components.decoders import prefix
from dslight.components.decoders.both_ways import blocks_of
from dslight.in_transformers.write import write_own
from dslight.run.release import import_release
from dslight.types import IGNORE, VisualTokens

GEMMA, PALIGEMMA = "gemma3", "paligemma (2: Gemma 2, sliding windows)"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, tuple[Any, Any]]:
    """By name, transformers' model and ours."""
    made = {}
    for name in (GEMMA, PALIGEMMA):
        folder = tmp_path_factory.mktemp("both_ways")
        theirs = checkpoint(CASES[name], folder / "released")
        import_release(str(folder / "released"), folder / "imported")
        made[name] = theirs, dslight.load(folder / "imported", device="cpu").eval()
    return made


def test_blocks_are_images_or_what_is_asked():
    seen = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 0]]).bool()
    asked = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 1, 0]]).bool()
    documents = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 2, 2, 2]])
    assert blocks_of("images", seen, None, None).tolist() == [[-1, 0, 0, -1, 1], [0, 0, 0, 0, -1]]
    assert blocks_of("images", seen, None, documents)[1].tolist() == [0, 0, 1, 1, -1]
    assert blocks_of("prompt", seen, asked, None)[0].tolist() == [0, 0, 0, -1, -1]
    assert blocks_of("prompt", seen, asked, documents)[1].tolist() == [1, -1, -1, 2, -1]


@torch.no_grad()
@pytest.mark.parametrize("name", [GEMMA, PALIGEMMA])
def test_what_a_causal_decoder_says_is_something_else(pairs, name):
    ours = pairs[name][1]
    made = batch(ours)
    lm, right = ours.language_model, ours(made)
    seen, lm.bidirectional = lm.bidirectional, "none"
    causal = ours(made)
    lm.bidirectional = seen
    moved = (right - causal).abs().amax(-1)
    assert moved[:2].amax(1).min() > 0.1
    assert (moved[2].max() > 0.1) == (name == PALIGEMMA)  # a row of text alone


@torch.no_grad()
def test_a_labelled_answer_is_seen_as_a_suffix_is(pairs):
    """In training, PaliGemma's prefix ends where the first answer begins."""
    theirs, ours = pairs[PALIGEMMA]
    made = batch(ours)
    labels = made.input_ids.clone()
    labels[:, :-3] = IGNORE
    taught = replace(made, labels=labels)
    assert taught.views is not None
    given = {"input_ids": made.input_ids, "attention_mask": made.attention_mask}
    given |= {"pixel_values": ours.vision_encoder.normalise(taught.views.pixels)}
    given |= {"position_ids": (made.attention_mask.cumsum(-1) - 1).clamp(min=0)}
    real = made.attention_mask.bool()
    expected = theirs(**given, token_type_ids=(labels != IGNORE).int()).logits
    torch.testing.assert_close(ours(taught)[real], expected[real], atol=1e-5, rtol=0)
    assert (ours(made)[real] - expected[real]).abs().max() > 0.1
    total, count = ours.loss(taught)
    wanted = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    assert int(count) == 9
    torch.testing.assert_close(total, wanted, atol=1e-3, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", [GEMMA, PALIGEMMA])
def test_documents_of_a_packed_row_see_themselves_alone(pairs, name):
    ours = pairs[name][1]
    made = batch(ours)
    labels = made.input_ids.clone()
    labels[:, :-3] = IGNORE
    real = made.attention_mask.bool()
    numbers = torch.arange(1, 4)[:, None].expand_as(made.input_ids)
    alone = ours(replace(made, labels=labels))[real]
    packed = replace(
        made,
        input_ids=made.input_ids[real][None],
        attention_mask=made.attention_mask[real][None],
        visual_mask=made.visual_mask[real][None],
        labels=labels[real][None],
        segments=numbers[real][None],
    )
    torch.testing.assert_close(ours(packed)[0], alone, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", [GEMMA, PALIGEMMA])
def test_beams_and_a_cache_of_fixed_size_answer_as_theirs(pairs, name):
    theirs, ours = pairs[name]
    made = batch(ours)
    assert made.views is not None
    given = {"input_ids": made.input_ids, "attention_mask": made.attention_mask}
    given |= {"pixel_values": ours.vision_encoder.normalise(made.views.pixels)}
    given |= {"token_type_ids": made.visual_mask.int() * (name == GEMMA)}
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": PAD}
    for theirs_too, more in (True, {"num_beams": 2}), (name == GEMMA, {"cache_implementation": "static"}):
        # transformers' PaliGemma 2 cannot take the masks that it makes for a cache of fixed size
        said = theirs.generate(**given, **options, **(more if theirs_too else {}), disable_compile=True)
        found = ours.generate(made, **options, **more, disable_compile=True)
        assert found.tolist() == said[:, made.input_ids.shape[1] :].tolist(), more


@torch.no_grad()
def test_an_image_is_read_once_for_several_questions_and_a_prompt_is_not():
    """What is seen in both directions is whole in a beginning that ends behind its image."""
    torch.manual_seed(0)
    config = {"model_type": "llama", **TEXT, "initializer_range": 0.3}
    lm = dslight.HFCausalLM(config=config, bidirectional="images")
    assert lm.shares_beginnings
    ids = torch.randint(20, 90, (2, 12))
    ids[1, :8] = ids[0, :8]
    mask, seen = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    seen[:, 2:7] = True
    found = prefix.beginnings(ids, mask, seen, [0, 0])
    assert found is not None
    one = torch.randn(1, 5, lm.width)
    written = lm.write([lm.read(ids, mask, seen, VisualTokens(one), found)], max_new_tokens=5)
    both = VisualTokens(one.repeat(1, 2, 1))
    assert written.tolist() == lm.generate(ids, mask, seen, both, max_new_tokens=5).tolist()
    lm.bidirectional = "prompt"
    assert not lm.shares_beginnings


@torch.no_grad()
def test_an_export_sees_both_ways_too(pairs, tmp_path):
    """Text alone as well, for which nothing is injected."""
    theirs, ours = pairs[PALIGEMMA]
    write_own(ours, ours.processor, ours.to_recipe(), tmp_path)
    write_tensors({f"vlm.{name}": one for name, one in ours.state_dict().items()}, tmp_path, "5GB")
    again: Any = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[1, 20, 30, 40, 50, 60]])
    expected = theirs(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits
    torch.testing.assert_close(again(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(again(input_ids=ids, use_cache=True).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 20}, "mamba: layers of"),
        (
            {"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 2, "vocab_size": 20},
            "bloom: its positions",
        ),
    ],
)
def test_a_decoder_whose_masks_cannot_be_exchanged_is_refused(config, message):
    with pytest.raises(ValueError, match=f"^bidirectional: images: {message}"):
        dslight.HFCausalLM(config={**config, "hidden_size": 32, "vocab_size": 20}, bidirectional="images")
