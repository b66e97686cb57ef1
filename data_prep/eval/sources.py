"""Of every set of questions: where its files come from, whose rules its score follows, and with whose numbers it was
compared.

A row of :data:`EQUAL` is a comparison: the same generated answers to their code and to ours, all scores equal. Where
the answers lie in ``tests/golden/metrics`` with the scores that were given to them, every run of the tests repeats it;
``date`` is the last day on which it was run. Change it when you run it again, and make the page anew.
"""

from __future__ import annotations

from typing import NamedTuple

_LMMS = "lmms-eval 0.7.3"
_KIT = "VLMEvalKit, 18 Aug 2026"
_READER = f"{_KIT}, without its language model"
_JUDGE = "a judge: `dslight judge`"


class Equal(NamedTuple):
    """A comparison.

    Attributes:
        to: their code, at a commit.
        date: on which the comparison was last run, as 2026-12-01.
        golden: the file of ``tests/golden/metrics`` that has the answers and their scores, if it is kept there.
    """

    to: str
    date: str
    golden: str = ""


class Source(NamedTuple):
    """A set.

    Attributes:
        files: where they come from.
        rules: whose.
        equal: the name of a comparison in :data:`EQUAL`; "" where their code was not run, or a language model judges.
    """

    files: str
    rules: str
    equal: str = ""


EQUAL: dict[str, Equal] = {
    "vqa": Equal("GT-Vision-Lab/VQA a013f00, lmms-eval 75571cf", "2026-12-01", "vqa_accuracy_vqav2"),
    "m4c": Equal("facebookresearch/mmf b0ffc7f", "2026-12-01", "textvqa_m4c"),
    "gqa": Equal("GQA's `eval.py` in Video-LLaVA 984e65b", "2026-12-01", "gqa_exact_match"),
    "words": Equal("lmms-eval 75571cf", "2026-12-01", "gqa_exact_match"),
    "anls": Equal("RRC's script in Qwen-VL aa00ed0, VLMEvalKit e8e78f0", "2026-12-01", "anls"),
    "pages": Equal("the MP-DocVQA framework's metrics", "2026-12-01", "anls"),
    "chartqa": Equal(
        "google-research/pix2struct 945f27e, VLMEvalKit e8e78f0", "2026-12-01", "relaxed_accuracy_chartqa"
    ),
    "ocrbench_v2": Equal("MultimodalOCR 794c36d", "2026-12-01", "ocrbench_v2"),
    "pope": Equal("AoiDragon/POPE 08d957b", "2026-12-01", "pope"),
    "yes_no": Equal("VLMEvalKit e8e78f0", "2026-12-01", "pope"),
    "mme": Equal("MME's `calculation.py` in Deco fee8d75", "2026-12-01", "mme"),
    "seed": Equal("lmms-eval 75571cf", "2026-12-01", "mc_seed"),
    "kit": Equal("VLMEvalKit e8e78f0", "2026-12-01", "mc_mmbench"),
    "mmmu": Equal("MMMU-Benchmark/MMMU bb0b95a", "2026-12-01", "mc_mmmu"),
    "mmmu_lmms_eval": Equal("lmms-eval 75571cf", "2026-12-01", "mc_mmmu"),
    "mvbench": Equal("lmms-eval 75571cf", "2026-12-01", "mc_mmbench"),
    "scienceqa": Equal("haotian-liu/LLaVA c121f04", "2026-12-01", "mc_scienceqa"),
    "mmlongbench_doc": Equal("mayubo2333/MMLongBench-Doc d73f0dc", "2026-12-01", "mmlongbench_doc"),
    "lmms": Equal("lmms-eval 75571cf, 8,000 answers", "2026-12-01"),
    "lmms_protocol": Equal("`lmms_eval`: lmms-eval 75571cf, 8,000 answers", "2026-12-01"),
    "normalised": Equal("lmms-eval 75571cf, behind the extraction", "2026-12-01"),
    "overlap": Equal("lmms-eval 75571cf, the IoU of 8,000 pairs of boxes", "2026-12-01"),
}

