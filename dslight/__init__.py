"""dslight: compose, train and compare DeepStack-style multimodal language models (arXiv 2406.04334).

import dslight

model = dslight.VLM(
    dslight.TimmEncoder("vit_base_patch16_siglip_224", pretrained=True),
    dslight.MLPProjector,
    dslight.DeepStackL(crops=4),
    dslight.HFCausalLM("HuggingFaceTB/SmolLM2-135M-Instruct"),
)
model.answer("What is written here?", images=["page.png"])
run = dslight.fit(model, dslight.Data(train=["data/mine"]), stage={"projector": 1e-3}, run_dir="runs/mine")
"""

# ruff: noqa: F401
from typing import TYPE_CHECKING

from dslight.in_transformers.register import announce
from dslight.lazy import offered

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dslight.components import (
        AttentionPoolProjector,
        AveragePoolProjector,
        CAbstractorProjector,
        ChannelConcat,
        Component,
        ConditionedGate,
        CrossAttention,
        DeepStack,
        DeepStackHD,
        DeepStackL,
        DeepStackTaps,
        DeepStackV,
        FusedEncoder,
        GatedAdd,
        HFCausalLM,
        HFVisionEncoder,
        IdentityProjector,
        LanguageModel,
        LevelLoRAProjector,
        LowResolution,
        MapProjector,
        MLPProjector,
        NaFlexEncoder,
        NativeVisionEncoder,
        Objective,
        Operation,
        PatchClassification,
        PerceiverResamplerProjector,
        PerLevelProjector,
        PixelShuffleMLPProjector,
        Projector,
        SequenceConcat,
        Stack,
        StackingScheduler,
        TimmEncoder,
        TimmFeatureMaps,
        VisionEncoder,
        WindowQFormerProjector,
    )
    from dslight.data.caches.features import KeepFeatures
    from dslight.data.conversation import Markers, Piece, Template
    from dslight.data.datamodule import ShardData as Data
    from dslight.data.datamodule import Source, ValSource
    from dslight.data.dense import DenseLabelData
    from dslight.data.given import Video
    from dslight.data.images import AnyResViews, AspectGridViews, GridViews, HDViews, SingleView
    from dslight.data.native import AnySizeViews, NaFlexViews, NativeViews, PixtralViews
    from dslight.data.plan import Order
    from dslight.data.templates.tile_marks import TileMarks
    from dslight.data.views.policy import ViewPolicy
    from dslight.data.views.tiles import DynamicTileViews, SplitViews
    from dslight.run.finished import Run
    from dslight.run.python import fit, load, validate
    from dslight.train.lora import LoRA
    from dslight.train.optim import PartTraining, Stage
    from dslight.train.strategy import Sharded
    from dslight.types import Batch, Question, Views
    from dslight.vlm import VLM

__getattr__, __dir__, __all__ = offered(__name__, __file__)

announce()
