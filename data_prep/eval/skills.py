"""Sets that tell what a model can do, skill by skill: MME, MMBench, AI2D, OCRBench (both); and VizWiz and MultiDocVQA.

The layout of each file is in the docstring of its reader. Columns on the Hub are those of the dataset cards of
lmms-lab/ai2d and echo840/OCRBench, and what lmms-eval's task reads of lmms-lab/MP-DocVQA; RRC's own json of MultiDocVQA
is from memory, since it is behind a login. A file that is otherwise is refused by name.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.eval.asked import Asked, letter
from data_prep.eval.files import Files
from data_prep.eval.files import text as read
from data_prep.eval.tables import pictures, said, table
from data_prep.eval.tables import rows as rows_of
from data_prep.images import EXTENSIONS
from dslight.metrics.functional.yes_no import MME_COGNITION, MME_PERCEPTION
from dslight.metrics.multiple_choice import ROTATION_STRIDE


def mme(files: Files) -> Iterator[Asked]:
    """MME (MME_Benchmark_release_version): a folder per task, ``existence`` to ``code_reasoning``.

    Per image a text of two lines, a question and its answer with a tab between them: ``<task>/<name>.txt`` beside its
    image, or ``<task>/questions_answers_YN/<name>.txt`` and ``<task>/images/<name>.jpg``. " Please answer yes or no."
    is left out, as the benchmark's suffix says it otherwise. A question's id is what scores pairs: the number of its
    image within the task, which of its questions, the task.
    """
    for task in (*MME_PERCEPTION, *MME_COGNITION):
        texts = [path for path in files.found["questions"] if task in (path.parent.name, path.parent.parent.name)]
        for number, path in enumerate(sorted(texts, key=lambda path: path.name)):
            lines = [line for line in read(path).splitlines() if line.strip()]
            image = _image_beside(path, task)
            for which, line in enumerate(lines):
                text, _, answer = line.partition("\t")
                yield Asked(
                    f"{number}/{which}/{task}",
                    text.removesuffix("Please answer yes or no.").strip(),
                    type=task,
                    images=[image],
                    facts={"image": Path(image).name},
                ).with_answers([answer.strip()] if answer.strip() else [], False, f"{task}/{path.name}")


def _image_beside(path: Path, task: str) -> str:
    for folder in (path.parent, path.parent.parent / "images"):
        for ending in EXTENSIONS:
            if (found := folder / f"{path.stem}.{ending}").is_file():
                return "/".join([*([task] if folder.name != task else []), folder.name, found.name])
    return f"{task}/{path.stem}.jpg"


def mmbench(files: Files) -> Iterator[Asked]:
    """MMBench (github.com/open-compass/MMBench): ``mmbench_dev_20230712.tsv``, ``MMBench_TEST_EN_V11.tsv`` and alike.

    Columns ``index`` (a rotation of the options of question i is i + n 1,000,000), ``question``, ``hint``, ``A``,
    ``B`` and so on (some empty), ``answer`` (a letter; none where it is hidden), ``category``, ``image`` (base64, or
    the index of the row that has it). The hint goes before the question. The Hub's parquet files have the same columns.
    """
    groups: dict[int, int] = {}
    for item, name in rows_of(files):
        hint, answer, index = (said(item.get(key)) for key in ("hint", "answer", "index"))
        group = groups.setdefault(int(index) % ROTATION_STRIDE, len(groups))
        yield Asked(
            index,
            f"{hint}\n{item['question']}" if hint else item["question"],
            type=said(item.get("category")),
            options=[text for c in string.ascii_uppercase if (text := said(item.get(c)))],
            official_id=int(index),
            facts={"group": group, **({"hint": hint} if hint else {})},
            **pictures(item["image"]),
        ).with_answers([answer] if answer else [], files.hides, name)


def ai2d(files: Files) -> Iterator[Asked]:
    """AI2D's test set as lmms-eval has it (huggingface.co/datasets/lmms-lab/ai2d).

    Parquet files, or a json list exported from them: ``question``, ``options`` (a list), ``answer`` (an index), and
    ``image``, ``{"bytes", "path"}`` or a path below ``--images``. Questions have no ids, so they are numbered.
    """
    for path in files.found["questions"]:
        for number, item in enumerate(table(path)):
            yield Asked(
                f"{path.stem}-{number}",
                item["question"],
                options=list(item["options"]),
                **pictures(item["image"]),
            ).with_answers([letter(int(item["answer"]))], False, path.name)


def ocrbench(files: Files) -> Iterator[Asked]:
    """OCRBench (github.com/Yuliang-Liu/MultimodalOCR, OCRBench.json).

    A list of ``dataset_name``, ``type``, ``question``, ``answers`` (a text, or several), ``image_path``. Questions have
    no ids, so they are numbered.
    """
    for number, item in enumerate(files.json("questions")):
        answers: Any = item["answers"]
        yield Asked(
            str(number),
            item["question"],
            type=item["type"],
            images=[item["image_path"].removeprefix("./")],
            facts={"dataset_name": item["dataset_name"]},
        ).with_answers([answers] if isinstance(answers, str) else answers, False, files.path("questions").name)


def ocrbench_v2(files: Files) -> Iterator[Asked]:
    """OCRBench v2 (github.com/Yuliang-Liu/MultimodalOCR): ``OCRBench_v2.json``, or the Hub's parquet.

    ``id``, ``dataset_name``, ``type``, ``question``, ``answers`` (texts, numbers or dictionaries; of a box its four
    numbers), ``image_path`` or ``image``, ``eval`` ("None": none); ``bbox``, and of spotted words ``bbox`` or
    ``bbox_list``, with the words in ``content``. What it leaves out of its means, a text without a translation, is set
    aside here.
    """
    for item, name in rows_of(files):
        kind, answers = item["type"], item.get("answers")
        if kind == "text spotting en":
            answers = item["content"]
        answers = answers if isinstance(answers, list) else [] if answers is None else [answers]
        if kind == "text grounding en":
            answers = [[int(number) for number in answers]] if answers else []
        rule, box = said(item.get("eval")), item.get("bbox") or item.get("bbox_list")
        texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in answers]
        yield Asked(
            str(item["id"]),
            item["question"],
            type=kind,
            official_id=item["id"],
            facts={
                "dataset_name": said(item.get("dataset_name")),
                **({} if rule in ("", "None") else {"eval": rule}),
                **({"bbox": box} if box else {}),
            },
            **pictures(item["image_path"].removeprefix("./") if "image_path" in item else item["image"]),
        ).with_answers(texts if any(texts) else [], False, name)


def vizwiz(files: Files) -> Iterator[Asked]:
    """VizWiz-VQA (vizwiz.org): ``val.json``, ``test.json``.

    A list of ``image`` (``VizWiz_val_00000000.jpg``, asked about once), ``question``, ``answers`` (ten of ``answer``,
    ``answer_confidence``; none in test), ``answer_type`` (yes/no, number, other, unanswerable).
    """
    for item in files.json("questions"):
        yield Asked(
            item["image"],
            item["question"],
            type=item.get("answer_type", ""),
            images=[f"{files.split}/{item['image']}"],
            facts={"image": item["image"]},
        ).with_answers(
            [answer["answer"] for answer in item.get("answers", ())], files.hides, files.path("questions").name
        )


def multidocvqa(files: Files) -> Iterator[Asked]:
    """MP-DocVQA (rrc.cvc.uab.es, challenge 17, task 4): ``val.json``, ``test.json``.

    ``data`` of ``questionId``, ``question``, ``doc_id``, ``page_ids`` (up to 20), ``answers`` (none in test). All pages
    are shown, in their order; a page is ``images/<page_id>.jpg``.
    """
    for item in files.json("questions")["data"]:
        yield Asked(
            str(item["questionId"]),
            item["question"],
            images=[f"images/{page}.jpg" for page in item["page_ids"]],
            official_id=item["questionId"],
            facts={"doc_id": item["doc_id"]},
        ).with_answers(item.get("answers") or (), files.hides, files.path("questions").name)
