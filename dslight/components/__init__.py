"""The four interchangeable parts: an abstract base for each kind, its final classes in a package beside it."""

from dslight.components.component import Component, Objective
from dslight.components.decoders.causal_lm import HFCausalLM
from dslight.components.language_model import LanguageModel
from dslight.components.objectives import PatchClassification
from dslight.components.operation import ConditionedGate, GatedAdd, Operation
from dslight.components.projector import MapProjector, Projector
from dslight.components.projectors import (
    AttentionPoolProjector,
    AveragePoolProjector,
    CAbstractorProjector,
    IdentityProjector,
    LevelLoRAProjector,
    MLPProjector,
    PerceiverResamplerProjector,
    PerLevelProjector,
    PixelShuffleMLPProjector,
    WindowQFormerProjector,
)
from dslight.components.schedulers.cross_attention import CrossAttention
from dslight.components.schedulers.deepstack import DeepStack
from dslight.components.schedulers.presets import (
    ChannelConcat,
    DeepStackHD,
    DeepStackL,
    DeepStackTaps,
    DeepStackV,
    LowResolution,
    SequenceConcat,
)
from dslight.components.schedulers.stack import Stack
from dslight.components.stacking import StackingScheduler
from dslight.components.vision_encoder import VisionEncoder
from dslight.components.vision_encoders import (
    FusedEncoder,
    HFVisionEncoder,
    NaFlexEncoder,
    NativeVisionEncoder,
    TimmEncoder,
    TimmFeatureMaps,
)

__all__ = [
    "AttentionPoolProjector",
    "AveragePoolProjector",
    "CAbstractorProjector",
    "ChannelConcat",
    "Component",
    "ConditionedGate",
    "CrossAttention",
    "DeepStack",
    "DeepStackHD",
    "DeepStackL",
    "DeepStackTaps",
    "DeepStackV",
    "FusedEncoder",
    "GatedAdd",
    "HFCausalLM",
    "HFVisionEncoder",
    "IdentityProjector",
    "LanguageModel",
    "LevelLoRAProjector",
    "LowResolution",
    "MLPProjector",
    "MapProjector",
    "NaFlexEncoder",
    "NativeVisionEncoder",
    "Objective",
    "Operation",
    "PatchClassification",
    "PerLevelProjector",
    "PerceiverResamplerProjector",
    "PixelShuffleMLPProjector",
    "Projector",
    "SequenceConcat",
    "Stack",
    "StackingScheduler",
    "TimmEncoder",
    "TimmFeatureMaps",
    "VisionEncoder",
    "WindowQFormerProjector",
]
