"""Ids by words are those that the tokenizers library gives for the whole text, and where each begins."""

import random
import re
from pydoc_data.topics import topics

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dslight.data.conversation import template
from dslight.data.sample import Turn
from dslight.data.templates.words import Words, words_of

CORPUS = list(topics.values())[:40]
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Their tokenizer.json's."""


def trained(pattern=None, trim=False, normalizer=None, **cut):
    made = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = pattern and pre_tokenizers.Split(Regex(pattern), **{"behavior": "isolated", **cut})
    made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level]) if split else byte_level
    made.decoder, made.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=trim)
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<s>", "</s>", "<|im_start|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(CORPUS, trainer)
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    return made


MADE = {
    "gpt2": lambda: trained(),
    "qwen2": lambda: trained(QWEN2, normalizer=normalizers.NFC()),
    "llama3": lambda: trained(LLAMA3),
    "o200k": lambda: trained(O200K),
}


def texts():
    """Prose, code, and anything that can be typed, with added tokens, quotes and spaces of all kinds."""
    rng = random.Random(0)
    parts = [
        *" \n\t\r.,'/(<-0159aZ_",
        "  ",
        "\n\n",
        "'s",
        "'LL ",
        "12345",
        "</s>",
        "<|im_start|>",
        "<tool>",
        "</s",
        "x",
    ]
    parts += ["word", " Word", "CamelCase", "\u00e9", "\u201c", "\u0130", "\x0b", "\x1c", "\u3000", "\u0663", "\u4e2d"]
    parts += [
        " \u201cquoted\u201d ",
        " caf\u00e9",
        "na\u00efve ",
        " 5\u20ac",
        "e\u0301",
        " \u2014 ",
        "\u200b",
        "\u00ad",
    ]
    yield from ("", " ", "  ", "\n", "</s>", " </s> ", "a</s></s>b")
    for _ in range(1500):
        yield "".join(rng.choices(parts, k=rng.randrange(1, 30)))
    for topic in CORPUS[:15]:
        yield topic[:1500]


@pytest.mark.parametrize("name", MADE)
def test_they_are_the_ids_and_places_of_the_library(name, monkeypatch):
    monkeypatch.setattr("dslight.data.templates.words._TRIED", 0)  # or what it finds wrong by itself would not show
    backend = MADE[name]()
    words = words_of(backend)
    assert words is not None
    by_words = 0
    for text in [*texts()] * 2:  # once to learn the words, once by what was learnt
        encoding = backend.encode(text, add_special_tokens=False)
        assert words.encode(text) == (encoding.ids, [start for start, _ in encoding.offsets]), text
        by_words += not text.isascii() and words._by_words(text) is not None
    assert by_words > 500


def test_a_conversation_has_the_same_ids_and_labels_as_without(monkeypatch):
    turns = [Turn("human", "<image>\nWhat is (1) it's?"), Turn("gpt", "A  page,\n\nof 1999.")]
    found = []
    for known in (words_of, lambda backend: None):
        monkeypatch.setattr("dslight.data.conversation.words_of", known)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained(), bos_token="<s>", eos_token="</s>")
        found.append([template(name).encode(turns, tokenizer) for name in ("vicuna_v1", "chatml", "phi3", "bare")])
    assert found[0] == found[1]


def odd(**changes):
    made = trained()
    for name, value in changes.items():
        setattr(made, name, value)
    return made


REFUSED = {
    "words within words": lambda: Tokenizer(models.WordPiece({"a": 0}, unk_token="a")),
    "a prefix": lambda: odd(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "no pattern": lambda: odd(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "sentencepiece": lambda: odd(pre_tokenizer=pre_tokenizers.Metaspace()),
    "nothing": lambda: Tokenizer(models.BPE()),
    "trimmed": lambda: trained(trim=True),
    "lower case": lambda: odd(normalizer=normalizers.Lowercase()),
    "joined": lambda: trained(QWEN2, behavior="merged_with_next"),
    "another class": lambda: trained(r"\p{Han}+|\p{L}+|[^\p{L}]"),
    "classes within classes": lambda: trained(r"[\p{L}&&[^a]]+|a|\P{L}"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_whose_words_do_not_stand_by_themselves_is_not_taken_apart(name):
    assert words_of(REFUSED[name]()) is None


def test_added_tokens_that_take_spaces_along_are_not_taken_apart():
    backend = trained()
    backend.add_tokens([AddedToken("<mask>", lstrip=True)])
    assert words_of(backend) is None


def test_one_difference_and_the_library_is_asked_for_everything(caplog):
    backend = trained()
    words = words_of(backend)
    assert words is not None
    wrong = Words(backend, re.compile(r"\w+|\W"), None)
    text = "it's 12, or  so"
    asked = words.encode(text)
    assert wrong.encode(text) == wrong.encode(text) == asked
    assert "has other tokens by its words" in caplog.text
    assert not wrong._right


def test_a_word_that_is_one_only_in_front_of_others_is_not_asked_for_alone(monkeypatch):
    """``ab`` in front of a capital is a word, and two by itself."""
    monkeypatch.setattr("dslight.data.templates.words._TRIED", 0)
    monkeypatch.setitem(globals(), "CORPUS", ["abB abB " * 50])
    backend = trained(r"[a-z]+(?=[A-Z])|[a-z]|[A-Z]|[^a-zA-Z\s]+|\s+")
    assert len(backend.encode("abB").ids) < len(backend.encode("ab").ids) + 1
    words = words_of(backend)
    assert words is not None
    for text in ("abB", "ab", "abB ab abB"):
        encoding = backend.encode(text, add_special_tokens=False)
        assert words.encode(text) == (encoding.ids, [start for start, _ in encoding.offsets]), text


def test_words_that_are_kept_have_a_limit(monkeypatch):
    monkeypatch.setattr("dslight.data.templates.words._MOST", 5)
    words = words_of(trained())
    assert words is not None
    for i in range(50):
        words.encode(f"word{i} a b c")
        assert len(words._known) <= 5
