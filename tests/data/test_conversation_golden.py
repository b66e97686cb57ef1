"""Ids and labels against the official LLaVA code; where that code masks wrongly, what ours does instead is stated by
name."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dslight.data.conversation import IMAGE, template
from dslight.data.sample import IMAGE_TOKEN, Turn
from dslight.types import IGNORE

pytestmark = pytest.mark.golden_labels

COMMITTED = Path(__file__).parents[1] / "golden" / "llava_labels"
ROOT = Path(os.environ.get("DSLIGHT_LABEL_GOLDENS", COMMITTED))
CASES = {
    "v1": ("vicuna_v1", "llama_legacy"),
    "v1_nonlegacy": ("vicuna_v1", "llama_nonlegacy"),
    "plain": ("plain", "llama_legacy"),
    "llama_2": ("llama_2", "llama_legacy"),
    "llama_2_nonlegacy": ("llama_2", "llama_nonlegacy"),
    "phi3": ("phi3", "phi3"),
    "next_mpt_nonlegacy": ("chatml", "llama_chatml_nonlegacy"),
}
QWEN = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


COMPARABLE = {
    *("single_image_start", "single_image_middle", "single_image_end", "multi_image_start", "multi_image_end"),
    *("images_in_two_turns", "image_in_later_turn", "image_flag_no_token", "token_no_image_flag", "pretrain_pair"),
    *("pretrain_odd", "text_single", "text_multi", "very_long", "unicode", "numbers_code", "odd_answer_start"),
    *("leading_spaces", "trailing_spaces", "newlines", "empty_question", "gpt_first"),
}
"""The categories of conversations that the official code masks right, be it not in every row. In the others (images of
one turn, an image in an answer, an empty last answer, markers of the template in the text, ...) a folder may hold none.
"""


def not_compared(rows: list[dict], compared: list[dict]) -> set[str]:
    """The categories among the ``rows`` that have to be comparable, and of which none was compared."""
    return (COMPARABLE & {row["category"] for row in rows}) - {row["category"] for row in compared}


def load_tokenizer(name: str):
    loader = PreTrainedTokenizerFast if name == "llama_legacy" else AutoTokenizer
    return loader.from_pretrained(ROOT / "tokenizers" / name)


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / f"{name}.jsonl").read_text().splitlines()]


def turns_of(row: dict) -> list[Turn]:
    turns = [Turn(turn["from"], turn["value"]) for turn in row["conversations"]]
    return turns[1:] if turns[0].role == "gpt" else turns


def encode(row: dict, name: str, tokenizer):
    images = None if row["has_image"] or name == "plain" else 0
    return template(name).encode(turns_of(row), tokenizer, images)


def why_official_is_not_followed(row: dict, file: str) -> str:
    turns = turns_of(row)
    if row["mismatch"]:
        return "all labels masked"
    if any(turn.text.count(IMAGE_TOKEN) > 1 for turn in turns):
        return "images of a turn merged"
    if row["has_image"] and any(turn.role == "gpt" and IMAGE_TOKEN in turn.text for turn in turns):
        return "image inside an answer"
    if not row["has_image"] and len(row["input_ids"]) == 2048:
        return "cut by the tokenizer"
    after = [turn.text.removeprefix(f"{IMAGE_TOKEN}\n") for turn in turns if turn.text.startswith(f"{IMAGE_TOKEN}\n")]
    if file.startswith("next_") and any(text != text.strip() for text in after):
        return "whitespace after a leading image kept"
    return ""


@pytest.mark.parametrize("file", CASES)
def test_ids_and_labels_are_those_of_the_official_code(file):
    name, tokenizer = CASES[file][0], load_tokenizer(CASES[file][1])
    compared = []
    for row in rows(file):
        if why_official_is_not_followed(row, file):
            continue
        ours = encode(row, name, tokenizer)
        assert ours.ids == row["input_ids"], row["id"]
        assert ours.labels == row["labels"], row["id"]
        compared.append(row)
    assert COMPARABLE & {row["category"] for row in compared}
    assert not not_compared(rows(file), compared)


def test_a_category_is_missed_when_none_of_its_rows_was_compared_however_many_others_were():
    text, masked, one, other = (
        {"category": name} for name in ("text_single", "literal_roles", "very_long", "very_long")
    )
    assert not_compared([text, one, other, masked, masked], [text, one]) == set()
    assert not_compared([*[text] * 80, one, other], [text] * 80) == {"very_long"}


@pytest.mark.parametrize("file", [*CASES, "next_qwen", "next_llama_3"])
def test_the_committed_folder_holds_the_categories_that_have_to_be_comparable(file):
    lines = (COMMITTED / f"{file}.jsonl").read_text().splitlines()
    pairs = {"pretrain_pair", "pretrain_odd", "single_image_start", "token_no_image_flag", "unicode", "newlines"}
    expected = pairs if file == "plain" else COMPARABLE  # the plain template takes a question and an answer only
    assert expected <= {json.loads(line)["category"] for line in lines}


def supervised_text(encoded, tokenizer) -> str:
    return tokenizer.decode([label for label in encoded.labels if label != IGNORE])


def letters(text: str) -> str:
    """Without whitespace, which decoding does not keep, and in one of the two Unicode spellings (Qwen's normalises)."""
    return "".join(unicodedata.normalize("NFC", text).split())


@pytest.mark.parametrize("file", ["v1", "llama_2", "phi3", "next_mpt_nonlegacy"])
def test_where_the_official_code_masks_a_whole_chat_ours_supervises_its_answers(file):
    name, tokenizer = CASES[file][0], load_tokenizer(CASES[file][1])
    end = tokenizer.decode([template(name).stop_ids(tokenizer)[0]])
    masked = [row for row in rows(file) if row["mismatch"]]
    assert masked
    for row in masked:
        assert set(row["labels"]) == {IGNORE}
        answers = [turn.text + end for turn in turns_of(row) if turn.role == "gpt" and turn.text]
        text = supervised_text(encode(row, name, tokenizer), tokenizer)
        assert letters(text) == letters("".join(answers)), row["id"]


def test_where_the_official_code_merges_the_images_of_a_turn_ours_keeps_each():
    tokenizer = load_tokenizer("llama_legacy")
    merged = [row for row in rows("v1") if why_official_is_not_followed(row, "v1") == "images of a turn merged"]
    assert merged
    for row in merged:
        marks = sum(turn.text.count(IMAGE_TOKEN) for turn in turns_of(row))
        assert row["input_ids"].count(IMAGE) < marks
        assert encode(row, "vicuna_v1", tokenizer).ids.count(IMAGE) == marks


def test_where_the_official_code_puts_an_image_into_an_answer_ours_keeps_the_word():
    tokenizer = load_tokenizer("llama_legacy")
    inside = [row for row in rows("v1") if why_official_is_not_followed(row, "v1") == "image inside an answer"]
    assert inside
    for row in inside:
        ours = encode(row, "vicuna_v1", tokenizer)
        human = sum(turn.text.count(IMAGE_TOKEN) for turn in turns_of(row) if turn.role == "human")
        assert ours.ids.count(IMAGE) == human < row["input_ids"].count(IMAGE)
        assert IMAGE not in ours.labels


@pytest.mark.parametrize("file", CASES)
def test_the_prompt_of_a_question_is_how_its_training_text_begins(file):
    name, tokenizer = CASES[file][0], load_tokenizer(CASES[file][1])
    checked = []
    for row in rows(file):
        turns = turns_of(row)
        if turns[0].text.count(IMAGE_TOKEN) > 1 or not turns[0].text:
            continue
        images = int(IMAGE_TOKEN in turns[0].text and (row["has_image"] or name == "plain"))
        prompt = template(name).prompt(turns[0].text, images, tokenizer)
        ids = encode(row, name, tokenizer).ids
        assert ids[: len(prompt)] == prompt, row["id"]
        checked.append(row)
    assert not not_compared(rows(file), checked)


@pytest.mark.parametrize(
    ("file", "folder", "end"), [("next_qwen", "qwen", "<|im_end|>"), ("next_llama_3", "llama_3", "<|eot_id|>")]
)
def test_the_tokenizers_own_template_gives_the_official_ids_and_supervises_answers_only(file, folder, end):
    """The official code also supervises role markers of the user; ours does not. LLaVA's system text is not in the
    template."""
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = tokenizer.chat_template or QWEN
    compared = []
    for row in rows(file):
        turns = turns_of(row)
        if why_official_is_not_followed(row, file) or len(turns) % 2 or not all(turn.text for turn in turns):
            continue
        ours = encode(row, "tokenizer", tokenizer)
        ids = ours.ids[1:]  # without the first token, which the official system text follows
        assert row["input_ids"][-len(ids) :] == ids, row["id"]
        theirs = [label for label in row["labels"] if label != IGNORE]
        assert len([label for label in ours.labels if label != IGNORE]) < len(theirs)
        answers = "".join(turn.text + end for turn in turns if turn.role == "gpt")
        text = supervised_text(ours, tokenizer)
        assert letters(text) == letters(answers), row["id"]
        compared.append(row)
    assert not not_compared(rows(file), compared)
    assert tokenizer.decode([template("tokenizer").stop_ids(tokenizer)[0]]) == end
