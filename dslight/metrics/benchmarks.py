"""The table of benchmarks: how each asks for its answer, how long the answer may be, and which metric judges it.

A number is comparable only with numbers of the same protocol, prompt and answer length, so the three stand in one row.
The protocols are those behind the numbers in papers, which are mostly those of the data sets' authors: VQAv2 on
normalised answers, with the score of the bare official script beside it; GQA's and ActivityNet-QA's scripts on answers
converted as LLaVA submits them; SEED by the first letter (its own script ranks likelihoods); NExT-QA as lmms-eval reads
it. The suffixes and lengths are those of LLaVA and lmms-eval. TextVQA is asked without
OCR tokens. MMBench is scored as its authors do, circularly: a question counts if all its rotations are right.

Decoding is greedy. A question may bring a suffix of its own, which then stands instead of the table's.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from dslight.metrics.answers import ANLS, ExactMatch, RelaxedAccuracy, SubstringAccuracy
from dslight.metrics.base import JudgedElsewhere, TextMetric
from dslight.metrics.benchmark import GROUPS, LETTER, SHORT, UNANSWERABLE, Benchmark
from dslight.metrics.benchmarks_today import TODAY
from dslight.metrics.multiple_choice import MultipleChoiceAccuracy
from dslight.metrics.vqa import VQAAccuracy
from dslight.metrics.yes_no import MMEScore, POPEMetric

ACTIVITYNET_TYPES = (
    "motion", "spatial relationship", "temporal relationship", "yes/no", "color", "object", "location", "number",
    "other",
)  # fmt: skip
"""Kinds of ActivityNet-QA's questions, by their numbers in its files."""

_choice = MultipleChoiceAccuracy
_MMMU_DOMAINS = (
    "Art and Design",
    "Business",
    "Science",
    "Health and Medicine",
    "Humanities and Social Science",
    "Tech and Engineering",
)
_OCRBENCH_FORMULAS = "Handwritten Mathematical Expression Recognition"  # the questions from HME100k
_OCRBENCH_TYPES = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
    _OCRBENCH_FORMULAS,
)

BENCHMARKS: dict[str, Benchmark] = {
    # any questions of one's own, asked as they are, with any number of references
    "vqa": Benchmark(partial(VQAAccuracy, protocol="lmms_eval"), suffix=""),
    "exact": Benchmark(partial(ExactMatch, protocol="strict"), suffix=""),
    # short answers
    "vqav2": Benchmark(
        partial(VQAAccuracy, protocol="lmms_eval", types=("yes/no", "number", "other"), beside="official"),
        submission="vqav2",
        hidden="test-dev, test",
    ),
    "textvqa": Benchmark(partial(VQAAccuracy, protocol="m4c"), submission="textvqa", hidden="test"),
    "vizwiz": Benchmark(
        partial(VQAAccuracy, protocol="m4c", types=("yes/no", "number", "other", "unanswerable")),
        suffix=UNANSWERABLE + SHORT,
        submission="vizwiz",
        hidden="test",
    ),
    "gqa": Benchmark(
        partial(ExactMatch, protocol="llava", types=("binary", "open")),
        submission="gqa",
        hidden="test, challenge, submission",
    ),
    "docvqa": Benchmark(partial(ANLS, protocol="rrc"), max_new_tokens=32, submission="docvqa", hidden="test"),
    "infovqa": Benchmark(partial(ANLS, protocol="rrc"), max_new_tokens=32, submission="docvqa", hidden="test"),
    "multidocvqa": Benchmark(
        partial(ANLS, protocol="mp_docvqa"), max_new_tokens=32, submission="multidocvqa", hidden="test"
    ),
    "chartqa": Benchmark(partial(RelaxedAccuracy, protocol="pix2struct", types=("human", "augmented"))),
    "ocrbench": Benchmark(
        partial(
            SubstringAccuracy, protocol="official", ignore_spaces_types=(_OCRBENCH_FORMULAS,), types=_OCRBENCH_TYPES
        ),
        suffix="",
        max_new_tokens=128,
    ),
    "mmvet": Benchmark(JudgedElsewhere, suffix="", max_new_tokens=1024, submission="mmvet", judge="GPT-4 (0613)"),
    # yes or no; MME's own " Please answer yes or no." is left out of the question in favour of the suffix
    "pope": Benchmark(partial(POPEMetric, protocol="official"), submission="pope"),
    "mme": Benchmark(partial(MMEScore, protocol="official"), submission="mme"),
    # letters; MMMU's open questions bring a suffix of their own, SHORT
    "seed": Benchmark(
        partial(_choice, protocol="first_char", types=("image", "video")), suffix=LETTER, submission="seed"
    ),
    "mmbench": Benchmark(
        partial(_choice, protocol="mmbench", circular_groups=GROUPS),
        suffix=LETTER,
        submission="mmbench",
    ),
    "mmmu": Benchmark(
        partial(_choice, protocol="mmmu", types=_MMMU_DOMAINS), suffix=LETTER, submission="mmmu", hidden="test"
    ),
    "scienceqa": Benchmark(partial(_choice, protocol="scienceqa", types=("image", "text")), suffix=LETTER),
    "ai2d": Benchmark(partial(_choice, protocol="ai2d"), suffix=LETTER),
    # video, as a mosaic or a sequence of frames
    "egoschema": Benchmark(
        partial(_choice, protocol="egoschema"),
        suffix=LETTER,
        submission="egoschema",
        hidden="all but 500",
    ),
    "nextqa": Benchmark(
        partial(_choice, protocol="mmmu_lmms_eval", types=("causal", "temporal", "descriptive")), suffix=LETTER
    ),
    "msvdqa": Benchmark(JudgedElsewhere, max_new_tokens=64, submission="video_judge", judge="GPT-3.5 (Video-ChatGPT)"),
    "activitynetqa": Benchmark(
        partial(ExactMatch, protocol="llava", types=ACTIVITYNET_TYPES),
        submission="video_judge",
        judge="GPT-3.5 (Video-ChatGPT)",
    ),
    **TODAY,
}


