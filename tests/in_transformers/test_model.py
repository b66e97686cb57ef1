"""What transformers does with an exported model: options of ``generate``, pipelines, dtypes, files, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache, pipeline

import dslight


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"prefill_chunk_size": 5},
        {"do_sample": True, "top_k": 5, "temperature": 0.7},
        {"use_cache": False},
        {"repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_options_of_generate_do_what_they_do_here(opened, options):
    torch.manual_seed(0)
    theirs = opened.model.generate(**opened.given, max_new_tokens=6, **options)
    torch.manual_seed(0)
    assert torch.equal(theirs[:, opened.prompt :], opened.said(**options))
    times = options.get("num_return_sequences", 1)
    assert torch.equal(theirs[:, : opened.prompt], opened.given["input_ids"].repeat_interleave(times, 0))


def test_generate_gives_the_object_that_is_asked_for(opened):
    out = opened.model.generate(**opened.given, max_new_tokens=6, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(out.sequences[:, opened.prompt :], opened.said())
    assert torch.equal(out.sequences[:, : opened.prompt], opened.given["input_ids"])
    assert len(out.scores) == out.sequences.shape[1] - opened.prompt


def test_a_generation_configuration_is_obeyed_and_left_as_it_is(opened):
    from copy import deepcopy

    config = deepcopy(opened.model.generation_config)
    config.max_new_tokens, config.num_beams = 4, 2
    before = config.to_dict()
    said = opened.model.generate(**opened.given, generation_config=config)
    assert torch.equal(said, opened.model.generate(**opened.given, max_new_tokens=4, num_beams=2))
    assert config.to_dict() == before


def test_a_pass_behind_a_cache_continues_the_sequence(opened):
    first, rest = dict(opened.given), torch.tensor([[5, 7, 9], [4, 8, 6]])
    cache, mask = DynamicCache(), first["attention_mask"]
    with torch.no_grad():
        opened.model(**first, past_key_values=cache, use_cache=True)
        longer = torch.cat([mask, torch.ones_like(rest)], 1)
        behind = opened.model(input_ids=rest, attention_mask=longer, past_key_values=cache, use_cache=True).logits
        ids = torch.cat([first["input_ids"], rest], 1)
        whole = opened.model(**{**first, "input_ids": ids, "attention_mask": longer}).logits
    torch.testing.assert_close(behind, whole[:, -3:], atol=1e-4, rtol=0)


def test_an_image_in_a_later_turn_enters_behind_the_cache(opened):
    text, later = opened.processor(text="A1"), opened.processor(images=opened.picture, text="<image>B2")
    ids = torch.cat([text["input_ids"], later["input_ids"]], 1)
    views = {name: later[name] for name in ("pixel_values", "image_grids", "image_sizes")}
    cache = DynamicCache()
    with torch.no_grad():
        opened.model(**text, past_key_values=cache, use_cache=True)
        mask = torch.ones_like(ids)
        behind = opened.model(**views, input_ids=later["input_ids"], attention_mask=mask, past_key_values=cache).logits
        whole = opened.model(**views, input_ids=ids).logits
    torch.testing.assert_close(behind, whole[:, text["input_ids"].shape[1] :], atol=1e-4, rtol=0)


def test_hidden_states_and_the_last_logits_alone_can_be_had(opened):
    with torch.no_grad():
        out = opened.model(**opened.given, output_hidden_states=True)
        last = opened.model(**opened.given, logits_to_keep=1).logits
        whole = opened.model(**opened.given).logits
    assert len(out.hidden_states) == 7
    real = opened.given["attention_mask"].bool()
    torch.testing.assert_close(out.logits[real], whole[real], atol=1e-4, rtol=0)
    assert torch.equal(last, whole[:, -1:])


def test_a_pipeline_answers_as_we_do(opened):
    pipe: Any = pipeline("image-text-to-text", model=opened.model, processor=opened.processor)
    talk = [
        {
            "role": "user",
            "content": [{"type": "image", "image": opened.picture}, {"type": "text", "text": "B2"}],
        }
    ]
    options = {"max_new_tokens": 6, "return_full_text": False}
    ours = opened.ours.answer("B2", opened.picture, max_new_tokens=6)
    assert pipe(text=talk, **options)[0]["generated_text"].strip() == ours
    several = pipe(text=[talk, talk, talk], batch_size=2, **options)
    assert [each[0]["generated_text"].strip() for each in several] == [ours] * 3


@pytest.mark.parametrize("options", [{}, {"device_map": "cpu"}, {"device_map": "auto"}], ids=str)
def test_a_dtype_rounds_the_weights_and_nothing_else(opened, options):
    half = AutoModelForImageTextToText.from_pretrained(opened.folder, dtype=torch.bfloat16, **options)
    ours = dict(opened.ours.named_parameters())
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, ours[name.removeprefix("vlm.")].bfloat16()), name
    frequencies = dict(half.named_buffers())["vlm.language_model.model.model.rotary_emb.inv_freq"]
    theirs = dict(opened.ours.named_buffers())["language_model.model.model.rotary_emb.inv_freq"]
    assert torch.equal(frequencies, theirs)
    assert half.generate(**opened.given, max_new_tokens=3).shape[1] == opened.prompt + 3


def test_what_save_pretrained_writes_opens_again_here_and_there(opened, tmp_path):
    opened.model.save_pretrained(tmp_path)
    opened.processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    before = opened.ours.state_dict()
    assert all(torch.equal(before[name.removeprefix("vlm.")], value) for name, value in again.state_dict().items())
    assert AutoProcessor.from_pretrained(tmp_path).settings == opened.processor.settings
    loaded = dslight.load(tmp_path)
    assert loaded.answer("B2", opened.picture) == opened.ours.answer("B2", opened.picture)


# --- refused --------------------------------------------------------------------------------------------------------


def changed(folder: Path, out: Path, at: str, key: list[str], value: Any) -> Path:
    shutil.copytree(folder, out)
    content = node = json.loads((out / at).read_text())
    for name in key[:-1]:
        node = node.setdefault(name, {})
    node[key[-1]] = value
    (out / at).write_text(json.dumps(content))
    return out


LM = ["recipe", "model", "language_model"]


@pytest.mark.parametrize(
    ("at", "key", "value", "message"),
    [
        (
            "config.json",
            [*LM, "class_path"],
            "antigravity.Model",
            "model.language_model.class_path is antigravity.Model",
        ),
        ("config.json", [*LM, "init_args", "trust_remote_code"], True, "asks for code to be run"),
        ("config.json", [*LM, "init_args", "pretrained"], "someone/else", "pretrained is 'someone/else'"),
        ("config.json", ["recipe"], None, "has no recipe of a model"),
        ("processor_config.json", ["settings", "data", "views", "class_path"], "antigravity.V", "is antigravity.V"),
        ("processor_config.json", ["settings"], None, "has no settings"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_that_names_what_it_may_not_is_refused(opened, tmp_path, at, key, value, message):
    out = changed(opened.folder, tmp_path / "out", at, key, value)
    with pytest.raises(ValueError, match=message):  # noqa: PT012 - the processor reads its settings when it is used
        if at == "config.json":
            AutoModelForImageTextToText.from_pretrained(out)
        AutoProcessor.from_pretrained(out)(text="A1")


def test_a_lost_tensor_is_named_not_drawn_at_random(opened, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(opened.folder, out)
    tensors = load_file(out / "model.safetensors")
    lost = "vlm.projector.net.0.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, out / "model.safetensors")
    with pytest.raises(ValueError, match=lost):
        AutoModelForImageTextToText.from_pretrained(out)


def test_images_and_their_places_have_to_go_together(opened):
    given, processor = dict(opened.given), opened.processor
    with pytest.raises(ValueError, match="pixel_values: missing; 32 positions"):
        opened.model(input_ids=given["input_ids"])
    with pytest.raises(ValueError, match="32 positions hold the image token 3, the images of pixel_values fill 16"):
        opened.model(
            **given | dict(processor(images=opened.picture, text="<image>")) | {"input_ids": given["input_ids"]}
        )
    with pytest.raises(ValueError, match="pixel_values: uint8 views"):
        opened.model(**given | {"pixel_values": given["pixel_values"].float()})
    with pytest.raises(ValueError, match="input_ids: missing"):
        opened.model(inputs_embeds=torch.zeros(1, 2, 32))
    with pytest.raises(NotImplementedError, match="the vocabulary is the recipe's"):
        opened.model.resize_token_embeddings(70)


def test_layers_are_kept_whole_where_a_model_is_spread_over_devices(opened):
    assert opened.model._no_split_modules == {"Block", "LlamaDecoderLayer"}
