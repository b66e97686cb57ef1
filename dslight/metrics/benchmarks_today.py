"""Rows of the table of benchmarks: those of 2024 and later, and the general ones for any set of the same kind.

Their protocols are those of VLMEvalKit and lmms-eval, by which their leaderboards are made, without the language model
that both ask where no rule reads an answer: such an answer is unresolved here.
"""

from __future__ import annotations

from functools import partial

from dslight.metrics.answers import ExactMatch
from dslight.metrics.base import JudgedElsewhere
from dslight.metrics.benchmark import GROUPS, LETTER, Benchmark
from dslight.metrics.boxes import BoxAccuracy
from dslight.metrics.charts import ChartQAProAccuracy
from dslight.metrics.documents import MMLongBenchDocScore
from dslight.metrics.mathvista import MathVistaAccuracy
from dslight.metrics.multiple_choice import CVBenchAccuracy, MLVUAccuracy, MultipleChoiceAccuracy
from dslight.metrics.ocrbench_v2 import OCRBenchV2Score
from dslight.metrics.yes_no_groups import YesNoAccuracy

_choice = partial(MultipleChoiceAccuracy, protocol="mmbench", open_answers=True)
"""Above the number of questions whose options are rotated."""
BOX = "\nAnswer with the bounding box as [x1, y1, x2, y2], in thousandths of the picture's width and height."
DOCUMENT = (
    "\nAnswer with a word, a phrase, a number or a Python list of such, and nothing else; "
    "where the pages do not say it, answer 'Not answerable'."
)
POINT = "\nAnswer with the point to click at as [x, y], in thousandths of the picture's width and height."

TODAY: dict[str, Benchmark] = {
    # any set of the kind
    "choice": Benchmark(_choice, suffix=LETTER),
    "circular": Benchmark(partial(_choice, circular_groups=GROUPS), suffix=LETTER),
    "yes_no": Benchmark(YesNoAccuracy),
    "short": Benchmark(partial(ExactMatch, protocol="lmms_eval")),
    # multiple choice
    "mmstar": Benchmark(_choice, suffix=LETTER),
    "realworldqa": Benchmark(_choice, suffix=LETTER),
    "blink": Benchmark(_choice, suffix=LETTER),
    "hrbench": Benchmark(_choice, suffix=LETTER),
    "vstar": Benchmark(_choice, suffix=LETTER),
    "cvbench": Benchmark(CVBenchAccuracy, suffix=LETTER),
    "mmmu_pro": Benchmark(partial(MultipleChoiceAccuracy, protocol="mmmu"), suffix=LETTER),
    "videomme": Benchmark(
        partial(MultipleChoiceAccuracy, protocol="videomme", types=("short", "medium", "long")), suffix=LETTER
    ),
    "mvbench": Benchmark(partial(MultipleChoiceAccuracy, protocol="mvbench"), suffix=LETTER),
    "longvideobench": Benchmark(
        partial(MultipleChoiceAccuracy, protocol="longvideobench", types=("15", "60", "600", "3600")),
        suffix=LETTER,
        submission="longvideobench",
        hidden="test",
    ),
    "mlvu": Benchmark(MLVUAccuracy, suffix=LETTER, submission="mlvu", hidden="test"),
    # yes or no
    "hallusionbench": Benchmark(partial(YesNoAccuracy, groups=("figure", "question"), types=("VD", "VS"))),
    # numbers and words
    "countbench": Benchmark(partial(ExactMatch, protocol="number")),
    "mathvista": Benchmark(MathVistaAccuracy, suffix="", max_new_tokens=1024),
    "chartqapro": Benchmark(ChartQAProAccuracy, max_new_tokens=64),
    "mmlongbench_doc": Benchmark(MMLongBenchDocScore, suffix=DOCUMENT, max_new_tokens=128),
    # whole pages and tables are answers here; lmms-eval stops after 128 tokens
    "ocrbench_v2": Benchmark(OCRBenchV2Score, suffix="", max_new_tokens=2048),
    # judged by a language model
    "charxiv": Benchmark(
        JudgedElsewhere, suffix="", max_new_tokens=256, submission="charxiv", hidden="test", judge="GPT-4o (2024-05-13)"
    ),
    "llava_bench": Benchmark(
        JudgedElsewhere, suffix="", max_new_tokens=1024, submission="llava_bench", judge="GPT-4 (0314)"
    ),
    # places
    "refcoco": Benchmark(BoxAccuracy, suffix=BOX, max_new_tokens=64),
    "screenspot": Benchmark(
        partial(BoxAccuracy, rule="point", types=("text", "icon")), suffix=POINT, max_new_tokens=64
    ),
}