SOURCES: dict[str, Source] = {
    "vqav2": Source("visualqa.org; Hub: VQAv2", "lmms-eval; the bare official script beside it", "vqa"),
    "textvqa": Source("textvqa.org; Hub: textvqa", f"m4c, {_LMMS}", "m4c"),
    "vizwiz": Source("vizwiz.org; Hub: VizWiz-VQA", "m4c", "m4c"),
    "gqa": Source("cs.stanford.edu/people/dorarad/gqa; Hub: GQA", "its script on LLaVA's conversion", "gqa"),
    "docvqa": Source("rrc.cvc.uab.es, 17.1; Hub: DocVQA", f"RRC's script, {_KIT}", "anls"),
    "infovqa": Source("rrc.cvc.uab.es, 17.3; Hub: DocVQA", f"RRC's script, {_KIT}", "anls"),
    "multidocvqa": Source("rrc.cvc.uab.es, 17.4; Hub: MP-DocVQA", "its repository's evaluator", "pages"),
    "chartqa": Source("vis-nlp/ChartQA; Hub: ChartQA", f"pix2struct, {_KIT}", "chartqa"),
    "ocrbench": Source("MultimodalOCR; Hub: OCRBench", "its rule; times 1000 is its score"),
    "ocrbench_v2": Source(
        "MultimodalOCR; Hub: OCRBench-v2", "its eval scripts, Apr 2026; needs `dslight[ocrbench]`", "ocrbench_v2"
    ),
    "mmvet": Source("yuweihao/MM-Vet; Hub: MMVet", _JUDGE),
    "pope": Source("AoiDragon/POPE; Hub: POPE", "its script", "pope"),
    "mme": Source("MME's release; Hub: MME", "its eval_tool, where pairs are whole", "mme"),
    "seed": Source("AILab-CVC/SEED-Bench; Hub: SEED-Bench", _LMMS, "seed"),
    "mmbench": Source("open-compass/MMBench TSVs, V1.1 too; Hub: MMBench", _READER, "kit"),
    "mmmu": Source("Hub: MMMU/MMMU", "its evaluator, without its random guesses", "mmmu"),
    "scienceqa": Source("lupantech/ScienceQA; Hub: ScienceQA", "LLaVA's script", "scienceqa"),
    "ai2d": Source("Hub: ai2d", _LMMS, "lmms"),
    "egoschema": Source(
        "egoschema/EgoSchema; Hub: egoschema", "lmms-eval of Aug 2026, without its random guesses", "lmms"
    ),
    "nextqa": Source("doc-doc/NExT-QA; Hub: NExTQA", _LMMS, "mmmu_lmms_eval"),
    "msvdqa": Source("MSVD-QA, both forms; Hub", _JUDGE),
    "activitynetqa": Source(
        "MILVLG/activitynet-qa; Hub: ActivityNetQA", "its script on LLaVA's conversion; or a judge"
    ),
    "mmstar": Source("VLMEvalKit TSV; Hub: MMStar", _READER, "kit"),
    "realworldqa": Source("VLMEvalKit TSV; Hub: RealworldQA", _READER, "kit"),
    "blink": Source("VLMEvalKit TSV; Hub: BLINK", _READER, "kit"),
    "hrbench": Source("VLMEvalKit TSV; Hub: HR-Bench", _READER, "kit"),
    "vstar": Source("Hub: vstar_bench", _READER, "kit"),
    "cvbench": Source("Hub: CV-Bench", "its formula over 2D and 3D; VLMEvalKit's reader of letters", "kit"),
    "mmmu_pro": Source("Hub: MMMU_Pro, a folder at a time", "MMMU's evaluator, without its random guesses", "mmmu"),
    "videomme": Source(
        "Hub: Video-MME",
        "its script, as in lmms-eval until 2025; `lmms_eval`: of Aug 2026",
        "lmms_protocol",
    ),
    "mvbench": Source("Hub: MVBench (json)", _LMMS, "mvbench"),
    "hallusionbench": Source("VLMEvalKit TSV; Hub: HallusionBench", "VLMEvalKit's reader of answers", "yes_no"),
    "countbench": Source("Hub: CountBenchQA", "the number"),
    "mathvista": Source(
        "Hub: MathVista, testmini", "lmms-eval's normalisation, Aug 2026; extraction without GPT is ours", "normalised"
    ),
    "chartqapro": Source(
        "Hub: ChartQAPro", "lmms-eval of Aug 2026; its script leaves the exact matches out", "lmms_protocol"
    ),
    "refcoco": Source("Hub: RefCOCO, RefCOCOplus, RefCOCOg", "accuracy at IoU 0.5", "overlap"),
    "screenspot": Source("Hub: ScreenSpot; SeeClick's json", "the point in the box"),
    "longvideobench": Source(
        "its json; VLMEvalKit TSV; Hub: LongVideoBench",
        "its authors', in lmms-eval of Aug 2026, without random guesses",
        "lmms",
    ),
    "mlvu": Source(
        "JUNJIE99/MLVU; Hub: MLVU_dev, MLVU_Test", "lmms-eval of Aug 2026; `mlvu`: its script's letter", "lmms"
    ),
    "mmlongbench_doc": Source(
        "samples.json, pages drawn; Hub: MMLongBench-Doc", "its script, without GPT's extraction", "mmlongbench_doc"
    ),
    "mmlongbench_doc_evidence": Source(
        "the same, with the pages that have the answer", "the same; lmms-eval shows these", "mmlongbench_doc"
    ),
    "charxiv": Source("princeton-nlp/CharXiv; Hub: CharXiv", f"{_JUDGE}, reasoning and descriptive apart"),
    "llava_bench": Source("its three jsonl; VLMEvalKit TSV; Hub", f"{_JUDGE}, against GPT-4's answers"),
    "choice": Source("any TSV, parquet or JSON with options", _READER, "kit"),
    "yes_no": Source("any TSV, parquet or JSON with yes or no", _KIT, "yes_no"),
    "short": Source("any TSV, parquet or JSON with answers", "exact match without case and punctuation", "words"),
}
