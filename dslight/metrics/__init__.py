"""Benchmark scores: torchmetrics over pure scoring rules, and the table of benchmarks."""

# ruff: noqa: F401
from typing import TYPE_CHECKING

from dslight.lazy import offered

if TYPE_CHECKING:
    from dslight.metrics.answers import ANLS, ExactMatch, MMMUOpenAccuracy, RelaxedAccuracy, SubstringAccuracy
    from dslight.metrics.base import MeanScore, TextMetric
    from dslight.metrics.benchmarks import BENCHMARKS, Benchmark
    from dslight.metrics.boxes import BoxAccuracy
    from dslight.metrics.charts import ChartQAProAccuracy
    from dslight.metrics.documents import MMLongBenchDocScore
    from dslight.metrics.mathvista import MathVistaAccuracy
    from dslight.metrics.multiple_choice import MultipleChoiceAccuracy
    from dslight.metrics.ocrbench_v2 import OCRBenchV2Score
    from dslight.metrics.vqa import VQAAccuracy
    from dslight.metrics.yes_no import MMEScore, POPEMetric
    from dslight.metrics.yes_no_groups import YesNoAccuracy

__getattr__, __dir__, __all__ = offered(__name__, __file__)
