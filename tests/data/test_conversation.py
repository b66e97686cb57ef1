"""Templates on the quickstart's tokenizer, where every id can be read off."""

import copy

import numpy as np
import pytest
import transformers

from dslight.data.conversation import IMAGE, TEMPLATES, template
from dslight.data.sample import BadSample, Turn
from dslight.types import IGNORE

CHAT = [Turn("human", "<image>\nA1"), Turn("gpt", "7"), Turn("human", "B2"), Turn("gpt", "0")]


def words(ids: list[int], tokenizer) -> list[str]:
    return [{IMAGE: "[image]", IGNORE: "."}.get(i) or tokenizer.convert_ids_to_tokens(i) for i in ids]


def test_bare_writes_question_and_answer_in_turn_and_supervises_answers_and_the_end(tokenizer):
    encoded = template("bare").encode(CHAT, tokenizer)
    assert words(encoded.ids, tokenizer) == ["[image]", "A1", "7", "B2", "0", "<eos>"]
    assert words(encoded.labels, tokenizer) == [".", ".", "7", ".", "0", "<eos>"]
    assert encoded.supervised == 3


def test_a_prompt_ends_where_the_answer_begins(tokenizer):
    assert words(template("bare").prompt("A1", 1, tokenizer), tokenizer) == ["[image]", "A1"]
    assert words(template("bare").prompt("A1", 0, tokenizer), tokenizer) == ["A1"]
    assert words(template("bare").prompt("A1", 2, tokenizer), tokenizer) == ["[image]", "[image]", "A1"]


def test_several_images_stay_where_the_text_has_them(tokenizer):
    turns = [Turn("human", "A1 <image> B1 <image>"), Turn("gpt", "1")]
    ids = template("bare").encode(turns, tokenizer).ids
    assert words(ids, tokenizer) == ["A1", "[image]", "B1", "[image]", "1", "<eos>"]


def test_one_image_goes_to_the_front_of_its_turn(tokenizer):
    turns = [Turn("human", "A1 <image> B1"), Turn("gpt", "1")]
    assert words(template("bare").encode(turns, tokenizer).ids, tokenizer)[:3] == ["[image]", "A1", "B1"]


def test_plain_refuses_what_it_cannot_write(tokenizer):
    with pytest.raises(BadSample, match="template plain: needs an image and one caption, got 4 turns"):
        template("plain").encode(CHAT, tokenizer)
    with pytest.raises(BadSample, match="template plain"):
        template("plain").encode([Turn("human", "A1"), Turn("gpt", "1")], tokenizer)


def test_generation_stops_at_the_end_of_an_answer(tokenizer):
    assert template("bare").stop_ids(tokenizer) == [tokenizer.eos_token_id]


def test_llavas_own_entries_are_taken_as_they_are(tokenizer):
    entries = [{"from": turn.role, "value": turn.text} for turn in CHAT]
    assert template("bare").encode(entries, tokenizer) == template("bare").encode(CHAT, tokenizer)


def test_an_unknown_template_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="'vicuna' is none of plain, bare, vicuna_v1"):
        template("vicuna")  # pyright: ignore[reportArgumentType]
    assert set(TEMPLATES) == {"plain", "bare", "vicuna_v1", "llama_2", "phi3", "chatml", "tokenizer"}


def test_a_chat_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] if loop.last or m['role'] == 'user' else '...' }} {% endfor %}"
    )
    with pytest.raises(BadSample, match="rewrites earlier text at turn 2"):
        template("tokenizer").encode(CHAT, tokenizer)


def test_truncation_that_a_tokenizer_was_saved_with_is_not_applied(tokenizer):
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    cut = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    assert template("bare").encode(CHAT, cut).ids == template("bare").encode(CHAT, tokenizer).ids


CHATML = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


