"""The table of evaluation sets: which files each has, who reads them, and by which benchmark its answers are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from data_prep.eval import choice, general, hub, judged, long, short, skills, today, video
from data_prep.eval.asked import Asked
from data_prep.eval.files import Files, Role


@dataclass(frozen=True)
class EvalSet:
    """One row of the table.

    Attributes:
        read: the questions of its files.
        files: what belongs to it, by official name.
        benchmark: its row of ``dslight.metrics.benchmarks``.
        split: the one that papers report and that can be scored here.
        hub: the questions of parquet files as the Hub has them, where ``read`` does not read those.
        splits: of those files, the first that is there is read where none is asked for.
        apart: the Hub keeps variants of the set in folders of their own, of which one is meant.
        public: see :class:`~data_prep.eval.files.Files`.
    """

    read: Callable[[Files], Iterator[Asked]]
    files: tuple[Role, ...]
    benchmark: str
    split: str = ""
    hub: Callable[[Files], Iterator[Asked]] | None = None
    splits: tuple[str, ...] = ("validation", "val", "dev", "test")
    apart: bool = False
    public: tuple[str, ...] = ()


_QUESTIONS = Role("questions", "*question*.json")

SETS: dict[str, EvalSet] = {
    "vqav2": EvalSet(
        short.vqav2,
        (
            _QUESTIONS,
            Role("answers", "*annotations*.json", optional=True),
            Role("whole", "*_test2015_questions.json", optional=True),
        ),
        "vqav2",
        "val2014",
    ),
    "gqa": EvalSet(short.gqa, (_QUESTIONS,), "gqa", "testdev_balanced", public=("testdev",)),
    "textvqa": EvalSet(short.textvqa, (Role("questions", "textvqa_0*.json"),), "textvqa", "val"),
    "docvqa": EvalSet(short.docvqa, (Role("questions", "*_v1.0*.json"),), "docvqa", "val"),
    "infovqa": EvalSet(short.docvqa, (Role("questions", "infographics*.json"),), "infovqa", "val"),
    "chartqa": EvalSet(
        short.chartqa,
        (Role("human", "*human*.json", optional=True), Role("augmented", "*augmented*.json", optional=True)),
        "chartqa",
        "test",
    ),
    "pope": EvalSet(
        short.pope,
        tuple(Role(x, f"*pope*{x}*.json*", optional=True) for x in ("random", "popular", "adversarial")),
        "pope",
    ),
    "mmvet": EvalSet(short.mmvet, (Role("questions", "mm-vet*.json"),), "mmvet"),
    "seed": EvalSet(choice.seed, (Role("questions", "seed-bench*.json"),), "seed"),
    "mmmu": EvalSet(choice.mmmu, (Role("questions", "*.parquet|*.json", many=True),), "mmmu", "validation"),
    "scienceqa": EvalSet(
        choice.scienceqa, (Role("problems", "problems.json"), Role("splits", "pid_splits.json")), "scienceqa", "test"
    ),
    "egoschema": EvalSet(
        choice.egoschema,
        (Role("questions", "questions.json"), Role("answers", "subset_answers.json", optional=True)),
        "egoschema",
        "subset",
    ),
    "nextqa": EvalSet(
        choice.nextqa,
        (Role("questions", "*.csv"), Role("map", "map_vid*.json", optional=True)),
        "nextqa",
        "test",
    ),
    "msvdqa": EvalSet(
        video.msvdqa,
        (
            Role("questions", "*_qa.json|*_q.json"),
            Role("answers", "*_a.json", optional=True),
            Role("map", "youtube_mapping.txt", optional=True),
        ),
        "msvdqa",
        "test",
    ),
    "activitynetqa": EvalSet(
        video.activitynetqa, (Role("questions", "*_q.json"), Role("answers", "*_a.json")), "activitynetqa", "test"
    ),
    "mme": EvalSet(skills.mme, (Role("questions", "*.txt", many=True),), "mme"),
    "mmbench": EvalSet(
        skills.mmbench, (Role("questions", "*mmbench*.tsv"),), "mmbench", "dev", skills.mmbench, ("dev", "validation")
    ),
    "ai2d": EvalSet(skills.ai2d, (Role("questions", "*.parquet|*.json", many=True),), "ai2d", "test"),
    "ocrbench": EvalSet(skills.ocrbench, (Role("questions", "*ocrbench*.json"),), "ocrbench"),
    "vizwiz": EvalSet(skills.vizwiz, (Role("questions", "*.json"),), "vizwiz", "val"),
    "multidocvqa": EvalSet(skills.multidocvqa, (Role("questions", "*.json"),), "multidocvqa", "val"),
}

_TABLE = (Role("questions", "*.tsv|*.jsonl|*.json|*.csv", many=True),)


def _general(read: Callable[[Files], Iterator[Asked]], benchmark: str, *splits: str) -> EvalSet:
    """A set that a general reader reads, from any table."""
    return EvalSet(read, _TABLE, benchmark, hub=read, splits=splits or ("test", "val", "validation", "testmini"))


def _documents(read: Callable[[Files], Iterator[Asked]]) -> EvalSet:
    """MMLongBench-Doc, whose only split the Hub calls train."""
    return EvalSet(read, (Role("questions", "samples.json"),), "mmlongbench_doc", hub=read, splits=("train",))


_REPORTED = {"gqa": ("testdev",)} | dict.fromkeys(
    ("chartqa", "scienceqa", "nextqa", "egoschema", "activitynetqa", "msvdqa"), ("test",)
)
"""Splits of parquet files, where the reported one is not the validation set."""
_APART = {"docvqa", "infovqa", "scienceqa", "egoschema", "nextqa"}

SETS |= {
    name: replace(row, hub=read, splits=_REPORTED.get(name, row.splits), apart=name in _APART)
    for name, read in hub.READERS.items()
    if (row := SETS[name]).hub is None
} | {
    "choice": _general(general.choice, "choice"),
    "yes_no": _general(general.yes_no, "yes_no"),
    "short": _general(general.short, "short"),
    "mmstar": _general(general.choice, "mmstar"),
    "realworldqa": _general(general.choice, "realworldqa"),
    "blink": _general(general.choice, "blink", "val"),
    "hrbench": _general(general.choice, "hrbench", "hr_bench_4k", "val", "test"),
    "vstar": _general(general.choice, "vstar"),
    "cvbench": _general(today.cvbench, "cvbench"),
    "countbench": _general(general.short, "countbench"),
    "mmmu_pro": replace(_general(choice.mmmu_pro, "mmmu_pro"), apart=True),
    "hallusionbench": _general(today.hallusionbench, "hallusionbench", "image"),
    "mathvista": _general(today.mathvista, "mathvista", "testmini"),
    "chartqapro": _general(today.chartqapro, "chartqapro"),
    "refcoco": _general(today.refcoco, "refcoco", "val", "test"),
    "screenspot": _general(today.screenspot, "screenspot"),
    "videomme": _general(today.videomme, "videomme"),
    "mvbench": _general(today.mvbench, "mvbench"),
    "longvideobench": EvalSet(
        long.longvideobench,
        (Role("questions", "lvb_*.json|*longvideobench*.tsv"),),
        "longvideobench",
        "val",
        long.longvideobench,
    ),
    "ocrbench_v2": EvalSet(
        skills.ocrbench_v2, (Role("questions", "*ocrbench*v2*.json"),), "ocrbench_v2", hub=skills.ocrbench_v2
    ),
    "mlvu": EvalSet(
        long.mlvu, (Role("questions", "[1-7]_*.json", many=True),), "mlvu", hub=long.mlvu, splits=("test",)
    ),
    "mmlongbench_doc": _documents(long.mmlongbench_doc),
    "mmlongbench_doc_evidence": _documents(partial(long.mmlongbench_doc, evidence=True)),
    "charxiv": EvalSet(
        judged.charxiv,
        (
            Role("descriptive", "descriptive_*.json"),
            Role("reasoning", "reasoning_*.json"),
            Role("constants", "constants.py", optional=True, beside=True),
        ),
        "charxiv",
        "val",
        judged.charxiv,
    ),
    "llava_bench": EvalSet(
        judged.llava_bench,
        (
            Role("questions", "questions.jsonl|*llavabench*.tsv"),
            Role("answers", "answers_gpt4.jsonl", optional=True),
            Role("context", "context.jsonl", optional=True),
        ),
        "llava_bench",
        hub=judged.llava_bench,
        splits=("train",),
    ),
}

BLIND = {"choice", "yes_no", "short", "mmmu", "mmmu_pro", "scienceqa", "hallusionbench"}
BLIND |= {"mmlongbench_doc", "mmlongbench_doc_evidence"}
"""Sets that ask some of their questions without a picture."""
