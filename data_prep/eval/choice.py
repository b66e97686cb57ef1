"""Sets that ask for a letter: SEED-Bench, MMMU, ScienceQA, EgoSchema and NExT-QA.

The layout of each file is in the docstring of its reader, by the names that the authors' release gives the fields.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.eval.asked import Asked, letter
from data_prep.eval.files import Files
from data_prep.eval.tables import pictures, table
from dslight.data.sample import IMAGE_TOKEN
from dslight.metrics.benchmarks import SHORT


def seed(files: Files) -> Iterator[Asked]:
    """SEED-Bench 1 (github.com/AILab-CVC/SEED-Bench, DATASET.md).

    ``SEED-Bench.json``: ``questions`` of ``question_id``, ``question``, ``choice_a`` to ``choice_d``, ``answer`` (a
    letter), ``data_type`` (image, video), ``data_id``, ``question_type_id`` (1 to 9 of images, 10 to 12 of videos) and
    ``segment`` (type 11: seconds; type 12: frames, 15 a second); ``question_type``: id by name. An image is
    ``SEED-Bench-image/<data_id>``, without an ending. A video is asked about by its one middle frame, if
    ``SEED-Bench-video-image/<type>_<id>.png`` is there as LLaVA-1.5's script writes it, else by frames of the video.
    """
    content = files.json("questions")
    names = {number: name for name, number in content.get("question_type", {}).items()}
    for item in content["questions"]:
        kind, dimension, question_id = item["data_type"], item["question_type_id"], str(item["question_id"])
        segment = item.get("segment") if kind == "video" else None
        if segment and dimension == 12:
            segment = [frame / 15 for frame in segment]
        image = f"SEED-Bench-image/{item['data_id']}"
        if kind == "video":
            image = f"SEED-Bench-video-image/{dimension}_{question_id}.png"
        yield Asked(
            question_id,
            item["question"],
            type=kind,
            options=[item[f"choice_{c}"] for c in "abcd"],
            images=[image],
            video=item["data_id"] if kind == "video" else "",
            segment=(segment[0], segment[1]) if segment else None,
            facts={"dimension": names.get(dimension, str(dimension))},
        ).with_answers([item["answer"]] if item.get("answer") else [], False, files.path("questions").name)


_DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy "
    "Public_Health",
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power "
    "Materials Mechanical_Engineering",
}
_DOMAIN_OF = {subject: domain for domain, subjects in _DOMAINS.items() for subject in subjects.split()}
_MARK = re.compile(r"<image (\d+)>")


def mmmu(files: Files) -> Iterator[Asked]:
    """MMMU (huggingface.co/datasets/MMMU/MMMU).

    A parquet file per subject (``Accounting/validation-00000-of-00001.parquet``), or a json list exported from them:
    ``id`` (``validation_Accounting_1``), ``question`` and ``options`` (a list, or its Python text) with ``<image 1>``
    marks, ``answer`` (a letter, or the open answer or the Python text of several; "?" in test), ``question_type``
    (multiple-choice, open), ``subfield``, and ``image_1`` to ``image_7``: ``{"bytes", "path"}``, in a json a path below
    ``--images``. An image stands where it is first marked; a second mark of it stays text, and an image that is marked
    nowhere is not shown. Without any mark all are shown, before the question. Open questions are asked for a word or
    phrase, not for a letter.
    """
    for path in files.found["questions"]:
        for item in table(path):
            yield _mmmu_question(item, files, path)


def mmmu_pro(files: Files) -> Iterator[Asked]:
    """MMMU-Pro (MMMU/MMMU_Pro), a folder at a time: "standard (10 options)", "standard (4 options)" as MMMU with
    ``subject``; "vision", whose ``image`` shows question and options, so that neither is in the text."""
    for path in files.found["questions"]:
        for item in table(path):
            if "question" in item:
                yield _mmmu_question(item | {"question_type": "multiple-choice"}, files, path)
                continue
            yield Asked(
                item["id"],
                "Answer the question in the picture.",
                facts={"subject": item.get("subject", ""), "options": _python_list(item["options"])},
                **pictures(item["image"]),
            ).with_answers([item["answer"]], False, path.name)


def _mmmu_question(item: dict[str, Any], files: Files, path: Path) -> Asked:
    subject = item["id"].split("_", 1)[1].rsplit("_", 1)[0]
    given = {n: item[f"image_{n}"] for n in range(1, 8) if item.get(f"image_{n}") is not None}
    texts = [item["question"], *_python_list(item["options"])]
    order: list[int] = []

    def place(match: re.Match[str]) -> str:
        number = int(match[1])
        if number in order or number not in given:
            return match[0]
        order.append(number)
        return IMAGE_TOKEN

    text, *options = [_MARK.sub(place, text) for text in texts]
    images = [given[number] for number in order or given]
    multiple = item["question_type"] == "multiple-choice"
    answers = [] if item["answer"] in ("?", None, "") else _python_list(item["answer"])
    return Asked(
        item["id"],
        text,
        type=_DOMAIN_OF.get(subject, ""),
        options=options if multiple else [],
        facts={"subject": item.get("subject") or subject, "question_type": item["question_type"]},
        suffix=None if multiple else SHORT,
        **pictures(images),
    ).with_answers(answers, files.hides, path.name)


def _python_list(value: Any) -> list[str]:
    """A list, the Python text of one, or one string."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return [value]
    return [str(x) for x in value] if isinstance(value, list) else [str(value)]


