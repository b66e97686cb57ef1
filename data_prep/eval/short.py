"""Sets that ask for a short answer: VQAv2, GQA, TextVQA, DocVQA, InfoVQA, ChartQA, POPE, and MM-Vet's free ones.

The layout of each file is in the docstring of its reader, by the names that the authors' release gives the fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.eval.asked import Asked
from data_prep.eval.files import Files, load, text


def vqav2(files: Files) -> Iterator[Asked]:
    """VQA v2 (visualqa.org/download, "VQA Input Questions" and "VQA Annotations" formats).

    ``v2_OpenEnded_mscoco_val2014_questions.json``: ``data_subtype``, ``questions`` of ``question_id``, ``image_id``,
    ``question``; ``v2_mscoco_val2014_annotations.json``: ``annotations`` of ``question_id``, ``answers`` (ten of
    ``answer``, ``answer_confidence``, ``answer_id``), ``answer_type`` (yes/no, number, other) and ``question_type``. An
    image is ``COCO_val2014_000000262148.jpg``, for test-dev ``COCO_test2015_...``. Test splits have no annotations.
    """
    asked, answered, file = files.json("questions"), {}, "the annotations"
    subset = asked["data_subtype"].replace("test-dev", "test")
    if files.has("answers"):
        answered = {item["question_id"]: item for item in files.json("answers")["annotations"]}
        file = files.path("answers").name
    for item in asked["questions"]:
        known: dict[str, Any] = answered.get(item["question_id"], {})
        yield Asked(
            question_id=str(item["question_id"]),
            official_id=item["question_id"],
            text=item["question"],
            type=known.get("answer_type", ""),
            images=[f"{subset}/COCO_{subset}_{item['image_id']:012d}.jpg"],
            facts={"question_type": known["question_type"]} if known else {},
        ).with_answers([answer["answer"] for answer in known.get("answers", ())], subset.startswith("test"), file)


def gqa(files: Files) -> Iterator[Asked]:
    """GQA (cs.stanford.edu/people/dorarad/gqa, questions1.2.zip).

    ``testdev_balanced_questions.json``: a dict by question id of ``question``, ``answer`` (one), ``imageId`` (an image
    is ``n161313.jpg``), ``types`` with ``structural``: "query" questions are the open ones, all others (verify,
    logical, choose, compare) its script calls binary.
    """
    for question_id, item in files.json("questions").items():
        structural = item.get("types", {}).get("structural", "")
        kind = structural and ("open" if structural == "query" else "binary")
        answers = [item["answer"]] if "answer" in item else []
        yield Asked(
            question_id,
            item["question"],
            type=kind,
            images=[f"images/{item['imageId']}.jpg"],
            facts={"structural": structural} if structural else {},
        ).with_answers(answers, files.hides, files.path("questions").name)


def textvqa(files: Files) -> Iterator[Asked]:
    """TextVQA (textvqa.org, TextVQA_0.5.1).

    ``TextVQA_0.5.1_val.json``: ``data`` of ``question_id``, ``question``, ``image_id``, ``answers`` (ten strings; none
    in the test file). Images of train and val lie in ``train_images``, of test in ``test_images``. With ``--ocr``,
    ``TextVQA_Rosetta_OCR_v0.2_val.json``: ``data`` of ``image_id`` and ``ocr_tokens``; they are put behind the question
    as LLaVA-1.5's question file does.
    """
    tokens = {} if files.ocr is None else {item["image_id"]: item["ocr_tokens"] for item in load(files.ocr)["data"]}
    folder = "test_images" if files.hides else "train_images"
    for item in files.json("questions")["data"]:
        text = item["question"]
        if files.ocr is not None:
            text += f"\nReference OCR token: {', '.join(tokens.get(item['image_id'], []))}"
        yield Asked(
            str(item["question_id"]),
            text,
            images=[f"{folder}/{item['image_id']}.jpg"],
            official_id=item["question_id"],
        ).with_answers(item.get("answers", ()), files.hides, files.path("questions").name)


def docvqa(files: Files) -> Iterator[Asked]:
    """DocVQA and InfographicVQA (rrc.cvc.uab.es, challenge 17, tasks 1 and 3).

    ``val_v1.0_withQT.json``: ``data`` of ``questionId``, ``question``, ``image`` (``documents/xnbl0037_1.png``),
    ``answers`` (none in test), ``question_types``. ``infographicsVQA_val_v1.0_withQT.json``: the image is
    ``image_local_name`` (``38899.jpeg``), and ``answer_type``, ``evidence`` and ``operation/reasoning``, by which RRC
    reports, stand for the types.
    """
    for item in files.json("questions")["data"]:
        names = ("question_types", "answer_type", "evidence", "operation/reasoning")
        facts = {name: item[name] for name in names if item.get(name)}
        yield Asked(
            str(item["questionId"]),
            item["question"],
            images=[item.get("image_local_name") or item["image"]],
            facts=facts,
            official_id=item["questionId"],
        ).with_answers(item.get("answers") or (), files.hides, files.path("questions").name)


def chartqa(files: Files) -> Iterator[Asked]:
    """ChartQA (github.com/vis-nlp/ChartQA, "ChartQA Dataset").

    ``test_human.json`` and ``test_augmented.json``: lists of ``imgname``, ``query`` and ``label`` (one answer). An
    image is ``png/<imgname>``. Questions have no ids, so they are numbered within their file: ``human-0``.
    """
    for kind in ("human", "augmented"):
        for path in files.found[kind]:
            for number, item in enumerate(load(path)):
                label = str(item.get("label", ""))
                yield Asked(
                    f"{kind}-{number}", item["query"], type=kind, images=[f"png/{item['imgname']}"]
                ).with_answers([label] if label else [], False, path.name)


def pope(files: Files) -> Iterator[Asked]:
    """POPE (github.com/AoiDragon/POPE, output/coco).

    ``coco_pope_random.json``, ``..._popular.json``, ``..._adversarial.json``: one object per line, of ``question_id``
    (from 1 in each file, so the subset is put before it), ``image`` (``COCO_val2014_....jpg``), ``text`` and ``label``,
    yes or no.
    """
    for subset in ("random", "popular", "adversarial"):
        for path in files.found[subset]:
            for item in _lines(path):
                yield Asked(
                    f"{subset}-{item['question_id']}",
                    item["text"],
                    type=subset,
                    images=[f"val2014/{item['image']}"],
                    official_id=item["question_id"],
                ).with_answers([item["label"]] if item.get("label") else [], False, path.name)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text(path).splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SystemExit(f"{path}: line {number} is not JSON: {error}") from error


def mmvet(files: Files) -> Iterator[Asked]:
    """MM-Vet (github.com/yuweihao/MM-Vet, mm-vet.zip).

    ``mm-vet.json``: a dict by id (``v1_0``) of ``imagename``, ``question``, ``answer`` (with ``<AND>`` and ``<OR>``),
    ``imagesource`` and ``capability``, a list. Images lie in ``images``.
    """
    for question_id, item in files.json("questions").items():
        yield Asked(
            question_id,
            item["question"],
            images=[f"images/{item['imagename']}"],
            facts={"capability": item.get("capability", [])},
        ).with_answers([item["answer"]] if item.get("answer") else [], False, files.path("questions").name)
