"""Answers in the format that a benchmark's server, or whoever judges it, reads: pure functions to the bytes of files.

Needed where the references are hidden (VQAv2's test splits, DocVQA's, MMBench's, ...) or a language model judges
(MM-Vet, MSVD-QA, ActivityNet-QA, CharXiv, LLaVA-Bench). Where they are public, the file still goes through the authors'
own script.

Answers are written as the model gave them, stripped and without its thoughts. Only those to VQAv2 and VizWiz are
normalised, by the VQA answer processor, as LLaVA does before it uploads them; GQA's are converted as LLaVA does. Where
a letter or an index is wanted, it is the one that the benchmark's protocol reads; an answer that names none is "" or
-1, never a guess.

Known from code (of the authors, of LLaVA or of lmms-eval): vqav2, vizwiz, gqa, docvqa, multidocvqa, seed, mmbench,
mmmu, mmvet, egoschema, mme, pope, video_judge (Video-ChatGPT's script), longvideobench, mlvu, charxiv, llava_bench.
From memory: textvqa (EvalAI takes VQAv2's
format).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dslight.files.typed import read_json_if_there
from dslight.metrics.functional.multiple_choice import ChoiceProtocol, parse_choice, parse_options
from dslight.metrics.functional.thinking import spoken
from dslight.metrics.functional.vqa import normalize_vqa_m4c
from dslight.question import Question

if TYPE_CHECKING:
    from dslight.metrics.base import Answer

Files = dict[str, bytes]
"""File name -> content."""


WHOLE = ("vqav2", "textvqa", "vizwiz", "gqa", "docvqa", "multidocvqa")
"""Formats whose servers want a row for every question of the split."""
OFFICIAL_IDS = "official_ids.json"
"""Beside the shards of a set: the ids of every question of the split's file, a JSON list."""


def official_ids(root: Path) -> list[str | int]:
    """The ids of all questions of the split, where the folder of a source says them.

    Raises:
        FileError: it holds something else.
    """
    return read_json_if_there(root / OFFICIAL_IDS, list[str | int]) or []


def submission(form: str, answers: Sequence[Answer], official_ids: Sequence[Any] = ()) -> Files:
    """The files of a submission.

    Args:
        form: one of ``FORMATS``.
        answers: in the order of the questions.
        official_ids: of the whole split: questions that were not asked (a limit, a picture that could not be read, the
            rest of the test set beside its test-dev) get an empty answer in the formats of :data:`WHOLE`.

    Raises:
        ValueError: an unknown format; a question without what its format needs.
    """
    if form not in FORMATS:
        raise ValueError(f"submission: {form!r} is not one of {', '.join(FORMATS)}")
    said = [one._replace(prediction=spoken(one.prediction)) for one in answers]
    if form in WHOLE:
        known = {one.question.official_id for one in answers}
        said += [_silent(number) for number in official_ids if number not in known]
    return FORMATS[form](said)


def _silent(official_id: Any) -> Answer:
    from dslight.metrics.base import Answer, Verdict

    return Answer(Question(str(official_id), "", (), extra={"official_id": official_id}), "", Verdict())


def _json(content: Any, name: str = "submission.json") -> Files:
    return {name: json.dumps(content, ensure_ascii=False).encode()}


def _lines(rows: Sequence[Any], name: str = "submission.jsonl") -> Files:
    return {name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()}


def _number(answer: Answer) -> Any:
    """The official id, as a number where it is one: servers look it up among numbers."""
    found = answer.question.official_id
    return int(found) if isinstance(found, str) and found.isascii() and found.isdecimal() else found


def _letter(answer: Answer, protocol: ChoiceProtocol) -> str | None:
    return parse_choice(answer.prediction, parse_options(answer.question.text), protocol)


def vqav2(answers: Sequence[Answer]) -> Files:
    """``[{"question_id": 1, "answer": "red"}]``: VQAv2 (EvalAI), normalised: against references that are all alike its
    script compares letter by letter."""
    return _json([{"question_id": _number(one), "answer": normalize_vqa_m4c(one.prediction)} for one in answers])


def textvqa(answers: Sequence[Answer]) -> Files:
    """As ``vqav2``, but as the model said it: this server normalises."""
    return _json([{"question_id": _number(one), "answer": one.prediction} for one in answers])


