"""Sets about long videos and long documents: LongVideoBench, MLVU and MMLongBench-Doc.

Columns of LongVideoBench and MMLongBench-Doc are those of their dataset cards on the Hub, MLVU's those of its
repository; the columns of MLVU's parquet are what lmms-eval's task reads of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data_prep.eval.asked import Asked, letter
from data_prep.eval.files import Files
from data_prep.eval.tables import listed, rows, said
from data_prep.images import EXTENSIONS

MOST_PAGES = 120
"""Of a document, as MMLongBench-Doc's own program shows."""


def longvideobench(files: Files) -> Iterator[Asked]:
    """LongVideoBench (longvideobench/LongVideoBench): ``lvb_val.json``, ``lvb_test_wo_gt.json``, the Hub's parquet, or
    VLMEvalKit's TSV.

    ``id``, ``question``, ``candidates`` or ``option0`` to ``option4`` ("N/A": there is none), ``correct_choice`` (an
    index; none in test), ``video_path``, ``duration_group`` (15, 60, 600, 3600 seconds), ``question_category``,
    ``topic_category``. Subtitles are not shown, as in lmms-eval's ``longvideobench_val_v``.
    """
    for item, name in rows(files):
        options = listed(item.get("candidates")) or [item.get(f"option{i}") or "N/A" for i in range(5)]
        options = [one for one in options if one != "N/A"]
        given = said(item.get("correct_choice"))
        right = [letter(int(float(given)))] if given and 0 <= float(given) < len(options) else []
        yield Asked(
            str(item["id"]),
            item["question"],
            type=str(int(float(item["duration_group"]))),
            options=options,
            video=item["video_path"].removeprefix("./"),
            facts={"category": said(item.get("question_category")), "topic": said(item.get("topic_category"))},
        ).with_answers(right, files.hides, name)


_MLVU_NAMES = {"findNeedle": "needle", "needleQA": "needle"}


def mlvu(files: Files) -> Iterator[Asked]:
    """MLVU's questions with options (github.com/JUNJIE99/MLVU): ``1_plotQA.json`` to ``7_topic_reasoning.json``,
    ``test_question.json`` (``--split test``), or lmms-eval's parquet of both.

    ``question``, ``candidates``, ``answer`` (the text of one; a letter in the parquet), ``question_type`` or
    ``task_type``, ``video`` (in a folder called after the file) or ``video_name``, ``question_id`` (none in dev:
    numbered). To two questions of its dev files the answer is none of the options; no letter is right there, as to its
    own program.
    """
    for number, (item, name) in enumerate(rows(files)):
        kind = said(item.get("question_type")) or said(item.get("task_type"))
        stem = PurePosixPath(name).stem
        video = item.get("video_name") or (f"{stem}/{item['video']}" if stem[:1].isdecimal() else item["video"])
        text, options = said(item["question"]), [one.strip() for one in listed(item.get("candidates"))]
        if options:
            text = re.split(r"\n\s*(?:Options:|\(?A[.)])", text, maxsplit=1)[0]
        else:
            text, *options = re.split(r"\n\s*\(?[A-H][.)]\s*", text)
        answer = said(item.get("answer"))
        if answer in options:
            answer = letter(options.index(answer))
        index = said(item.get("question_id"))
        yield Asked(
            index or f"{stem}-{number}",
            text.removeprefix("Question: ").strip(),
            type=_MLVU_NAMES.get(kind, kind),
            options=options,
            video=video,
            facts={"question_type": kind},
            official_id=index or None,
        ).with_answers([answer.strip("()")] if answer else [], files.hides, name)


def mmlongbench_doc(files: Files, evidence: bool = False) -> Iterator[Asked]:
    """MMLongBench-Doc (yubo2333/MMLongBench-Doc): ``samples.json`` or the Hub's parquet.

    ``doc_id`` (``name.pdf``), ``doc_type``, ``question``, ``answer``, ``answer_format`` (Str, Int, Float, List, None),
    ``evidence_pages`` and ``evidence_sources`` (Python text of lists). Pages are pictures below ``--images``:
    ``name_1.png`` and so on, as its own program draws them, or ``name-01.png``, as ``pdftoppm -r 144 -png`` does.

    Args:
        files: what was found.
        evidence: show the pages that have the answer (none, where nothing has), as lmms-eval does, instead of the first
            120. Numbers of the two are not comparable.
    """
    pages: dict[str, dict[int, str]] = {}
    for number, (item, name) in enumerate(rows(files)):
        document = PurePosixPath(item["doc_id"]).name.removesuffix(".pdf")
        if document not in pages:
            pages[document] = _pages(files.folders, document)
        meant = [int(one) for one in listed(item.get("evidence_pages")) if one.isdecimal()]
        found = pages[document]
        shown = [n for n in found if n in meant] if evidence else list(found)[:MOST_PAGES]
        asked = Asked(
            str(number),
            item["question"],
            images=[found[n] for n in shown],
            facts={
                "answer_format": item["answer_format"],
                "doc_id": item["doc_id"],
                "doc_type": item.get("doc_type") or "",
                "evidence_pages": meant,
                "evidence_sources": listed(item.get("evidence_sources")),
            },
        ).with_answers([said(item["answer"])], False, name)
        missing = next((n for n in meant if n not in found), None) if evidence else None if found else 1
        problem = f"question {number}: there is no picture of page {missing} of {item['doc_id']}"
        yield asked if missing is None else replace(asked, problem=problem)


def _pages(folders: Sequence[Path], document: str) -> dict[int, str]:
    """Pictures of the pages of a document, by their numbers, in order."""
    named = re.compile(rf"{re.escape(document)}[_-](\d+)\.(?:{'|'.join(EXTENSIONS)})", re.IGNORECASE)
    found = {
        int(match[1]): path.relative_to(folder).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if (match := named.fullmatch(path.name))
    }
    return dict(sorted(found.items()))
