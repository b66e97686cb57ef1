"""Three readers that know no set: multiple choice, yes or no, and short answers, from VLMEvalKit's TSV, parquet of the
Hub, JSON or JSON lines; and the sets of today that are read by them.

Columns, each under the names that are in use:

* ``index``, ``question_id``, ``id``, ``idx``, ``pid``; none: questions are numbered.
* ``question``, ``query``, ``text``, ``instruction``; ``hint``, which goes before it.
* ``image`` (base64 or the index of the row that has it, bytes, or a list), ``image_1`` to ``image_9``,
  ``decoded_image``; ``image_path``, ``image``, ``file_name``, below ``--images``; ``video``.
* options: columns ``A``, ``B``, ... (any number, empty ones end the list), ``options`` or ``choices`` (a list), or
  lines "A. ..." of the question itself.
* ``answer``, ``gt_answer``, ``label``, ``number``: a letter, "(A)", a letter in front of its text, the text of an
  option, or an index; of other questions the answer, or a list. Empty where it is hidden.
* ``category``, ``task``, ``sub_task``, ``task_type``, ``type``: kept beside the question as ``category``.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from data_prep.eval.asked import Asked, letter
from data_prep.eval.files import Files
from data_prep.eval.tables import LONGEST_NAME, Cell, Row, listed, pictures, rows, said
from dslight.data.sample import IMAGE_TOKEN
from dslight.metrics.benchmarks import SHORT
from dslight.metrics.functional.multiple_choice import parse_options
from dslight.metrics.multiple_choice import ROTATION_STRIDE

_IDS = ("index", "question_id", "id", "idx", "pid", "qid")
_QUESTIONS = ("question", "query", "text", "instruction", "Question")
_ANSWERS = ("answer", "gt_answer", "label", "number", "Answer")
_KINDS = ("category", "l2-category", "sub_task", "task_type", "task", "type", "Question Type")
_MARK = re.compile(r"<image (\d+)>")
_ON_ONE_LINE = re.compile(r"\n?Options:\s*(A:.*)$", re.DOTALL)
_INSTRUCTION = re.compile(r"\n?Please answer directly with [^.]*\.\s*$")
"""What RealWorldQA puts behind a question; the benchmark's suffix stands there instead."""


def choice(files: Files) -> Iterator[Asked]:
    """Questions with options; those without any (RealWorldQA has some) are asked for a word or a phrase."""
    groups: dict[Any, int] = {}
    for number, (item, name) in enumerate(rows(files)):
        text, options = _options(item)
        answer = [_letter(one, options) for one in _answers(item)] if options else _answers(item)
        index = said(_first(item, _IDS))
        group = int(index) % ROTATION_STRIDE if index.isdecimal() else index or number
        yield _asked(
            item,
            number,
            text=text,
            options=options,
            suffix=None if options else SHORT,
            more={"group": groups.setdefault(group, len(groups))},
        ).with_answers([one for one in answer if one], files.hides, name)


def yes_no(files: Files) -> Iterator[Asked]:
    """Questions whose answer is yes or no, in any case; also 1 and 0, true and false."""
    words = {"1": "yes", "0": "no", "true": "yes", "false": "no", "y": "yes", "n": "no"}
    for number, (item, name) in enumerate(rows(files)):
        answer = [words.get(one.lower(), one.lower()) for one in _answers(item)]
        yield _asked(item, number).with_answers(answer, files.hides, name)


def short(files: Files) -> Iterator[Asked]:
    """Questions with one answer or several."""
    for number, (item, name) in enumerate(rows(files)):
        yield _asked(item, number).with_answers(_answers(item), files.hides, name)


def rotated(questions: Iterator[Asked]) -> Iterator[Asked]:
    """Every question with its options in all their rotations, for circular evaluation (MMBench's)."""
    for number, asked in enumerate(questions):
        count = len(asked.options)
        if any(IMAGE_TOKEN in option for option in asked.options):
            raise SystemExit(
                f"--circular: question {asked.question_id!r}: its options are pictures, which have one order"
            )
        right = [string.ascii_uppercase.index(one) for one in asked.answers] if count else []
        facts = {**asked.facts, "group": number}
        for turn in range(max(count, 1)):
            options = [asked.options[(i + turn) % count] for i in range(count)]
            answers = [letter((i - turn) % count) for i in right] if count else list(asked.answers)
            name = f"{asked.question_id}-{turn}" if turn else asked.question_id
            yield replace(asked, question_id=name, options=options, answers=answers, facts=facts)


