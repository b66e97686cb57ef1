"""Sets whose answers a language model judges and that have files of their own: CharXiv, LLaVA-Bench (in the Wild)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.eval.asked import Asked
from data_prep.eval.files import Files, text
from data_prep.eval.tables import Row, listed, pictures, rows, said, table

Texts = dict[int, str]

_ABSENT = " If there is none, answer 'Not Applicable'."
_LEGEND = " Count only what belongs to this plot."
DESCRIPTIVE: Texts = {
    1: "{}which title is written?" + _ABSENT,
    2: "{}how is the x-axis labelled (the lower one of two)?" + _ABSENT,
    3: "{}how is the y-axis labelled (the left one of two)?" + _ABSENT,
    4: "{}which tick label of the x-axis is leftmost? Leave units out.",
    5: "{}which tick label of the x-axis is rightmost? Leave units out.",
    6: "{}which tick label of the y-axis is lowest? Leave units out.",
    7: "{}which tick label of the y-axis is highest? Leave units out.",
    8: "{}by how much do neighbouring ticks of the x-axis differ?" + _ABSENT,
    9: "{}by how much do neighbouring ticks of the y-axis differ?" + _ABSENT,
    10: "{}how many lines are drawn, without grid and helping lines?" + _ABSENT,
    11: "{}do any of the lines cross, yes or no? Where no lines are drawn, answer 'Not Applicable'.",
    12: "{}how many labels has the legend?" + _LEGEND + _ABSENT,
    13: "{}which labels has the legend, top to bottom, then left to right, with commas between?" + _LEGEND + _ABSENT,
    14: "{}how far apart are the largest and the smallest tick of the colour bar? Leave percent signs out." + _ABSENT,
    15: "{}which is the largest tick of the colour bar? Leave percent signs out." + _ABSENT,
    16: "{}how do the data go from left to right, in a few words?",
    17: "{}how many ticks of all axes have labels?",
    18: "How are the subplots laid out, as 'rows by columns'? A single plot is '1 by 1'.",
    19: "How many subplots are there? A single plot is 1.",
}
"""CharXiv's nineteen descriptive questions in our words; a figure's file has only their numbers."""
REASONING: Texts = {
    1: "{}\nAnswer with text that is written in the chart; several items with commas between.",
    2: "{}\nAnswer with one of the options, if there are any, else with a short phrase.",
    3: "{}\nAnswer with a number that is written in the chart.",
    4: "{}\n{}",
}
_OFFICIAL = {"DESCRIPTIVE_RESP_INST": DESCRIPTIVE, "REASONING_RESP_INST": REASONING}


def charxiv(files: Files) -> Iterator[Asked]:
    """CharXiv (princeton-nlp/CharXiv): the Hub's ``val.parquet``, or the authors' ``reasoning_val.json`` and
    ``descriptive_val.json``; four descriptive questions and one to reason about per figure.

    The Hub's columns: ``figure_path``, ``subplot_row``, ``subplot_col``, ``subplot_loc``, ``descriptive_q1`` to ``q4``
    (numbers of templates), ``descriptive_a1`` to ``a4``, ``reasoning_q``, ``reasoning_a``, ``reasoning_a_type``,
    ``category``, ``year``, ``num_subplots``, ``image``. The authors': by figure, ``qids`` and ``answers``, ``query``,
    ``answer``, ``inst_category``; a figure is ``images/<id>.jpg``.

    The authors' words are asked where their ``constants.py`` is among ``--annotations`` (its texts are read, nothing of
    it is run), else ours; which plot, and how exact a number, is said in ours.
    """
    words = _words(files)
    figures = _joined(files) if files.found.get("descriptive") else rows(files)
    for item, name in figures:
        figure = Path(str(item["figure_path"])).stem
        place = said(item.get("subplot_loc")) or [int(item["subplot_row"] or 0), int(item["subplot_col"] or 0)]
        facts = {"category": said(item.get("category")), "figure": figure}
        shown = pictures(item["image"])
        for n in range(1, 5):
            number = int(item[f"descriptive_q{n}"])
            answer = said(item.get(f"descriptive_a{n}"))
            yield Asked(
                f"{figure}_{n - 1}",
                words["DESCRIPTIVE_RESP_INST"][number].format(_where(place)).strip(),
                type="descriptive",
                facts={**facts, "template": number},
                **shown,
            ).with_answers([answer] if answer else [], files.hides, name)
        kind, answer = int(item["reasoning_a_type"]), said(item.get("reasoning_a"))
        more = [_digits(answer)] if kind == 4 else []
        yield Asked(
            figure,
            words["REASONING_RESP_INST"][kind].format(item["reasoning_q"], *more).strip(),
            type="reasoning",
            facts={**facts, "inst_category": kind, "raw_question": item["reasoning_q"]},
            **shown,
        ).with_answers([answer] if answer else [], files.hides, name)


def _joined(files: Files) -> Iterator[tuple[Row, str]]:
    """The authors' two files as the Hub has them in one."""
    reasoning, path = files.json("reasoning"), files.path("descriptive")
    for key, item in files.json("descriptive").items():
        place, own = item["subplot_loc"], reasoning[key]
        spread = {f"descriptive_q{n}": number for n, number in enumerate(item["qids"], 1)}
        spread |= {f"descriptive_a{n}": answer for n, answer in enumerate(item["answers"] or [None] * 4, 1)}
        yield (
            {
                "figure_path": f"images/{item['figure_id']}.jpg",
                "image": f"images/{item['figure_id']}.jpg",
                "subplot_loc": place if isinstance(place, str) else None,
                "subplot_row": 0 if isinstance(place, str) else place[0],
                "subplot_col": 0 if isinstance(place, str) else place[1],
                "reasoning_q": own["query"],
                "reasoning_a": own["answer"],
                "reasoning_a_type": own["inst_category"],
                **spread,
            },
            path.name,
        )