@pytest.fixture
def with_chat_template(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"plain"}))
def test_an_answer_that_is_not_to_be_learnt_is_read_but_not_supervised(name, with_chat_template):
    turns = [CHAT[0], CHAT[1]._replace(weight=0), *CHAT[2:]]
    full, masked = (template(name).pieces(each, with_chat_template, True) for each in (CHAT, turns))
    assert "".join(piece.text for piece in masked) == "".join(piece.text for piece in full)
    first, second = [piece.text for piece in full if piece.supervised]
    assert "7" in first
    assert [piece.text for piece in masked if piece.supervised] == [second]


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"plain"}))
def test_the_tokens_of_an_answer_have_its_weight_and_all_others_none(name, with_chat_template):
    turns = [CHAT[0], CHAT[1]._replace(weight=0.25), CHAT[2], CHAT[3]._replace(weight=3)]
    encoded, plain = (template(name).encode(each, with_chat_template) for each in (turns, CHAT))
    assert (encoded.ids, encoded.labels, plain.weights) == (plain.ids, plain.labels, None)
    assert encoded.weights is not None
    assert encoded.weights.dtype == np.float32
    pieces = [piece for piece in template(name).pieces(CHAT, with_chat_template, True) if piece.supervised]
    counts = [len(with_chat_template(piece.text, add_special_tokens=False).input_ids) for piece in pieces]
    assert [w for w in encoded.weights if w] == [0.25] * counts[0] + [3] * counts[1]
    assert ((encoded.weights > 0) == (np.array(encoded.labels) != IGNORE)).all()


def test_a_caption_has_its_weight(tokenizer):
    encoded = template("plain").encode([CHAT[0], CHAT[1]._replace(weight=2)], tokenizer)
    assert encoded.weights is not None
    assert set(encoded.weights[np.array(encoded.labels) != IGNORE]) == {2}


def test_a_caption_that_is_not_to_be_learnt_teaches_nothing(tokenizer):
    assert template("plain").encode([CHAT[0], CHAT[1]._replace(weight=0)], tokenizer).supervised == 0


def test_the_word_image_in_an_answer_stays_where_it_is(with_chat_template):
    turns = [CHAT[0], Turn("gpt", "7 <image> 0")]
    pieces = template("tokenizer").pieces(turns, with_chat_template, True)
    assert [piece.text for piece in pieces if piece.supervised] == ["7 <image> 0 <eos>"]
    assert sum(piece.image for piece in pieces) == 1


SYSTEM = [Turn("system", "A1"), Turn("human", "<image>\nB2"), Turn("gpt", "7")]
WITH_SYSTEM = {
    "chatml": "<|im_start|>system\nA1<|im_end|><|im_start|>user\n<image>\nB2<|im_end|>",
    "vicuna_v1": "A1 USER: <image>\nB2 ",
    "llama_2": "[INST] <<SYS>>\nA1\n<</SYS>>\n\n<image>\nB2 [/INST]",
    "phi3": "<|system|>\nA1<|end|>\n<|user|>\n<image>\nB2<|end|>\n",
    "bare": "A1 <image>B2",
    "plain": "<image>7\n",
    "tokenizer": "system A1 <eos> user <image>\nB2 <eos> ",
}


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_a_system_text_stands_in_the_place_that_the_template_has_for_it(name, with_chat_template):
    pieces = template(name).pieces(SYSTEM, with_chat_template, True)
    assert "".join(piece.text for piece in pieces).startswith(WITH_SYSTEM[name])
    assert [piece.text[:2].strip() for piece in pieces if piece.supervised] in (["7"], ["7<"])


def test_thinking_is_of_the_tokenizers_own_template():
    with pytest.raises(
        ValueError, match=r"data\.thinking: false, which only data\.template: tokenizer has, not chatml"
    ):
        template("chatml", False)


def test_a_mark_around_images_is_no_image():
    with pytest.raises(ValueError, match=r"data\.image_marks: \['<image>', ''\]; <image> stands for an image itself"):
        template("bare", image_marks=("<image>", ""))
