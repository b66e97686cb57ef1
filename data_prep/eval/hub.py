"""The official sets in the form that the Hub has them in (parquet with the pictures inside; lmms-lab, lmms-lab-encoder,
lmms-eval, HuggingFaceM4, derek-thomas, echo840): the same questions, ids and answers as from the authors' files.

Columns are those that lmms-eval's tasks read. What a column is called in two places is looked up under both names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from data_prep.eval.asked import Asked, letter
from data_prep.eval.choice import NEXTQA_TYPES
from data_prep.eval.files import Files
from data_prep.eval.tables import Row, listed, pictures, rows, said
from dslight.metrics.benchmarks import ACTIVITYNET_TYPES


def _each(make: Callable[[Row], tuple[Asked, list[str]]]) -> Callable[[Files], Iterator[Asked]]:
    """A reader of rows that need nothing of each other."""

    def read(files: Files) -> Iterator[Asked]:
        for item, name in rows(files):
            asked, answers = make(item | {"file": name})
            yield asked.with_answers([answer for answer in answers if answer], files.hides, name)

    read.__doc__ = make.__doc__
    return read


def _vqav2(item: Row) -> tuple[Asked, list[str]]:
    """``question_id``, ``question``, ``answers`` (of ``answer``), ``answer_type``, ``question_type``, ``image``."""
    kind = item.get("question_type")
    return Asked(
        str(item["question_id"]),
        item["question"],
        official_id=item["question_id"],
        type=item.get("answer_type") or "",
        facts={"question_type": kind} if kind else {},
        **pictures(item["image"]),
    ), [answer["answer"] for answer in item.get("answers") or ()]


def _textvqa(item: Row) -> tuple[Asked, list[str]]:
    """``question_id``, ``question``, ``answers``, ``image``."""
    number = item["question_id"]
    asked = Asked(str(number), item["question"], official_id=number, **pictures(item["image"]))
    return asked, listed(item.get("answers"))


def _docvqa(item: Row) -> tuple[Asked, list[str]]:
    """``questionId``, ``question``, ``answers``, ``image``; of InfographicVQA also ``answer_type``, ``evidence``..."""
    names = ("question_types", "answer_type", "evidence", "operation/reasoning")
    return Asked(
        str(item["questionId"]),
        item["question"],
        official_id=_number(item["questionId"]),
        facts={name: item[name] for name in names if item.get(name)},
        **pictures(item["image"]),
    ), listed(item.get("answers"))


def _multidocvqa(item: Row) -> tuple[Asked, list[str]]:
    """``questionId``, ``question``, ``doc_id``, ``answers`` (Python text of a list), ``image_1`` to ``image_20``."""
    pages = [item[f"image_{n}"] for n in range(1, 21) if item.get(f"image_{n}") is not None]
    return Asked(
        str(item["questionId"]),
        item["question"],
        official_id=_number(item["questionId"]),
        facts={"doc_id": item["doc_id"]},
        **pictures(pages),
    ), listed(item.get("answers"))


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _mmvet(item: Row) -> tuple[Asked, list[str]]:
    """``question_id``, ``question``, ``answer``, ``capability`` (a list, or words with commas), ``image``."""
    skills = item.get("capability") or []
    skills = [one.strip() for one in skills.split(",")] if isinstance(skills, str) else list(skills)
    asked = Asked(item["question_id"], item["question"], facts={"capability": skills}, **pictures(item["image"]))
    return asked, [item.get("answer") or ""]


def _pope(item: Row) -> tuple[Asked, list[str]]:
    """``question_id`` (from 1 in each ``category``, which the file may be called after), ``question``, ``answer``,
    ``image``."""
    kind = item.get("category") or item["file"].split("-")[0]
    return Asked(
        f"{kind}-{item['question_id']}",
        item["question"],
        type=kind,
        official_id=_number(item["question_id"]),
        **pictures(item["image"]),
    ), [item.get("answer") or ""]


def _seed(item: Row) -> tuple[Asked, list[str]]:
    """As ``SEED-Bench.json``, and ``image``: a list; frames of a video stand there too."""
    return Asked(
        str(item["question_id"]),
        item["question"],
        type=item.get("data_type") or "image",
        options=[item[f"choice_{c}"] for c in "abcd"],
        facts={"dimension": str(item.get("question_type_id") or item.get("question_type") or "")},
        **pictures(item["image"]),
    ), [item.get("answer") or ""]


def _vizwiz(item: Row) -> tuple[Asked, list[str]]:
    """``question_id`` (the image's name), ``question``, ``answers``, ``category`` (the answer's type), ``image``."""
    name = item["question_id"]
    asked = Asked(
        name, item["question"], type=item.get("category") or "", facts={"image": name}, **pictures(item["image"])
    )
    return asked, listed(item.get("answers"))


def _egoschema(item: Row) -> tuple[Asked, list[str]]:
    """``video_idx``, ``question``, ``option`` (texts "A. ..."), ``answer`` (an index)."""
    options = [one[3:] if one[1:3] == ". " else one for one in item["option"]]
    asked = Asked(item["video_idx"], item["question"], options=options, video=item["video_idx"])
    given = said(item.get("answer"))
    return asked, [letter(int(given)) if given.isdecimal() else ""]


def _nextqa(item: Row) -> tuple[Asked, list[str]]:
    """As ``test.csv``."""
    return Asked(
        f"{item['video']}_{item['qid']}",
        item["question"],
        type=NEXTQA_TYPES[item["type"][0]],
        options=[item[f"a{i}"] for i in range(5)],
        video=str(item["video"]),
        facts={"question_type": item["type"]},
    ), [letter(int(item["answer"]))]


def _activitynetqa(item: Row) -> tuple[Asked, list[str]]:
    """``video_name``, ``question``, ``question_id``, ``answer``, ``type`` (0 to 8)."""
    name, kind = item["video_name"], said(item.get("type"))
    return Asked(
        str(item["question_id"]),
        item["question"],
        type=ACTIVITYNET_TYPES[int(kind)] if kind.isdecimal() else kind,
        video=name if name.startswith("v_") and len(name) > 11 else f"v_{name}",
        facts={"video": name},
        official_id=item["question_id"],
    ), [item.get("answer") or ""]


def _msvdqa(item: Row) -> tuple[Asked, list[str]]:
    """``video_name`` (or ``video``), ``question``, ``question_id`` (or ``id``), ``answer``."""
    name = item.get("video_name") or item["video"]
    number = item["question_id"] if "question_id" in item else item["id"]
    asked = Asked(str(number), item["question"], official_id=number, video=name, facts={"video": name})
    return asked, [item.get("answer") or ""]


def gqa(files: Files) -> Iterator[Asked]:
    """Two kinds of files: questions (``id``, ``imageId``, ``question``, ``answer``, ``types``) and pictures (``id``,
    ``image``)."""
    asked, found = [], {}
    for item, name in rows(files):
        if "question" in item:
            asked.append((item, name))
        else:
            found[item["id"]] = item["image"]
    for item, name in asked:
        structural = (item.get("types") or {}).get("structural") or ""
        image = item.get("image") or found.get(item["imageId"]) or f"images/{item['imageId']}.jpg"
        yield Asked(
            item["id"],
            item["question"],
            type=structural and ("open" if structural == "query" else "binary"),
            facts={"structural": structural} if structural else {},
            **pictures(image),
        ).with_answers([item["answer"]] if item.get("answer") else [], files.hides, name)


def chartqa(files: Files) -> Iterator[Asked]:
    """``question`` or ``query``, ``answer`` or ``label`` (a list), ``image``; ``type`` (human_test, augmented_test) or
    ``human_or_machine`` (0, 1)."""
    counts: dict[str, int] = {}
    for item, name in rows(files):
        kind = said(item.get("type")).split("_")[0] or ("augmented" if item.get("human_or_machine") else "human")
        number = counts[kind] = counts.get(kind, -1) + 1
        label = listed(item["answer"] if "answer" in item else item.get("label"))
        text = item["question"] if "question" in item else item["query"]
        yield Asked(f"{kind}-{number}", text, type=kind, **pictures(item["image"])).with_answers(label[:1], False, name)


def scienceqa(files: Files) -> Iterator[Asked]:
    """``question``, ``choices``, ``answer`` (an index), ``hint``, ``image``, ``subject``. Questions have no ids here,
    so they are numbered."""
    for number, (item, name) in enumerate(rows(files)):
        hint, answer = (item.get("hint") or "").strip(), item.get("answer")
        yield Asked(
            str(number),
            f"Context: {hint}\n{item['question']}" if hint else item["question"],
            type="image" if item.get("image") else "text",
            options=item["choices"],
            facts={"subject": item.get("subject", "")},
            **pictures(item.get("image")),
        ).with_answers([] if answer is None else [letter(int(answer))], False, name)


def mme(files: Files) -> Iterator[Asked]:
    """``question_id`` (``<task>/<image>``, the same for both questions of an image), ``category``, ``question``,
    ``answer``, ``image``."""
    tasks: dict[str, dict[str, list[tuple[Row, str]]]] = {}
    for item, name in rows(files):
        tasks.setdefault(item["category"], {}).setdefault(item["question_id"], []).append((item, name))
    for task, images in tasks.items():
        ordered = sorted(images, key=lambda name: PurePosixPath(name).stem)
        for number, name in enumerate(ordered):
            for which, (item, file) in enumerate(images[name]):
                yield Asked(
                    f"{number}/{which}/{task}",
                    item["question"].strip().removesuffix("Please answer yes or no.").strip(),
                    type=task,
                    facts={"image": PurePosixPath(name).name},
                    **pictures(item["image"]),
                ).with_answers([said(item.get("answer"))] if said(item.get("answer")) else [], False, file)


def ocrbench(files: Files) -> Iterator[Asked]:
    """``dataset`` or ``dataset_name``, ``question_type`` or ``type``, ``question``, ``answer`` or ``answers``,
    ``image``. Questions have no ids, so they are numbered."""
    for number, (item, name) in enumerate(rows(files)):
        answers = listed(item["answer"] if "answer" in item else item.get("answers"))
        yield Asked(
            str(number),
            item["question"],
            type=item.get("question_type") or item.get("type") or "",
            facts={"dataset_name": item.get("dataset") or item.get("dataset_name") or ""},
            **pictures(item["image"]),
        ).with_answers(answers, False, name)


READERS: dict[str, Callable[[Files], Iterator[Asked]]] = {
    "vqav2": _each(_vqav2),
    "textvqa": _each(_textvqa),
    "docvqa": _each(_docvqa),
    "infovqa": _each(_docvqa),
    "multidocvqa": _each(_multidocvqa),
    "vizwiz": _each(_vizwiz),
    "mmvet": _each(_mmvet),
    "pope": _each(_pope),
    "seed": _each(_seed),
    "egoschema": _each(_egoschema),
    "nextqa": _each(_nextqa),
    "activitynetqa": _each(_activitynetqa),
    "msvdqa": _each(_msvdqa),
    "gqa": gqa,
    "chartqa": chartqa,
    "scienceqa": scienceqa,
    "mme": mme,
    "ocrbench": ocrbench,
}
"""By set; those whose own reader takes parquet already (AI2D, MMMU, MMBench) are not here."""
