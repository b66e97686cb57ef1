"""The four interchangeable parts, an abstract base on top of each file and small final classes below it."""

from dslight.components.component import Component, Objective
from dslight.components.language_model import HFCausalLM, LanguageModel
from dslight.components.objectives import PatchClassification
from dslight.components.projector import MLPProjector, PerLevelMLPProjector, Projector
from dslight.components.stacking import DeepStackL, DeepStackV, LowResolution, SequenceConcat, StackingScheduler
from dslight.components.vision_encoder import TimmEncoder, VisionEncoder

__all__ = [
    "Component",
    "DeepStackL",
    "DeepStackV",
    "HFCausalLM",
    "LanguageModel",
    "LowResolution",
    "MLPProjector",
    "Objective",
    "PatchClassification",
    "PerLevelMLPProjector",
    "Projector",
    "SequenceConcat",
    "StackingScheduler",
    "TimmEncoder",
    "VisionEncoder",
]