def scienceqa(files: Files) -> Iterator[Asked]:
    """ScienceQA (github.com/lupantech/ScienceQA, data/scienceqa).

    ``problems.json``: a dict by id of ``question``, ``choices``, ``answer`` (an index), ``hint``, ``image`` (a file
    name or null: about half have none), ``subject``; ``pid_splits.json``: ids by split. An image is
    ``<split>/<id>/<image>``. The hint goes before the question, as "Context: ...".
    """
    problems, splits = files.json("problems"), files.json("splits")
    if files.split not in splits:
        raise SystemExit(f"--split: {files.split!r} is none of {', '.join(splits)}")
    for question_id in splits[files.split]:
        item = problems[question_id]
        hint = item.get("hint", "").strip()
        answer = item.get("answer")
        yield Asked(
            question_id,
            f"Context: {hint}\n{item['question']}" if hint else item["question"],
            type="image" if item.get("image") else "text",
            options=item["choices"],
            images=[f"{files.split}/{question_id}/{item['image']}"] if item.get("image") else [],
            facts={"subject": item.get("subject", "")},
        ).with_answers([] if answer is None else [letter(answer)], False, files.path("problems").name)


def egoschema(files: Files) -> Iterator[Asked]:
    """EgoSchema (github.com/egoschema/EgoSchema).

    ``questions.json``: a list of ``q_uid``, ``question`` and ``option 0`` to ``option 4``; ``subset_answers.json``: the
    index of the right option by ``q_uid``, of 500. A video is ``<q_uid>.mp4``. Split ``subset`` asks those 500; ``all``
    asks all 5,031, the answers to most of which are hidden.
    """
    if files.split not in ("subset", "all"):
        raise SystemExit(f"--split: {files.split!r} is neither subset nor all")
    answers = files.json("answers") if files.has("answers") else {}
    if files.split == "subset" and not answers:
        raise SystemExit("--annotations: no subset_answers.json; give it, or ask --split all")
    for item in files.json("questions"):
        answer = answers.get(item["q_uid"])
        if files.split == "all" or answer is not None:
            yield Asked(
                item["q_uid"],
                item["question"],
                options=[item[f"option {i}"] for i in range(5)],
                video=item["q_uid"],
            ).with_answers([] if answer is None else [letter(answer)], files.split == "all", "subset_answers.json")


NEXTQA_TYPES = {"C": "causal", "T": "temporal", "D": "descriptive"}


def nextqa(files: Files) -> Iterator[Asked]:
    """NExT-QA, multiple choice (github.com/doc-doc/NExT-QA, dataset/nextqa).

    ``test.csv``: ``video``, ``question``, ``answer`` (an index), ``qid`` (unique within its video), ``type`` (CW CH TN
    TC TP DC DL DO; the first letter is causal, temporal, descriptive), ``a0`` to ``a4``. A video is ``<video>.mp4``,
    or, where ``map_vid_vidorID.json`` is given, its VidOR path: ``1164/3238737531``.
    """
    paths: dict[str, str] = files.json("map") if files.has("map") else {}
    with files.path("questions").open(encoding="utf-8-sig", newline="") as file:
        for item in csv.DictReader(file):
            yield Asked(
                f"{item['video']}_{item['qid']}",
                item["question"],
                type=NEXTQA_TYPES[item["type"][0]],
                options=[item[f"a{i}"] for i in range(5)],
                video=paths.get(item["video"], item["video"]),
                facts={"question_type": item["type"]},
            ).with_answers([letter(int(item["answer"]))] if item["answer"] else [], False, files.path("questions").name)
