"""Token ids from words that were seen before: what a byte-level tokenizer gives, in a third of its time.

A byte-level BPE (GPT-2's kind: Qwen, Llama 3, Phi-4) cuts a text into words by a pattern and merges within each, so
a word has the same ids wherever it stands. Asking the library for a text can cost as much as resizing its picture;
looking up words that were asked for before costs a fraction of that.

Decided here, and why:

* Only plain ASCII is cut here, where Python's patterns and the library's cannot mean different things by a letter, a
  digit or a space. What stands between two spaces and has other characters is a word of its own for the library, if
  its pattern begins a word at such a space; texts with control characters or other kinds of spaces go there whole.
* What a word becomes is the library's answer, ids and places both. Tokenizers of another make (SentencePiece's, those
  that drop merges, or take spaces into their added tokens) are not taken apart: :func:`words_of` gives none.
* The first texts of a process are asked for both ways. One difference, and the library is asked for everything.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

log = logging.getLogger(__name__)

Encoding = tuple[list[int], list[int]]
"""Ids, and the character that each starts at."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ASCII = {"L": "A-Za-z", "Lu": "A-Z", "Lt": "", "Ll": "a-z", "Lm": "", "Lo": "", "M": "", "N": "0-9", "Nd": "0-9"}
"""The letters, marks and digits of Unicode that are ASCII."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|[^\S\t\n\r ]")
_BETWEEN = re.compile(r"(?<=\S) (?=\S)")
_MOST = 50_000  # words kept: of names and numbers there is no end
_TRIED = 64  # texts
_KINDS = "aZ0.(-\u00e9\u0130\u4e2d\u0663\u201c\u20ac"  # of characters: a space between any two begins a word
_UNCHANGED = ("NFC", "NFD", "NFKC", "NFKD")  # what they do to ASCII


class Words:
    """The ids of texts by their words; see :func:`words_of`.

    Args:
        backend: the tokenizer of the ``tokenizers`` library.
        pattern: cuts a text into words.
        added: the tokens that are cut out before; ``None``: there are none.
    """

    def __init__(self, backend: Any, pattern: re.Pattern[str], added: re.Pattern[str] | None) -> None:
        self._backend, self._find, self._added = backend, pattern.findall, added
        self._known: dict[str, Encoding | None] = {}
        self._tried, self._right = 0, True

    def encode(self, text: str) -> Encoding:
        """The ids of a text, and the character that each starts at."""
        if not self._right or _CONTROL.search(text):
            return self._asked(text)
        found = self._by_words(text)
        if found is None:
            return self._asked(text)
        if self._tried < _TRIED:
            self._tried += 1
            if found != (asked := self._asked(text)):
                log.warning("a text has other tokens by its words: %r; the tokenizer is asked for each", text[:80])
                self._right = False
                return asked
        return found

    def _by_words(self, text: str) -> Encoding | None:
        ids: list[int] = []
        starts: list[int] = []
        at, known = 0, self._known
        for part, words in self._parts(text):
            for word in words:
                try:
                    encoding = known[word]
                except KeyError:
                    encoding = self._learn(word, part)
                if encoding is None:
                    return None
                ids += encoding[0]
                starts += [at] if len(encoding[0]) == 1 and not encoding[1][0] else [at + s for s in encoding[1]]
                at += len(word)
        return (ids, starts) if at == len(text) else None

    def _parts(self, text: str) -> list[tuple[bool, list[str]]]:
        """The words of a text, and whether they are any; else added tokens."""
        if self._added is None:
            return self._cut(text)
        found: list[tuple[bool, list[str]]] = []
        for i, part in enumerate(self._added.split(text)):
            if part:
                found += [(False, [part])] if i % 2 else self._cut(part)
        return found

    def _cut(self, text: str) -> list[tuple[bool, list[str]]]:
        """The words of a text without added tokens; what is no ASCII, up to the spaces around it, is one of its own."""
        if text.isascii():
            return [(True, self._find(text))]
        found: list[tuple[bool, list[str]]] = []
        plain = begin = 0
        for end in [*(space.start() for space in _BETWEEN.finditer(text)), len(text)]:
            if not text[begin:end].isascii():
                found += [(True, self._find(text[plain:begin])), (False, [text[begin:end]])]
                plain = end
            begin = end
        return [*found, (True, self._find(text[plain:]))]

    def _learn(self, word: str, is_word: bool) -> Encoding | None:
        if len(self._known) >= _MOST:
            self._known.clear()
        alone = self._find(word) == [word] if is_word else True
        self._known[word] = self._asked(word) if alone else None
        return self._known[word]

    def _asked(self, text: str) -> Encoding:
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]


def words_of(backend: Any) -> Words | None:
    """The words of a tokenizer of the ``tokenizers`` library; ``None``: its words do not stand by themselves."""
    about = json.loads(backend.to_str())
    model, added = about["model"], about["added_tokens"]
    pattern = _pattern(about["pre_tokenizer"])
    plain = (
        model["type"] == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and _leaves_ascii(about["normalizer"])
        and not any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)
        and len({token["normalized"] for token in added}) < 2  # else some are cut out before others
        and not _trims(about["post_processor"])
    )
    if pattern is None or not plain:
        return None
    if not all(len(backend.pre_tokenizer.pre_tokenize_str(f"{a} {b}")) > 1 for a in _KINDS for b in _KINDS):
        return None
    contents = sorted((re.escape(token["content"]) for token in added if token["content"]), key=len, reverse=True)
    return Words(backend, pattern, re.compile(f"({'|'.join(contents)})") if contents else None)


def _leaves_ascii(normalizer: Any) -> bool:
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(_leaves_ascii, normalizer["normalizers"]))
    return normalizer["type"] in _UNCHANGED


def _trims(processor: Any) -> bool:
    """Whether a token begins behind its space, unless it is the first of a text (RoBERTa's)."""
    if processor is None:
        return False
    return bool(processor.get("trim_offsets")) or any(map(_trims, processor.get("processors", ())))


def _pattern(pre_tokenizer: Any) -> re.Pattern[str] | None:
    """What cuts words, of GPT-2's pre-tokenizer, or a pattern in front of the bytes."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *cuts, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or bool(cuts) == last.get("use_regex", True):
        return None
    if not cuts:
        return _in_python(_GPT2)
    (cut,) = cuts if len(cuts) == 1 else ({},)
    if cut.get("type") != "Split" or cut["behavior"] != "Isolated" or cut["invert"] or "Regex" not in cut["pattern"]:
        return None
    return _in_python(cut["pattern"]["Regex"])


def _in_python(pattern: str) -> re.Pattern[str] | None:
    """A pattern of the library with the classes of Unicode as far as they are ASCII; ``None``: it has others."""
    out, inside, at = "", False, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            found = re.match(r"\\p\{(\w+)\}", pattern[at:])
            if found is None:
                if pattern[at + 1 : at + 2] in ("p", "P", "X", "h", "R"):
                    return None
                out, at = out + pattern[at : at + 2], at + 2
                continue
            if found[1] not in _ASCII or (not inside and not _ASCII[found[1]]):
                return None
            letters = _ASCII[found[1]]
            out, at = out + (letters if inside else f"[{letters}]"), at + len(found[0])
            continue
        if char in "[]":
            if (char == "[") == inside or pattern[at + 1 : at + 2] == "&":  # classes within classes
                return None
            inside = char == "["
        out, at = out + char, at + 1
    try:
        compiled = re.compile(out, re.ASCII)
    except re.error:
        return None
    return compiled if not compiled.groups else None  # findall would give the groups
