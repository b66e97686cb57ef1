"""Sets of 2024 and later whose files need more than a general reader: HallusionBench, MathVista, ChartQAPro, RefCOCO,
ScreenSpot, Video-MME and MVBench.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from data_prep.eval.asked import Asked, letter
from data_prep.eval.files import Files
from data_prep.eval.general import choice
from data_prep.eval.tables import Cell, Row, listed, pictures, rows, said, table


def cvbench(files: Files) -> Iterator[Asked]:
    """CV-Bench (nyu-visionx/CV-Bench): as any multiple choice; ``source`` (ADE20K, COCO, Omni3D) makes its number."""
    sources = [said(item.get("source")) for item, _ in rows(files)]
    for asked, source in zip(choice(files), sources, strict=True):
        yield replace(asked, type=source)


def hallusionbench(files: Files) -> Iterator[Asked]:
    """HallusionBench: the Hub's ``category`` (VD, VS), ``subcategory``, ``set_id``, ``figure_id``, ``question_id``,
    ``question``, ``gt_answer`` (1, 0), ``image``; or VLMEvalKit's TSV, whose ``index`` ends in the three ids.

    Its numbers by figure and by question need the groups, which are numbered here.
    """
    figures: dict[Any, int] = {}
    questions: dict[Any, int] = {}
    for item, name in rows(files):
        if "set_id" in item:
            kind, part = said(item["category"]), said(item["subcategory"])
            ids = [said(item[key]) for key in ("set_id", "figure_id", "question_id")]
            index = "_".join([kind, part, said(item.get("visual_input")), *ids])
        else:
            index, part = item["index"], said(item.get("l2-category"))
            kind, ids = said(item.get("category")), index.split("_")[3:6]
        answer = said(item.get("gt_answer") if "gt_answer" in item else item.get("answer")).lower()
        figure, question = (part, ids[0], ids[1]), (part, ids[0], ids[2])
        yield Asked(
            index,
            item["question"],
            type=kind if kind in ("VD", "VS") else "",
            facts={
                "category": part,
                "figure_group": figures.setdefault(figure, len(figures)),
                "question_group": questions.setdefault(question, len(questions)),
            },
            **pictures(item.get("image")),
        ).with_answers([{"1": "yes", "0": "no"}.get(answer, answer)] if answer else [], False, name)


def mathvista(files: Files) -> Iterator[Asked]:
    """MathVista (AI4Math/MathVista): ``pid``, ``query`` (the question with its hint and choices), ``choices``,
    ``answer`` (an option's text, or a number), ``question_type``, ``answer_type``, ``precision``, ``decoded_image``.

    Also VLMEvalKit's TSV: ``index``, ``question`` (the query), ``answer``, ``answer_option``, ``choices``.
    """
    for number, (item, name) in enumerate(rows(files)):
        choices = listed(item.get("choices")) if item.get("choices") not in (None, "") else []
        precision = said(item.get("precision"))
        answer = said(item.get("answer"))
        shown = item.get("decoded_image") if item.get("decoded_image") is not None else item.get("image")
        yield Asked(
            said(item.get("pid")) or said(item.get("index")) or str(number),
            item.get("query") or item["question"],
            facts={
                "choices": choices,
                "answer_type": item.get("answer_type") or "text",
                **({"precision": int(float(precision))} if precision else {}),
                **({"category": item["task"]} if item.get("task") else {}),
            },
            **pictures(shown),
        ).with_answers([answer] if answer else [], files.split in ("test",), name)


def chartqapro(files: Files) -> Iterator[Asked]:
    """ChartQAPro (ahmed-masry/ChartQAPro): ``Question``, ``Answer`` and ``Year`` (lists), ``Question Type``,
    ``Paragraph``, ``image``. Of a conversation, the last question is asked, with those before it and their answers."""
    for number, (item, name) in enumerate(rows(files)):
        questions, answers = listed(item["Question"]), listed(item["Answer"])
        kind, years = item.get("Question Type") or "", listed(item.get("Year"))
        before = [
            f"Q{i}: {question.strip()}\nA{i}: {answer.strip()}"
            for i, (question, answer) in enumerate(zip(questions[:-1], answers, strict=False), 1)
        ]
        text = "\n".join([*before, f"Q{len(questions)}: {questions[-1].strip()}" if before else questions[-1].strip()])
        context = (item.get("Paragraph") or "").strip()
        yield Asked(
            str(number),
            f"Context: {context}\n\n{text}" if context else text,
            type=kind,
            facts={"years": years[-1:] if kind == "Conversational" else years},
            **pictures(item["image"]),
        ).with_answers(answers[-1:], False, name)


def refcoco(files: Files) -> Iterator[Asked]:
    """RefCOCO, RefCOCO+ and RefCOCOg (lmms-lab): ``question_id``, ``answer`` (the phrases, each asked for), ``bbox``
    (x, y, width, height in pixels), ``image``."""
    for number, (item, name) in enumerate(rows(files)):
        width, height = _size(item["image"])
        x, y, w, h = item["bbox"]
        box = [x / width, y / height, (x + w) / width, (y + h) / height]
        for which, phrase in enumerate(listed(item["answer"])):
            yield Asked(
                f"{item.get('question_id', number)}-{number}-{which}",
                f"Where in the picture is this: {phrase.strip()}?",
                **pictures(item["image"]),
            ).with_answers([_text(box)], False, name)


def screenspot(files: Files) -> Iterator[Asked]:
    """ScreenSpot: ``instruction``, ``bbox``, ``data_type`` (text, icon), ``data_source``, and ``image``, or
    ``file_name`` or ``img_filename`` below ``--images``. A box is x1, y1, x2, y2 in 0..1 (the Hub's)."""
    for number, (item, name) in enumerate(rows(files)):
        box = [float(one) for one in item["bbox"]]
        shown = item.get("image") or item.get("file_name") or item["img_filename"]
        if max(box) > 1:  # SeeClick's own file: x, y, width, height in pixels
            width, height = _size(item.get("image"))
            box = [box[0] / width, box[1] / height, (box[0] + box[2]) / width, (box[1] + box[3]) / height]
        yield Asked(
            str(number),
            item["instruction"],
            type=item.get("data_type") or "",
            facts={"category": item.get("data_source") or ""},
            **pictures(shown),
        ).with_answers([_text(box)], False, name)


def _size(image: Any) -> tuple[int, int]:
    """(width, height) of a picture inside the file."""
    image = next(iter(pictures(image).get("inline", ())), None)
    if not isinstance(image, Cell | bytes):
        raise ValueError("image: boxes in pixels need the picture inside the file, to know its size")
    with Image.open(io.BytesIO(image.read() if isinstance(image, Cell) else image)) as found:
        return found.size


def _text(box: Sequence[float]) -> str:
    return "[" + ", ".join(f"{min(max(one, 0.0), 1.0):.6f}" for one in box) + "]"


def videomme(files: Files) -> Iterator[Asked]:
    """Video-MME (lmms-lab/Video-MME): ``question_id``, ``videoID`` (a video is ``<videoID>.mp4``), ``question``,
    ``options`` ("A. ..."), ``answer``, ``duration`` (short, medium, long), ``domain``, ``task_type``."""
    for item, name in rows(files):
        options = [re.sub(r"^[A-Z]\.\s*", "", one) for one in listed(item["options"])]
        yield Asked(
            str(item["question_id"]),
            item["question"],
            type=item.get("duration") or "",
            options=options,
            video=item["videoID"],
            facts={"category": item.get("domain") or "", "task": item.get("task_type") or ""},
        ).with_answers([item["answer"]] if item.get("answer") else [], False, name)


def mvbench(files: Files) -> Iterator[Asked]:
    """MVBench (OpenGVLab/MVBench, json): a file per task, of ``video``, ``question``, ``candidates``, ``answer`` (the
    text of one), and ``start`` and ``end`` in seconds where it asks about a part."""
    for path in files.found["questions"]:
        for number, item in enumerate(table(path)):
            options, part = [str(one) for one in item["candidates"]], _segment(item)
            answer = str(item["answer"])
            yield Asked(
                f"{path.stem}-{number}",
                item["question"],
                options=options,
                video=item["video"],
                segment=part,
                facts={"category": path.stem},
            ).with_answers([letter(options.index(answer))] if answer in options else [], False, path.name)


def _segment(item: Row) -> tuple[float, float] | None:
    start, end = item.get("start"), item.get("end")
    return None if start is None or end is None else (float(start), float(end))
