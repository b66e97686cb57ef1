"""The scores of OCRBench v2 (Fu et al. 2024), one rule for each of its 30 kinds of questions.

Words and formulas: a short answer is right if it occurs in what is said; a long one scores its normalised Levenshtein
similarity, from 0.5 on. Boxes: intersection over union. Keys with values: the share of keys with the right value, of
all keys on either side. Tables and charts: TEDS; pages: their outlines (``dslight.metrics.functional.trees``). Texts:
the mean of BLEU, METEOR, the F1 of words and the Levenshtein similarity. Spotted words: the F1 of boxes with the right
word (ICDAR's end-to-end protocol).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from dslight.metrics.functional.spotting import box_overlap, last_box, spotted_words, spotting_f1
from dslight.metrics.functional.texts import text_similarity
from dslight.metrics.functional.trees import page_similarity, table_similarity

GROUPS: dict[str, tuple[str, ...]] = {
    "en_text_recognition": ("text recognition en", "fine-grained text recognition en", "full-page OCR en"),
    "en_text_detection": ("text grounding en", "VQA with position en"),
    "en_text_spotting": ("text spotting en",),
    "en_relationship_extraction": ("key information extraction en", "key information mapping en"),
    "en_element_parsing": (
        "document parsing en", "chart parsing en", "table parsing en", "formula recognition en",
    ),
    "en_mathematical_calculation": ("math QA en", "text counting en"),
    "en_visual_text_understanding": ("document classification en", "cognition VQA en", "diagram QA en"),
    "en_knowledge_reasoning": (
        "reasoning VQA en", "science QA en", "APP agent en", "ASCII art classification en",
    ),
    "cn_text_recognition": ("full-page OCR cn",),
    "cn_relationship_extraction": ("key information extraction cn", "handwritten answer extraction cn"),
    "cn_element_parsing": ("document parsing cn", "table parsing cn", "formula recognition cn"),
    "cn_visual_text_understanding": ("cognition VQA cn",),
    "cn_knowledge_reasoning": ("reasoning VQA cn", "text translation cn"),
}  # fmt: skip
"""Kinds of questions by what they ask for."""

_TEXTS = {
    "full-page OCR en", "fine-grained text recognition en", "full-page OCR cn", "text translation cn",
}  # fmt: skip
_BETWEEN = ("", ".", ". ", ",", ", ", "、", ";", "; ", " ", "和")
"""What may stand between the letters of the right options."""


def ocrbench_v2_score(
    prediction: str, references: Sequence[str], kind: str, facts: Mapping[str, Any] | None = None, question: str = ""
) -> float | None:
    """The score of one answer, mostly in 0..1; ``None`` where nothing can be read from it.

    Args:
        prediction: what the model said.
        references: the right answers, as the file has them; a dictionary as JSON.
        kind: one of those in ``GROUPS``.
        facts: ``eval`` (multiple choice, case sensitive, exact match, regression) and ``bbox``, as the file has them.
        question: its text; two kinds are judged by what it asks for.

    Raises:
        ValueError: there is no such kind of question.

    Example:
        >>> from dslight.metrics.functional.ocrbench_v2 import ocrbench_v2_score
        >>> ocrbench_v2_score("It says STOP.", ["stop"], "text recognition en")
        1.0
        >>> ocrbench_v2_score("There are 8", ["10"], "text counting en", {"eval": "regression"})
        0.8
    """
    facts = facts or {}
    if kind in _TEXTS:
        return text_similarity(prediction, references[0]) if prediction else 0.0
    if kind.startswith("document parsing"):
        return page_similarity(prediction, references[0])
    if kind.startswith("table parsing"):
        return _table(prediction, references[0], "html" if kind.endswith("cn") else question.lower())
    if kind.startswith("key information"):
        return _keys(prediction, references[0])
    if kind.startswith("formula recognition"):
        return _formula(prediction, references, kind.endswith("cn"))
    if kind == "chart parsing en":
        return _chart(prediction, references[0])
    if kind == "handwritten answer extraction cn":
        return _handwritten(prediction, references[0], question)
    if kind == "text counting en":
        return _count(prediction, references, str(facts.get("eval")))
    if kind == "text grounding en":
        box = last_box(prediction)
        return None if box is None else box_overlap(box, ast.literal_eval(references[0]))
    if kind == "text spotting en":
        words = spotted_words(prediction)
        return spotting_f1(words, facts["bbox"], references) if words else None
    if kind == "VQA with position en":
        return _placed(prediction, references, facts["bbox"])
    if not any(kind in kinds for kinds in GROUPS.values()):
        raise ValueError(f"types: {kind!r} is no kind of OCRBench v2's questions")
    if facts.get("eval") == "multiple choice":
        return float("".join(filter(str.isalpha, prediction)) == references[0])
    return _words(prediction, references, facts.get("eval") == "case sensitive", kind.endswith("cn"))


def _words(prediction: str, references: Sequence[str], cased: bool = False, chinese: bool = False) -> float:
    def plain(text: str) -> str:
        text = (text if cased else text.lower()).strip().replace("\n", " ")
        return text.replace(" ", "") if chinese and not cased else text

    said, best = plain(prediction), 0.0
    for reference in references:
        right = plain(reference)
        short = len(right.split(",")) < 4 if chinese and not cased else len(right.split()) < 5
        if short:
            best = 1.0 if right in said else best
        else:
            similarity = 1 - Levenshtein.distance(said, right) / max(len(said), len(right))
            best = max(best, similarity) if similarity >= 0.5 else best
    return best


def _formula(prediction: str, references: Sequence[str], chinese: bool) -> float:
    def plain(text: str) -> str:
        if chinese:
            text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
        return text.strip().replace("\n", " ").replace(" ", "")

    if chinese and prediction.lower() == "nan":
        return 0.0
    return float(any(plain(reference) in plain(prediction) for reference in references))


def _handwritten(prediction: str, reference: str, question: str) -> float:
    if "简答" in question:
        return text_similarity(prediction, reference)
    return float(any(between.join(reference) in prediction for between in _BETWEEN))


def _count(prediction: str, references: Sequence[str], rule: str) -> float | None:
    if rule == "exact match":
        return float(any(one.lower().strip().replace("\n", " ") in prediction for one in references))
    if rule != "regression":
        raise ValueError(f"eval: {rule!r} is neither 'exact match' nor 'regression'")
    found = re.search(r"\d+", prediction)
    if found is None:
        return None
    said, best = int(found[0]), 0.0
    for right in map(int, references):
        near = 1 - abs(said - right) / right if 0 < said < 2 * right else 0.0
        best = max(best, near if near > 0.5 else 0.0)
    return best


def _placed(prediction: str, references: Sequence[str], box: Sequence[Any]) -> float:
    said = read_keys(prediction)
    words = _words(said["answer"], references) if "answer" in said else 0.0
    try:
        place = box_overlap(ast.literal_eval(said["bbox"]), box) if "bbox" in said else 0.0
    except (ValueError, SyntaxError, TypeError, IndexError, MemoryError, RecursionError):
        place = 0.0
    return 0.5 * words + 0.5 * place


def _keys(prediction: str, reference: str) -> float:
    """The share of right values; a key has several right ones where the file lists them."""

    def plain(text: str) -> str:
        return text.lower().strip().replace("\n", " ").replace(" ", "")

    right, said = _options(reference), read_keys(prediction)
    hits: list[bool] = []
    for key in right.keys() | said.keys():
        options = right.get(key, [])
        if key not in said and None in options:
            continue
        hits.append(key in said and any(plain(said[key]) == plain(str(one)) for one in options if one is not None))
    return sum(hits) / len(hits) if hits else 0.0


def _options(reference: str) -> dict[str, list[Any]]:
    """By key its right values. Of keys that cannot be read, none: their answers score 0, as in its own program."""
    found: Any = reference.strip('"')
    for read in (json.loads, ast.literal_eval, ast.literal_eval):  # the file has some as text within text
        if isinstance(found, str):
            try:
                found = read(found)
            except (ValueError, SyntaxError):
                continue
    if not isinstance(found, dict):
        return {}
    return {key: value if isinstance(value, list) else [value] for key, value in found.items()}


_FENCED = re.compile(r"```(?:python|json)?\n(.*?)\n```", re.DOTALL | re.IGNORECASE)
_PAIR = re.compile(r"""["']?([\w\s]+)["']?\s*[:=]\s*["']?([^\n,"'{}]+)["']?""")


def read_keys(answer: str) -> dict[str, str]:
    """Keys with values in an answer: JSON or Python, in a fence or not, else whatever looks like ``key: value``.

    Example:
        >>> from dslight.metrics.functional.ocrbench_v2 import read_keys
        >>> read_keys('{"total": 12}'), read_keys("Total: 12")
        ({'total': '12'}, {'Total': '12'})
    """
    match = _FENCED.search(answer)
    text = match[1] if match else answer.strip()
    found = None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
            found = found if isinstance(found, dict) else {}
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found = {key.strip(): value.strip() for key, value in _PAIR.findall(text)}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        return {}
    return {key.strip(): str(value).strip() for key, value in found.items()}


def _table(prediction: str, reference: str, asked: str) -> float | None:
    try:
        if "html" in asked:
            said = prediction.replace("\n", "")
            start = said.find("<body") if "<body" in said else said.find("<table")
            return table_similarity(_page(said[start:]), _page(reference)) if start >= 0 else None
        if "markdown" in asked:
            return table_similarity(_markdown(prediction), _markdown(reference))
    except (ValueError, RecursionError):
        return 0.0
    return None


def _page(table: str) -> str:
    """A table in HTML with the tags around it that are missing."""
    table = table.replace("\n", "")
    opened, closed = "<table" in table, "</table>" in table
    table = f"{'' if opened else '<table>'}{table}{'' if closed else '</table>'}"
    for tag in ("body", "html"):
        table = table if f"<{tag}>" in table else f"<{tag}>{table}</{tag}>"
    return table


def _rows_page(rows: Sequence[Sequence[str]]) -> str:
    cells = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return f"<html><body><table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table></body></html>"


def _markdown(text: str) -> str:
    lines = text.strip("`markdown").strip("`").strip().split("\n")
    rows = [line.strip().split("|")[1:-1] for line in [lines[0], *lines[2:]]]
    cells = [[" " if cell and not cell.strip(" ") else cell.strip() for cell in row] for row in rows]
    return _rows_page(cells).replace("\n", "")


def _chart(prediction: str, reference: str) -> float | None:
    fenced = _FENCED.findall(prediction)
    text = max(fenced, key=len) if fenced else prediction.strip()
    text = re.sub(r"#.*", "", re.sub(r"^\s*\w+\s*=\s*", "", text.strip(), count=1))
    text = text[: text.rfind("}") + 1] or text
    try:
        said = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(said, dict) or not said:
        return None
    pages = [
        _rows_page([(str(key), " ".join(str(value))) for key, value in one.items()])
        for one in (said, json.loads(reference))
    ]
    try:
        return table_similarity(*pages)
    except (ValueError, RecursionError):
        return 0.0