def _asked(
    item: Row,
    number: int,
    text: str | None = None,
    options: Sequence[str] = (),
    suffix: str | None = None,
    more: dict[str, Any] | None = None,
) -> Asked:
    question_id = said(_first(item, _IDS)) or str(number)
    hint = said(item.get("hint"))
    text = said(_first(item, _QUESTIONS)) if text is None else text
    kinds = {"category": said(_first(item, _KINDS)), "l2-category": said(item.get("l2-category"))}
    shown = _shown(item)
    text, *options = _placed([f"{hint}\n{text}" if hint else text, *options], shown)
    return Asked(
        question_id,
        text,
        options=options,
        suffix=suffix,
        facts={key: value for key, value in kinds.items() if value} | (more or {}),
        official_id=int(question_id) if question_id.isdecimal() else None,
        **shown,
    )


def _placed(texts: Sequence[str], shown: dict[str, Any]) -> list[str]:
    """Texts with their pictures where ``<image 2>`` stands, if each is marked; ``shown`` is put into that order. The
    mark of a single picture is left out: it stands before the question, as everywhere."""
    key = next((one for one in ("inline", "images") if len(shown.get(one, ())) > 1), None)
    order = list(dict.fromkeys(int(one) for text in texts for one in _MARK.findall(text)))
    if key is None or sorted(order) != list(range(1, len(shown[key]) + 1)):
        return [_MARK.sub("", text).strip() for text in texts]
    seen: set[str] = set()

    def place(match: re.Match[str]) -> str:
        first = match[1] not in seen
        seen.add(match[1])
        return IMAGE_TOKEN if first else match[0]

    shown[key] = [shown[key][number - 1] for number in order]
    return [_MARK.sub(place, text) for text in texts]


def _first(item: Row, names: Sequence[str]) -> Any:
    """The first of these columns that says something."""
    return next((item[name] for name in names if item.get(name) not in (None, "")), None)


def _shown(item: Row) -> dict[str, Any]:
    numbered = [item[name] for name in (f"image_{n}" for n in range(1, 10)) if item.get(name) is not None]
    for value in (item.get("decoded_image"), item.get("image"), item.get("images"), numbered or None):
        inside = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Cell | bytes)]
        if inside:
            return pictures(value)
    if said(item.get("video")):
        return {"video": said(item["video"])}
    if isinstance(item.get("image"), str) and len(item["image"]) > LONGEST_NAME:  # HRBench's parquet
        return pictures(item["image"])
    names = _first(item, ("image_path", "image", "images", "file_name", "filename"))
    return pictures(listed(names) if isinstance(names, str) else names)


def _options(item: Row) -> tuple[str, list[str]]:
    """The question without its options, and those."""
    text = _INSTRUCTION.sub("", said(_first(item, _QUESTIONS)))
    columns = []
    for name in string.ascii_uppercase:
        if not (option := said(item.get(name))):
            break
        columns.append(option)
    if len(columns) > 1:
        return text, columns
    for name in ("options", "choices", "candidates", "option"):
        given = item.get(name)
        if given is not None and (found := listed(given)):
            return text, [re.sub(rf"^\(?{letter(i)}[.):]\s*", "", one) for i, one in enumerate(found)]
    if match := _ON_ONE_LINE.search(text):  # MMStar's parquet: "Options: A: red, B: blue"
        parts = re.split(r"(?:^|,\s*|\s)([A-Z]):\s", match[1])[1:]
        if len(parts) > 2 and parts[::2] == list(string.ascii_uppercase[: len(parts) // 2]):
            return text[: match.start()].strip(), [part.strip().rstrip(",") for part in parts[1::2]]
    found = parse_options(text)
    if len(found) < 2:
        return text, []
    before = re.split(r"^\s*\(?A[.)]", text, maxsplit=1, flags=re.MULTILINE)[0]
    return before.strip(), list(found.values())


def _answers(item: Row) -> list[str]:
    value = _first(item, _ANSWERS)
    return [one for one in map(said, listed(value)) if one and one != "?"]


def _letter(answer: str, options: Sequence[str]) -> str:
    """The letter that an answer means; "" for one that means none of the options."""
    letters = string.ascii_uppercase[: len(options)]
    bare = answer.strip("() .")
    if bare in letters and len(bare) == 1:
        return bare
    if answer in options:
        return letter(list(options).index(answer))
    if bare.upper() in letters and len(bare) == 1:
        return bare.upper()
    if match := re.match(r"\(?([A-Z])[.):]\s", answer):
        return match[1] if match[1] in letters else ""
    return letter(int(bare)) if bare.isdecimal() and int(bare) < len(options) else ""