def _words(files: Files) -> dict[str, Texts]:
    """The texts of questions: the authors', read out of their Python file, or ours."""
    found = files.found.get("constants")
    if not found:
        return dict(_OFFICIAL)
    try:
        tree = ast.parse(text(found[0]))
        texts: dict[str, Any] = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in _OFFICIAL
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SystemExit(f"{found[0]}: not CharXiv's constants.py: {error}") from error
    if any(set(texts.get(name, ())) != set(ours) for name, ours in _OFFICIAL.items()):
        raise SystemExit(f"{found[0]}: not CharXiv's constants.py: it lacks {' or '.join(_OFFICIAL)}")
    return texts


def _where(place: str | list[int]) -> str:
    """What stands before a descriptive question."""
    if isinstance(place, str):
        return f"In {place}, "
    return "In the plot, " if place[0] == 0 else f"In the subplot of row {place[0]} and column {place[1]}, "


def _digits(answer: str) -> str:
    """How exact a number is asked for, which the answer says; where that is hidden, nothing does."""
    if not answer:
        return "Answer with a number."
    _, point, decimals = answer.partition(".")
    return f"Answer with a number of {len(decimals)} decimals." if point else "Answer with a whole number."


def llava_bench(files: Files) -> Iterator[Asked]:
    """LLaVA-Bench, in the Wild: the authors' ``questions.jsonl``, ``answers_gpt4.jsonl`` and ``context.jsonl``,
    parquet of the Hub (lmms-lab-encoder/llava-bench-in-the-wild), or VLMEvalKit's TSV.

    ``question_id``, ``text`` or ``question``, ``category`` (conv, detail, complex), ``image``; ``caption``, which tells
    the judge what is in the picture; ``gpt_answer`` or ``gpt4_ans``, with which the judge compares.
    """
    answers = {one["question_id"]: one["text"] for path in files.found.get("answers", ()) for one in table(path)}
    contexts = {one["image"]: one["caption"] for path in files.found.get("context", ()) for one in table(path)}
    for number, (item, name) in enumerate(rows(files)):
        index = item.get("question_id", item.get("index", number))
        caption = item.get("caption") if "caption" in item else contexts.get(item["image"])
        answer = said(item.get("gpt_answer") or item.get("gpt4_ans") or answers.get(index))
        shown = item["image"] if not isinstance(item["image"], str) else f"images/{item['image']}"
        yield Asked(
            str(index),
            said(item.get("question") or item.get("text")),
            type=said(item["category"]).removeprefix("llava_bench_"),
            facts={"context": "\n".join(listed(caption))},
            official_id=index,
            **pictures(shown),
        ).with_answers([answer] if answer else [], False, name)
