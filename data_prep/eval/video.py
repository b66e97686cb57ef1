"""Sets of free questions about videos, whose answers a language model judges: MSVD-QA and ActivityNet-QA.

The layout of each file is in the docstring of its reader; a file that is otherwise is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.eval.asked import Asked
from data_prep.eval.files import Files, text
from dslight.metrics.benchmarks import ACTIVITYNET_TYPES


def msvdqa(files: Files) -> Iterator[Asked]:
    """MSVD-QA (github.com/xudejing/video-question-answering).

    ``test_qa.json``: a list of ``id``, ``question``, ``answer`` (a word), ``video_id`` (a number). A video is
    ``vid<number>``, or, where MSVD's ``youtube_mapping.txt`` is given (lines of a clip's name and ``vid<number>``), the
    clip: ``-4wsuPCjDBc_5_15``. Video-ChatGPT's form of it, ``test_q.json`` (``question_id``, ``question``,
    ``video_name``, a clip) and ``test_a.json`` (``question_id``, ``answer``), is read as well.
    """
    if files.has("answers"):
        yield from _zero_shot(files)
        return
    clips: dict[str, str] = {}
    if files.has("map"):
        lines = text(files.path("map")).splitlines()
        clips = {video: clip for clip, video in (line.split() for line in lines if line.strip())}
    for item in files.json("questions"):
        video = f"vid{item['video_id']}"
        yield Asked(
            str(item["id"]),
            item["question"],
            official_id=item["id"],
            video=clips.get(video, video),
            facts={"video": video},
        ).with_answers([item["answer"]] if item.get("answer") else [], False, files.path("questions").name)


def _zero_shot(files: Files) -> Iterator[Asked]:
    answered = {item["question_id"]: item for item in files.json("answers")}
    for item in files.json("questions"):
        number, answer = item["question_id"], answered.get(item["question_id"], {}).get("answer")
        yield Asked(
            str(number),
            item["question"],
            official_id=number,
            video=item["video_name"],
            facts={"video": item["video_name"]},
        ).with_answers([answer] if answer else [], False, files.path("answers").name)


def activitynetqa(files: Files) -> Iterator[Asked]:
    """ActivityNet-QA (github.com/MILVLG/activitynet-qa, dataset).

    ``test_q.json``: a list of ``question_id``, ``question``, ``video_name`` (``1QIUV7WYKXg``); ``test_a.json``: a list
    of ``question_id``, ``answer``, ``type`` (0 to 8: motion, spatial and temporal relationship, yes/no, color, object,
    location, number, other). A video is ``v_<video_name>``.
    """
    answered = {item["question_id"]: item for item in files.json("answers")}
    for item in files.json("questions"):
        name, known = item["video_name"], answered.get(item["question_id"], {})
        kind = known.get("type")
        yield Asked(
            str(item["question_id"]),
            item["question"],
            type="" if kind is None else ACTIVITYNET_TYPES[int(kind)],
            video=name if name.startswith("v_") and len(name) > 11 else f"v_{name}",  # of YouTube's 11 characters
            facts={"video": name},
            official_id=item["question_id"],
        ).with_answers([known["answer"]] if known.get("answer") else [], False, files.path("answers").name)