def of(source: str, named: str | None) -> str:
    """The benchmark that judges a source of questions: the one that is named, else that of its own name, else ``vqa``.

    Example:
        >>> of("textvqa", None), of("mine", None), of("mine", "docvqa")
        ('textvqa', 'vqa', 'docvqa')
    """
    return named or (source if source in BENCHMARKS else "vqa")


def get(name: str) -> Benchmark:
    """The row called ``name``.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark: {name!r} is not one of {', '.join(sorted(BENCHMARKS))}")
    return BENCHMARKS[name]


def build(name: str, **overrides: Any) -> TextMetric:
    """A fresh metric for the benchmark ``name``; ``overrides`` replace the metric's arguments."""
    return get(name).build(**overrides)


class Asked(Protocol):
    """How a source of questions wants to be asked and judged, where not as its benchmark says."""

    benchmark: str | None
    protocol: str | None
    suffix: str | None
    max_new_tokens: int | None
    metric: Any
    thinking: bool | None


THOUGHTS = 2048
"""Tokens for thoughts beside those of the answer, where a source asks for thoughts and names no limit."""


def row_of(name: str, source: Asked) -> Benchmark:
    """The row for the source ``name``: that of its benchmark, with what the source says otherwise in its place.

    Raises:
        ValueError: beginning with the key of the source to change.
    """
    row = get(of(name, source.benchmark))
    changes = {key: value for key in ("suffix", "max_new_tokens") if (value := getattr(source, key)) is not None}
    if changes.get("max_new_tokens", 1) < 1:
        raise ValueError(f"max_new_tokens: must be at least 1, got {source.max_new_tokens}")
    if source.thinking and source.max_new_tokens is None:
        changes["max_new_tokens"] = row.max_new_tokens + THOUGHTS
    if source.metric is not None:
        if not isinstance(source.metric, TextMetric):
            raise ValueError(f"metric: {type(source.metric).__name__} is not a subclass of dslight.metrics.TextMetric")
        if source.protocol is not None:
            raise ValueError(f"protocol: {source.protocol!r} has no effect beside metric; name it as its argument")
        changes["metric"] = partial(deepcopy, source.metric)
    elif source.protocol is not None:
        changes["metric"] = _by_protocol(row, of(name, source.benchmark), source.protocol)
    row = replace(row, **changes)
    if missing := row.build().unready():
        raise ValueError(f"benchmark: {of(name, source.benchmark)} {missing}")
    return row


def _by_protocol(row: Benchmark, benchmark: str, protocol: str) -> Callable[..., TextMetric]:
    if not hasattr(row.build(), "protocol"):
        raise ValueError(f"protocol: {benchmark} has none, so {protocol!r} would have no effect")
    metric = partial(row.metric, protocol=protocol)
    metric()  # says which ones there are
    return metric
