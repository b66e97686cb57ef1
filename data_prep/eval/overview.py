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

SOURCES: dict[str, tuple[str, str]] = {
    "vqav2": ("visualqa.org; Hub: VQAv2", "lmms-eval; the bare official script beside it"),
    "textvqa": ("textvqa.org; Hub: textvqa", f"m4c, {_LMMS}"),
    "vizwiz": ("vizwiz.org; Hub: VizWiz-VQA", "m4c"),
    "gqa": ("cs.stanford.edu/people/dorarad/gqa; Hub: GQA", "its script on LLaVA's conversion"),
    "docvqa": ("rrc.cvc.uab.es, 17.1; Hub: DocVQA", f"RRC's script, {_KIT}"),
    "infovqa": ("rrc.cvc.uab.es, 17.3; Hub: DocVQA", f"RRC's script, {_KIT}"),
    "multidocvqa": ("rrc.cvc.uab.es, 17.4; Hub: MP-DocVQA", "its repository's evaluator"),
    "chartqa": ("vis-nlp/ChartQA; Hub: ChartQA", f"pix2struct, {_KIT}"),
    "ocrbench": ("MultimodalOCR; Hub: OCRBench", "its rule; times 1000 is its score"),
    "ocrbench_v2": ("MultimodalOCR; Hub: OCRBench-v2", "its eval scripts, Apr 2026; needs `dslight[ocrbench]`"),
    "mmvet": ("yuweihao/MM-Vet; Hub: MMVet", "a judge: `dslight judge`"),
    "pope": ("AoiDragon/POPE; Hub: POPE", "its script"),
    "mme": ("MME's release; Hub: MME", "its eval_tool, where pairs are whole"),
    "seed": ("AILab-CVC/SEED-Bench; Hub: SEED-Bench", _LMMS),
    "mmbench": ("open-compass/MMBench TSVs, V1.1 too; Hub: MMBench", f"{_KIT}, without its language model"),
    "mmmu": ("Hub: MMMU/MMMU", "its evaluator, without its random guesses"),
    "scienceqa": ("lupantech/ScienceQA; Hub: ScienceQA", "LLaVA's script"),
    "ai2d": ("Hub: ai2d", _LMMS),
    "egoschema": ("egoschema/EgoSchema; Hub: egoschema", "lmms-eval of Aug 2026"),
    "nextqa": ("doc-doc/NExT-QA; Hub: NExTQA", _LMMS),
    "msvdqa": ("MSVD-QA, both forms; Hub", "a judge: `dslight judge`"),
    "activitynetqa": ("MILVLG/activitynet-qa; Hub: ActivityNetQA", "its script on LLaVA's conversion; or a judge"),
    "mmstar": ("VLMEvalKit TSV; Hub: MMStar", f"{_KIT}, without its language model"),
    "realworldqa": ("VLMEvalKit TSV; Hub: RealworldQA", f"{_KIT}, without its language model"),
    "blink": ("VLMEvalKit TSV; Hub: BLINK", f"{_KIT}, without its language model"),
    "hrbench": ("VLMEvalKit TSV; Hub: HR-Bench", f"{_KIT}, without its language model"),
    "vstar": ("Hub: vstar_bench", f"{_KIT}, without its language model"),
    "cvbench": ("Hub: CV-Bench", "its formula over 2D and 3D; VLMEvalKit's reader of letters"),
    "mmmu_pro": ("Hub: MMMU_Pro, a folder at a time", "MMMU's evaluator, without its random guesses"),
    "videomme": ("Hub: Video-MME", "its script, as in lmms-eval until 2025; `lmms_eval`: of Aug 2026"),
    "mvbench": ("Hub: MVBench (json)", _LMMS),
    "hallusionbench": ("VLMEvalKit TSV; Hub: HallusionBench", "VLMEvalKit's reader of answers"),
    "countbench": ("Hub: CountBenchQA", "the number"),
    "mathvista": (
        "Hub: MathVista, testmini",
        "lmms-eval's normalisation, Aug 2026; extraction without GPT is ours",
    ),
    "chartqapro": ("Hub: ChartQAPro", "lmms-eval of Aug 2026; its script leaves the exact matches out"),
    "refcoco": ("Hub: RefCOCO, RefCOCOplus, RefCOCOg", "accuracy at IoU 0.5"),
    "screenspot": ("Hub: ScreenSpot; SeeClick's json", "the point in the box"),
    "longvideobench": ("its json; VLMEvalKit TSV; Hub: LongVideoBench", "its authors', in lmms-eval of Aug 2026"),
    "mlvu": ("JUNJIE99/MLVU; Hub: MLVU_dev, MLVU_Test", "lmms-eval of Aug 2026; `mlvu`: its script's letter"),
    "mmlongbench_doc": ("samples.json, pages drawn; Hub: MMLongBench-Doc", "its script, without GPT's extraction"),
    "mmlongbench_doc_evidence": ("the same, with the pages that have the answer", "the same; lmms-eval shows these"),
    "charxiv": ("princeton-nlp/CharXiv; Hub: CharXiv", "a judge: `dslight judge`, reasoning and descriptive apart"),
    "llava_bench": (
        "its three jsonl; VLMEvalKit TSV; Hub",
        "a judge: `dslight judge`, against GPT-4's answers",
    ),
    "choice": ("any TSV, parquet or JSON with options", f"{_KIT}, without its language model"),
    "yes_no": ("any TSV, parquet or JSON with yes or no", _KIT),
    "short": ("any TSV, parquet or JSON with answers", "exact match without case and punctuation"),
}
"""By set: where its files come from, and whose rules ours are; what of that is tried against their code is in tests."""

_HEAD = """# Benchmarks

Made by `python -m data_prep.eval.overview`.

`python -m data_prep.eval NAME --annotations FILES --images FOLDER --out DIR` reads the authors' files, and
parquet files of the Hub with the pictures inside; `data.val: {NAME: DIR}` asks and judges as this table says. `choice`,
`yes_no` and `short` read any other set of their kind, and `--circular` asks every rotation of the options
(`benchmark: circular`).
Where an evaluator asks a language model what an answer without a letter means, such an answer is `unresolved` here, and
wrong.
Columns of the Hub's files are those of the dataset cards, where these name them (DocVQA, InfographicVQA, which has no
`evidence` there, AI2D, OCRBench, LongVideoBench, MMLongBench-Doc), else those that lmms-eval's tasks of Aug 2026 read;
CharXiv's are those that several programs read. The kinds of ActivityNet-QA's questions are numbered as its repository
says.
The protocols are described in `dslight/metrics/functional/`; a source takes another by `protocol:`, where the
metric has several.

| name | files | score | protocol | whose rules | answers hidden |
| --- | --- | --- | --- | --- | --- |
"""


def lines() -> Iterator[str]:
    """The rows of the table."""
    for name, row in SETS.items():
        files, rules = SOURCES[name]
        benchmark = BENCHMARKS[row.benchmark]
        metric = benchmark.build()
        protocol = getattr(metric, "protocol", None) or getattr(metric, "rule", None) or "–"
        yield f"| `{name}` | {files} | {metric.headline} | {protocol} | {rules} | {benchmark.hidden or '–'} |"


def page() -> str:
    """The whole page."""
    return _HEAD + "\n".join(lines()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
