"""The page of benchmarks, ``docs/benchmarks.md``: made from the tables of sets and of benchmarks.

Run ``python -m data_prep.eval.overview > docs/benchmarks.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from data_prep.eval.sets import SETS
from dslight.metrics.benchmarks import BENCHMARKS

_LMMS = "lmms-eval 0.7.3"
_KIT = "VLMEvalKit, 18 Aug 2026"
_RAN = "Dec 2026"

SOURCES: dict[str, tuple[str, str, str]] = {
    "vqav2": ("visualqa.org; Hub: VQAv2", "lmms-eval; the bare official script beside it", _RAN),
    "textvqa": ("textvqa.org; Hub: textvqa", f"m4c, {_LMMS}", _RAN),
    "vizwiz": ("vizwiz.org; Hub: VizWiz-VQA", "m4c", _RAN),
    "gqa": ("cs.stanford.edu/people/dorarad/gqa; Hub: GQA", "its script on LLaVA's conversion", _RAN),
    "docvqa": ("rrc.cvc.uab.es, 17.1; Hub: DocVQA", f"RRC's script, {_KIT}", _RAN),
    "infovqa": ("rrc.cvc.uab.es, 17.3; Hub: DocVQA", f"RRC's script, {_KIT}", _RAN),
    "multidocvqa": ("rrc.cvc.uab.es, 17.4; Hub: MP-DocVQA", "its repository's evaluator", _RAN),
    "chartqa": ("vis-nlp/ChartQA; Hub: ChartQA", f"pix2struct, {_KIT}", _RAN),
    "ocrbench": ("MultimodalOCR; Hub: OCRBench", "its rule; times 1000 is its score", _RAN),
    "mmvet": ("yuweihao/MM-Vet; Hub: MMVet", "a judge: `dslight judge`", ""),
    "pope": ("AoiDragon/POPE; Hub: POPE", "its script", _RAN),
    "mme": ("MME's release; Hub: MME", "its eval_tool, where pairs are whole", _RAN),
    "seed": ("AILab-CVC/SEED-Bench; Hub: SEED-Bench", _LMMS, _RAN),
    "mmbench": ("open-compass/MMBench TSVs, V1.1 too; Hub: MMBench", f"{_KIT}, without its language model", _RAN),
    "mmmu": ("Hub: MMMU/MMMU", "its evaluator, without its random guesses", _RAN),
    "scienceqa": ("lupantech/ScienceQA; Hub: ScienceQA", "LLaVA's script", _RAN),
    "ai2d": ("Hub: ai2d", _LMMS, _RAN),
    "egoschema": ("egoschema/EgoSchema; Hub: egoschema", "lmms-eval of Aug 2026", _RAN),
    "nextqa": ("doc-doc/NExT-QA; Hub: NExTQA", _LMMS, _RAN),
    "msvdqa": ("MSVD-QA, both forms; Hub", "a judge: `dslight judge`", ""),
    "activitynetqa": ("MILVLG/activitynet-qa; Hub: ActivityNetQA", "its script on LLaVA's conversion; or a judge", ""),
    "mmstar": ("VLMEvalKit TSV; Hub: MMStar", f"{_KIT}, without its language model", _RAN),
    "realworldqa": ("VLMEvalKit TSV; Hub: RealworldQA", f"{_KIT}, without its language model", _RAN),
    "blink": ("VLMEvalKit TSV; Hub: BLINK", f"{_KIT}, without its language model", _RAN),
    "hrbench": ("VLMEvalKit TSV; Hub: HR-Bench", f"{_KIT}, without its language model", _RAN),
    "vstar": ("Hub: vstar_bench", f"{_KIT}, without its language model", _RAN),
    "cvbench": ("Hub: CV-Bench", "its formula over 2D and 3D; VLMEvalKit's reader of letters", ""),
    "mmmu_pro": ("Hub: MMMU_Pro, a folder at a time", "MMMU's evaluator, without its random guesses", _RAN),
    "videomme": ("Hub: Video-MME", "its script, as in lmms-eval until 2025; `lmms_eval`: of Aug 2026", _RAN),
    "mvbench": ("Hub: MVBench (json)", _LMMS, _RAN),
    "hallusionbench": ("VLMEvalKit TSV; Hub: HallusionBench", "VLMEvalKit's reader of answers", _RAN),
    "countbench": ("Hub: CountBenchQA", "the number", ""),
    "mathvista": (
        "Hub: MathVista, testmini",
        "lmms-eval's normalisation, Aug 2026; extraction without GPT is ours",
        _RAN,
    ),
    "chartqapro": ("Hub: ChartQAPro", "lmms-eval of Aug 2026; its script leaves the exact matches out", _RAN),
    "refcoco": ("Hub: RefCOCO, RefCOCOplus, RefCOCOg", "accuracy at IoU 0.5", ""),
    "screenspot": ("Hub: ScreenSpot; SeeClick's json", "the point in the box", ""),
    "choice": ("any TSV, parquet or JSON with options", f"{_KIT}, without its language model", _RAN),
    "yes_no": ("any TSV, parquet or JSON with yes or no", _KIT, _RAN),
    "short": ("any TSV, parquet or JSON with answers", "exact match without case and punctuation", ""),
}
"""By set: where its files come from, to whose numbers ours are equal, and when that was tried."""

_HEAD = """# Benchmarks

Made by `python -m data_prep.eval.overview`.

`python -m data_prep.eval NAME --annotations FILES --images FOLDER --out DIR` reads the authors' files, and
parquet files of the Hub with the pictures inside; `data.val: {NAME: DIR}` asks and judges as this table says. `choice`,
`yes_no` and `short` read any other set of their kind, and `--circular` asks every rotation of the options
(`benchmark: circular`).
Where an evaluator asks a language model what an answer without a letter means, such an answer is `unresolved` here, and
wrong. The protocols are described in `dslight/metrics/functional/`; a source takes another by `protocol:`.

| name | files | score | protocol | equal to | tried |
| --- | --- | --- | --- | --- | --- |
"""


def lines() -> Iterator[str]:
    """The rows of the table."""
    for name, row in SETS.items():
        files, equal, tried = SOURCES[name]
        benchmark = BENCHMARKS[row.benchmark]
        metric = benchmark.build()
        protocol = getattr(metric, "protocol", None) or getattr(metric, "rule", None) or "–"
        yield f"| `{name}` | {files} | {metric.headline} | {protocol} | {equal} | {tried or '–'} |"


def page() -> str:
    """The whole page."""
    return _HEAD + "\n".join(lines()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
