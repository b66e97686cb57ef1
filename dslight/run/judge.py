"""Let a language model judge the answers of a run: MM-Vet, MSVD-QA, ActivityNet-QA, CharXiv, LLaVA-Bench.

What it reads are the run's ``questions/SOURCE.jsonl``; what it leaves is::

    judged/SOURCE.JUDGE.jsonl    a line per question: question_id, score, quality, reply
    judged/SOURCE.JUDGE.json     the scores, the judge, its server, the prompt and what it cost in tokens
    judged/replies.jsonl         the cache

A score is called after its judge (``score_by_gpt-4-0613``): those of two judges, or of two prompts, are not
comparable, and the prompt's digest stands beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from dslight.files.atomic import write_atomically
from dslight.files.typed import parse_json
from dslight.metrics.functional.judged import KINDS, PROMPTS, Judgement, Kind, filled, parse_judgement
from dslight.metrics.functional.thinking import spoken
from dslight.run.judge_server import JudgeError, JudgeServer


@dataclass(frozen=True)
class _Answered:
    """What is judged of a line of ``questions/SOURCE.jsonl``."""

    question_id: str | int
    benchmark: str
    question: str
    prediction: str
    references: list[str]
    type: str = ""
    context: str = ""


def judge(folder: Path, server: JudgeServer, sources: Sequence[str] = (), prompt: str | None = None) -> dict[str, Any]:
    """Judge the sources of a run that a language model judges, or those that are named.

    Args:
        folder: the run's.
        server: who judges.
        sources: names of sources; none: all whose benchmark is judged.
        prompt: in place of ours, with ``{question}``, ``{reference}`` and ``{prediction}``.

    Returns:
        Per source its scores and what they are of, as in ``judged/SOURCE.JUDGE.json``.

    Raises:
        JudgeError: there is nothing to judge, or the server fails.
        FileError: naming the file and line of an answer that is none.
    """
    files = {path.stem: path for path in sorted((folder / "questions").glob("*.jsonl"))}
    if missing := [name for name in sources if name not in files]:
        raise JudgeError(f"{folder}: has no answers of {', '.join(missing)}, but of {', '.join(files) or 'nothing'}")
    if prompt is not None and "{prediction}" not in prompt:
        raise JudgeError("--prompt: {prediction} does not stand in it, so every answer would get the same verdict")
    found = {}
    for name, path in files.items():
        lines = enumerate(path.read_bytes().splitlines(), 1)
        rows = [parse_json(line, _Answered, f"{path}:{number}") for number, line in lines]
        benchmark = rows[0].benchmark if rows else ""
        benchmark = benchmark if benchmark in KINDS else name
        if name in sources and benchmark not in KINDS:
            raise JudgeError(f"{name}: its benchmark is none of {', '.join(KINDS)}, which a language model judges")
        if benchmark in KINDS and (not sources or name in sources):
            found[name] = _source(folder, name, KINDS[benchmark], rows, server, prompt)
    if not found:
        raise JudgeError(f"{folder}: has no answers to {', '.join(KINDS)}; dslight validate writes them")
    return found


def prompt_of(file: Path) -> str:
    """The text of ``--prompt``.

    Raises:
        JudgeError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise JudgeError(f"--prompt: {file}: cannot be read as a text ({error})") from error


def _source(
    folder: Path, name: str, kind: Kind, rows: Sequence[_Answered], server: JudgeServer, prompt: str | None
) -> dict[str, Any]:
    rows = [row for row in rows if row.references]
    text = PROMPTS[kind] if prompt is None else prompt
    prompts = [
        filled(text, row.question, " or ".join(row.references), spoken(row.prediction) or "(no answer)", row.context)
        for row in rows
    ]
    before = [server.asked, *server.tokens]
    replies = server.replies(prompts, lambda reply: parse_judgement(kind, reply) is not None)
    verdicts = [parse_judgement(kind, reply) for reply in replies]
    called = re.sub(r"[^\w.-]+", "_", server.model)
    lines = [_line(*one) for one in zip(rows, verdicts, replies, strict=True)]
    out = folder / "judged"
    out.mkdir(exist_ok=True)
    write_atomically(out / f"{name}.{called}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    facts = {
        "scores": _scores(name, called, rows, verdicts),
        "judge": server.model,
        "server": server.url,
        "prompt": "dslight's" if prompt is None else "a file's",
        "prompt_sha256": sha256(text.encode()).hexdigest(),
        "questions": len(rows),
        "unread": sum(verdict is None for verdict in verdicts),
        "asked": server.asked - before[0],
        "prompt_tokens": server.tokens[0] - before[1],
        "completion_tokens": server.tokens[1] - before[2],
    }
    write_atomically(out / f"{name}.{called}.json", json.dumps(facts, indent=1) + "\n")
    return facts


def _line(row: _Answered, verdict: Judgement | None, reply: str) -> dict[str, Any]:
    return {
        "question_id": row.question_id,
        "score": None if verdict is None else verdict.score,
        "quality": None if verdict is None else verdict.quality,
        "reply": reply,
    }


def _scores(
    name: str, judge_name: str, rows: Sequence[_Answered], verdicts: Sequence[Judgement | None]
) -> dict[str, float]:
    """Means, over all and per type of question. A verdict that could not be read counts as 0, as an answer that says
    nothing does; of comparisons, whose number is a ratio of two means, it is left out of both."""
    scores = {}
    kinds = sorted({row.type for row in rows if row.type})
    for kind in ["", *(kinds if len(kinds) > 1 else [])]:
        own = [verdict for row, verdict in zip(rows, verdicts, strict=True) if not kind or row.type == kind]
        end = f"_by_{judge_name}" + (f"/{kind.replace('/', '_').replace(' ', '_')}" if kind else "")
        read = [verdict for verdict in own if verdict is not None]
        against = [verdict.against for verdict in read if verdict.against is not None]
        if against or own:
            whole = sum(against) if against else float(len(own))
            scores[f"val/{name}/score{end}"] = sum(verdict.score for verdict in read) / whole
        if any(verdict.quality is not None for verdict in read):
            scores[f"val/{name}/quality{end}"] = sum(verdict.quality or 0.0 for verdict in read) / len(own)
    return scores
