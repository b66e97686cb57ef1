"""The processor: conversations as training wrote them, pictures however they are named, slips as sentences."""

from __future__ import annotations

import base64
import io
import json
import shutil

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

import dslight
from dslight.data.conversation import template
from dslight.data.datamodule import ShardData
from dslight.data.sample import Turn
from dslight.in_transformers.processor import DslightProcessor
from dslight.in_transformers.settings import image_token_of, processor_of, settings_of
from dslight.layout import SlotLayout

TALK = [
    {"role": "system", "content": "S1"},
    {"role": "user", "content": [{"type": "text", "text": "A1"}]},
    {"role": "assistant", "content": "7"},
    {"role": "user", "content": "B2"},
]


@pytest.mark.parametrize("name", ["bare", "vicuna_v1", "llama_2", "phi3", "chatml"])
def test_every_template_writes_what_training_wrote(opened, name):
    settings = {**opened.processor.settings, "data": {**opened.processor.settings["data"], "template": name}}
    processor = DslightProcessor(opened.processor.tokenizer, settings)
    turns = [Turn("system", "S1"), Turn("human", "A1"), Turn("gpt", "7"), Turn("human", "B2")]
    pieces = template(name).pieces(turns, processor.tokenizer, False)
    assert processor.apply_chat_template(TALK, add_generation_prompt=True) == "".join(p.text for p in pieces)
    ids = processor.apply_chat_template(TALK, add_generation_prompt=True, tokenize=True)
    assert ids[0].tolist() == list(template(name).encode(turns, processor.tokenizer, 0).ids)
    continued = processor.apply_chat_template(TALK[:3], continue_final_message=True)
    assert continued.endswith("7")
    assert "".join(p.text for p in template(name).pieces(turns[:3], processor.tokenizer, False)).startswith(continued)


def test_an_image_has_the_marks_around_it_that_training_gave_it(opened):
    data = {**opened.processor.settings["data"], "image_marks": ["7", "8 "]}
    processor = DslightProcessor(opened.processor.tokenizer, {**opened.processor.settings, "data": data})
    talk = [{"role": "user", "content": [{"type": "image", "image": opened.picture}, {"type": "text", "text": "B2"}]}]
    ids = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)[0]
    asked = processor.ours.ask("B2", opened.picture)
    assert ids.tolist() == asked.input_ids.masked_fill(asked.visual_mask, processor.image_token_id)[0].tolist()
    plain = opened.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)[0]
    assert len(ids) == len(plain) + 2
    written = processor.apply_chat_template(talk, add_generation_prompt=True)
    assert "7<image>8 " in written
    assert processor(images=opened.picture, text=written)["input_ids"][0].tolist() == ids.tolist()


def test_a_picture_may_be_named_in_every_way(opened, tmp_path):
    file, held = tmp_path / "a.png", io.BytesIO()
    opened.picture.save(file)
    opened.picture.save(held, "PNG")
    text = base64.b64encode(held.getvalue()).decode()
    parts = [
        {"type": "image", "image": opened.picture},
        {"type": "image", "path": str(file)},
        {"type": "image", "url": str(file)},
        {"type": "image", "base64": text},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
    ]
    talks = [[{"role": "user", "content": [part, {"type": "text", "text": "B2"}]}] for part in parts]
    made = opened.processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True)
    pixels = made["pixel_values"].unflatten(0, (len(parts), -1))
    assert all(torch.equal(each, pixels[0]) for each in pixels)
    assert torch.equal(pixels[0], opened.ours.processor.ask("B2", opened.picture).views.pixels)
    written = opened.processor.apply_chat_template(talks, add_generation_prompt=True)
    assert torch.equal(opened.processor(images=[opened.picture] * 5, text=written)["input_ids"], made["input_ids"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, i: p(images=i, text="A1"), "1 pictures, and the texts have places for 0"),
        (lambda p, i: p(images=[[i], [i], [i]], text=["A1", "B2"]), "3 lists for 2 texts"),
        (lambda p, i: p(images=i), "text: missing"),
        (lambda p, i: p(images="nowhere.png", text="<image>"), "there is no file nowhere.png"),
        (lambda p, i: p(images="data:image/png;base64,?", text="<image>"), "base64 cannot be read"),
        (lambda p, i: p(text="A1", return_tensors="tf"), "return_tensors: 'tf'"),
        (lambda p, i: p.apply_chat_template([{"role": "tool", "content": ""}]), "role: 'tool'"),
        (lambda p, i: p.apply_chat_template(TALK), "add_generation_prompt: a conversation that ends with a question"),
        (lambda p, i: p.apply_chat_template(TALK, "{{ x }}"), "the template that the model was trained with"),
        (
            lambda p, i: p.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}]),
            "a part of the type 'video'",
        ),
    ],
)
def test_a_slip_is_a_sentence(opened, call, message):
    with pytest.raises(ValueError, match=message):
        call(opened.processor, opened.picture)


def test_a_tokenizer_without_the_mark_leaves_the_vocabulary_alone(opened, pages, tmp_path):
    shutil.copytree(pages / "tokenizer", tmp_path / "t")
    for file in (tmp_path / "t").iterdir():
        file.write_text(file.read_text().replace("<image>", "<mark>"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert "<image>" not in tokenizer.get_vocab()
    assert image_token_of(tokenizer, 64) == 64
    settings = {**opened.processor.settings, "image_token_id": 64}
    made = DslightProcessor(tokenizer, settings)
    given = made(images=opened.picture, text="<image>A1")
    assert int((given["input_ids"] == 64).sum()) == 16
    made.save_pretrained(tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(images=opened.picture, text="<image>A1")["input_ids"], given["input_ids"])


def test_a_processor_read_again_has_every_setting(opened):
    """Also those that no model here has."""
    tokenizer = opened.processor.tokenizer
    data = ShardData(
        views=dslight.NativeViews(max_pixels=5000), template="bare", max_length=77,
        pixels="pillow", exif="ignore", alpha="drop",
    )  # fmt: skip
    data.connect(tokenizer, (8, 16), SlotLayout((1, 2), native=True))
    settings = json.loads(json.dumps(settings_of(data.processor, 9)))
    again = processor_of(settings, tokenizer)
    assert settings["image_token_id"] == 9
    assert (again.slots, again.max_length) == (SlotLayout((1, 2), native=True), 77)
    assert (again.rows.pixels, again.rows.exif, again.rows.alpha) == ("pillow", "ignore", "drop")
    assert again.rows.image_size == (8, 16)
    assert isinstance(again.rows.views, dslight.NativeViews)
    assert again.rows.views.max_pixels == 5000