def vizwiz(answers: Sequence[Answer]) -> Files:
    """``[{"image": "VizWiz_test_00000000.jpg", "answer": "red"}]``, normalised; the image is the question's ``image``,
    else its id."""
    return _json([{"image": _image(one), "answer": normalize_vqa_m4c(one.prediction)} for one in answers])


def gqa(answers: Sequence[Answer]) -> Files:
    """``[{"questionId": "201307251", "prediction": "red"}]``, converted as LLaVA does: its script compares exactly."""
    rows = [
        {"questionId": str(a.question.official_id), "prediction": a.prediction.rstrip(".").lower()} for a in answers
    ]
    return _json(rows)


def docvqa(answers: Sequence[Answer]) -> Files:
    """``[{"questionId": 1, "answer": "1975"}]``: DocVQA, InfographicVQA (rrc.cvc.uab.es)."""
    return _json([{"questionId": _number(one), "answer": one.prediction} for one in answers])


def multidocvqa(answers: Sequence[Answer]) -> Files:
    """DocVQA's, with ``answer_page``, which nothing here predicts."""
    return _json([{"questionId": _number(a), "answer": a.prediction, "answer_page": None} for a in answers])


def seed(answers: Sequence[Answer]) -> Files:
    """Lines of ``{"question_id": "101669", "prediction": "A"}``."""
    return _lines([{"question_id": a.question.official_id, "prediction": a.prediction} for a in answers])


def pope(answers: Sequence[Answer]) -> Files:
    """Per subset, lines of ``{"question", "answer"}`` in the order of the questions: the script joins by line."""
    files: Files = {}
    for subset in dict.fromkeys(answer.question.type or "pope" for answer in answers):
        own = [answer for answer in answers if (answer.question.type or "pope") == subset]
        rows = [{"question": a.question.text, "answer": a.prediction} for a in own]
        files |= _lines(rows, _file_name(f"coco_pope_{subset}.jsonl", files))
    return files


def mme(answers: Sequence[Answer]) -> Files:
    """Per task ``TASK.txt``, of an answer ``image, question, label, prediction`` with tabs between them. Two lines per
    image stand together, as the script reads them."""
    files: Files = {}
    for task in dict.fromkeys(answer.question.type for answer in answers):
        own = [answer for answer in answers if answer.question.type == task]
        images: dict[str, list[Answer]] = {}
        for answer in own:
            images.setdefault(answer.question.question_id.split("/")[0], []).append(answer)
        rows = [
            [_image(a, number), a.question.text, *a.question.references[:1], a.prediction]
            for number, pair in images.items()
            for a in pair
        ]
        files[_file_name(f"{task}.txt", files)] = "".join("\t".join(map(_flat, row)) + "\n" for row in rows).encode()
    return files


def mmmu(answers: Sequence[Answer]) -> Files:
    """``{"test_Art_1": "A", "test_Math_2": "so it is 2.5"}``: the letter, or the whole answer to an open question."""
    return _json(
        {
            a.question.question_id: (_letter(a, "mmmu") or "") if parse_options(a.question.text) else a.prediction
            for a in answers
        }
    )


def mmbench(answers: Sequence[Answer]) -> Files:
    """A table of index, question, options and prediction, ``.xlsx`` if openpyxl is there, else ``.tsv``."""
    options = [parse_options(answer.question.text) for answer in answers]
    letters = sorted({*"ABCD", *(letter for found in options for letter in found)})
    rows: list[list[Any]] = [["index", "question", *letters, "prediction"]]
    for answer, found in zip(answers, options, strict=True):
        asked = answer.question.text.split("\nA. ")[0]
        rows.append([_number(answer), asked, *(found.get(letter, "") for letter in letters), answer.prediction])
    try:
        from openpyxl import Workbook
    except ImportError:
        return {"submission.tsv": "".join("\t".join(map(_flat, row)) + "\n" for row in rows).encode()}
    book, out = Workbook(write_only=True), io.BytesIO()
    sheet = book.create_sheet()
    for row in rows:
        sheet.append([value if isinstance(value, int) else _text(sheet, value) for value in row])
    book.save(out)
    return {"submission.xlsx": out.getvalue()}


