"""What a validation leaves beside its scores: a line per question, and the files that official servers read.

    questions/SOURCE.jsonl       in the order of the questions, whatever the ranks and their batches were
    questions/limited/...        of a slice, where answers to more questions are there already
    submissions/SOURCE/...       in the format of the benchmark (``dslight.metrics.submission``)

A line is ``{"question_id", "source", "benchmark", "type", "question", "prompt", "prediction", "references", "score",
"unresolved", "unfinished", "key"}``: ``question`` as its authors ask it, ``prompt`` with what the benchmark puts behind
it, ``score`` in 0..1 or null for an answer that is not scored here (hidden, or judged by a language model),
``unresolved`` for one that says nothing which the protocol could read, ``unfinished`` for one that ended among the
model's thoughts (thoughts stay in ``prediction``), ``key`` of the sample in its shards; ``context`` is what a judge is
told about the picture, where it is. The scores are those that the metric has added up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from dslight.files.atomic import write_atomically
from dslight.metrics.base import Answer, TextMetric
from dslight.metrics.benchmarks import Benchmark
from dslight.metrics.submission import official_ids, submission
from dslight.names import below
from dslight.recipe.experiment import Experiment
from dslight.run.folder import RunFolder
from dslight.vlm import VLM


def write_answers(experiment: Experiment, folder: RunFolder, trainer: Any) -> dict[str, dict[str, Any]]:
    """Write what the last validation has answered; all ranks take part, the first one writes.

    Returns:
        By source how it was asked and judged (see :func:`described`): with a score, what it takes to compare it.
    """
    model = experiment.model
    if not isinstance(model, VLM):
        return {}
    facts: dict[str, dict[str, Any]] = {}
    for source in model.metrics:
        answers, seconds = gather(model, source, trainer)
        benchmark = model.asked[source]
        facts[source] = described(experiment, source, answers, seconds)
        if trainer.is_global_zero:  # first: what follows may refuse
            rows = lines(source, facts[source]["benchmark"], benchmark, answers)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file = _place(folder.path / "questions", source, len(rows))
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text)
        root = Path(experiment.data.val_sources[source].root)
        form = benchmark.submission if answers else None
        files = submission(form, answers, official_ids(root)) if form else {}
        facts[source]["submission"] = [f"submissions/{source}/{name}" for name in files]
        if trainer.is_global_zero:
            for name, content in files.items():
                place = below(folder.path / "submissions" / source, name, f"data.val.{source}: a file for its server")
                place.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(place, content)
    return facts


def _place(questions: Path, source: str, count: int) -> Path:
    """Where ``count`` lines go: a slice (``limit``) does not replace the answers to more questions."""
    file = questions / f"{source}.jsonl"
    there = len(file.read_bytes().splitlines()) if file.exists() else 0
    return file if there <= count else questions / "limited" / file.name


def gather(model: VLM, source: str, trainer: Any) -> tuple[list[Answer], float]:
    """The answers of all ranks to the questions of a source, in their order, each once; and the seconds of the slowest.

    Ranks that share a model's tensors answer the same questions.
    """
    import torch.distributed as dist

    answers, seconds = model.answers.get(source, []), model.seconds.get(source, 0.0)
    shares: list[Any] = [(answers, seconds)]
    if trainer.world_size > 1:
        shares = [None] * trainer.world_size
        dist.all_gather_object(shares, (answers, seconds))
    by_number = {answer.question.number: answer for share, _ in shares for answer in share}
    return [by_number[number] for number in sorted(by_number)], max(seconds for _, seconds in shares)


def lines(source: str, name: str, benchmark: Benchmark, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The lines of the file of a source."""
    return [
        {
            "question_id": question.question_id,
            "source": source,
            "benchmark": name,
            "type": question.type,
            "question": question.text,
            "prompt": question.text + (benchmark.suffix if question.suffix is None else question.suffix),
            "prediction": prediction,
            "references": list(question.references),
            "score": verdict.score,
            "unresolved": verdict.unresolved,
            "unfinished": verdict.unfinished,
            "key": question.key,
            **({"context": question.extra["context"]} if question.extra.get("context") else {}),
        }
        for question, prediction, verdict in answers
    ]


def described(experiment: Experiment, source: str, answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """How a source was asked and judged, how many of its questions were, and how fast."""
    val, model = experiment.data.val_sources[source], cast(VLM, experiment.model)
    metric, benchmark = model.metrics[source], model.asked[source]
    assert isinstance(metric, TextMetric)
    return {
        "benchmark": val.benchmark,
        "headline": f"val/{source}/{metric.headline}",
        "metric": type(metric).__name__,
        "protocol": getattr(metric, "protocol", None),
        "suffix": benchmark.suffix,
        "max_new_tokens": benchmark.max_new_tokens,
        "frames": val.frames,
        "thinking": experiment.data.thinking if val.thinking is None else val.thinking,
        "judge": benchmark.judge or None,
        "limit": val.limit,
        "questions": len(answers),
        "scored": sum(verdict.score is not None for _, _, verdict in answers),
        "unresolved": sum(verdict.unresolved for _, _, verdict in answers),
        "unfinished": sum(verdict.unfinished for _, _, verdict in answers),
        "seconds": seconds,
        "questions_per_second": len(answers) / seconds if seconds else None,
    }


def scores_of(logged: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The scores among what a validation has logged, without how fast it was and what was looked at besides."""
    other = ("speed/", "diagnostics/")
    return {key: value for one in logged for key, value in one.items() if not key.startswith(other)}