def mmvet(answers: Sequence[Answer]) -> Files:
    """``{"v1_0": "..."}``, which the set's own program gives to GPT-4."""
    return _json({a.question.question_id: a.prediction for a in answers})


def egoschema(answers: Sequence[Answer]) -> Files:
    """``{q_uid: index of the option}``, which its ``validate.py`` posts; -1 where the answer names none."""
    found = {a.question.question_id: _letter(a, "egoschema") for a in answers}
    return _json({name: -1 if letter is None else ord(letter) - ord("A") for name, letter in found.items()})


def video_judge(answers: Sequence[Answer]) -> Files:
    """``[{"video_name", "Q", "A", "pred", "question_id", "type"}]``: what Video-ChatGPT's script gives to GPT-3.5."""
    rows = [
        {
            "video_name": a.question.extra.get("video", a.question.key),
            "Q": a.question.text,
            "A": next(iter(a.question.references), ""),
            "pred": a.prediction,
            "question_id": a.question.official_id,
            "type": a.question.type,
        }
        for a in answers
    ]
    return _json(rows)


def longvideobench(answers: Sequence[Answer]) -> Files:
    """``{id: "B"}``: as the model said it, as lmms-eval writes it."""
    return _json({str(a.question.official_id): a.prediction for a in answers})


def mlvu(answers: Sequence[Answer]) -> Files:
    """``[{"question_id": "AR_0", "question_type": "anomaly_reco", "option": "B"}]``; "" where no letter is read."""
    rows = [
        {
            "question_id": a.question.official_id,
            "question_type": a.question.extra.get("question_type", a.question.type),
            "option": _letter(a, "lmms_eval") or "",
        }
        for a in answers
    ]
    return _json(rows)


def charxiv(answers: Sequence[Answer]) -> Files:
    """``gen-dslight-reasoning.json`` and the descriptive one, which CharXiv's ``evaluate.py`` reads: put ``_val`` or
    ``_test`` before the ending."""
    found: dict[str, dict[str, Any]] = {"descriptive": {}, "reasoning": {}}
    for a in answers:
        row = {"response": a.prediction}
        if a.question.type == "reasoning":
            row["raw_question"] = a.question.extra.get("raw_question", a.question.text)
        found.setdefault(a.question.type, {})[a.question.question_id] = row
    return {f"gen-dslight-{kind}.json": json.dumps(rows, ensure_ascii=False).encode() for kind, rows in found.items()}


def llava_bench(answers: Sequence[Answer]) -> Files:
    """Lines of ``{"question_id", "prompt", "text"}``, which LLaVA's ``eval_gpt_review_bench.py`` reads."""
    rows = [{"question_id": a.question.official_id, "prompt": a.question.text, "text": a.prediction} for a in answers]
    return _lines(rows, "answers.jsonl")


def _image(answer: Answer, otherwise: str = "") -> str:
    return str(answer.question.extra.get("image") or otherwise or answer.question.question_id)


def _file_name(name: str, taken: Container[str]) -> str:
    """A name of its own for a file; kinds of questions are named by whoever wrote the shards."""
    name = re.sub(r"[^\w.+-]+", "_", name)
    while name in taken:
        name = f"_{name}"
    return name


def _flat(value: Any) -> str:
    """One cell of a table with tabs."""
    return " ".join(str(value).split())


def _text(sheet: Any, text: str) -> Any:
    """A cell of text, also where it begins as a formula would; without control characters, which it cannot hold."""
    from openpyxl.cell import WriteOnlyCell

    cell = WriteOnlyCell(sheet, "".join(char for char in text if char in "\t\n\r" or ord(char) >= 32))
    cell.data_type = "s"
    return cell


FORMATS: dict[str, Callable[[Sequence[Answer]], Files]] = {
    "vqav2": vqav2,
    "textvqa": textvqa,
    "vizwiz": vizwiz,
    "gqa": gqa,
    "docvqa": docvqa,
    "multidocvqa": multidocvqa,
    "seed": seed,
    "pope": pope,
    "mme": mme,
    "mmmu": mmmu,
    "mmbench": mmbench,
    "mmvet": mmvet,
    "egoschema": egoschema,
    "video_judge": video_judge,
    "longvideobench": longvideobench,
    "mlvu": mlvu,
    "charxiv": charxiv,
    "llava_bench": llava_bench,
}
