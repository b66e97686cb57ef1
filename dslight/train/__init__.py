"""What training adds to a model: optimizers per part, sharding, callbacks."""

from dslight.train.eight_bit import AdamW8bit
from dslight.train.ema import EMA
from dslight.train.muon import MuonAdamW
from dslight.train.strategy import Sharded

__all__ = ["EMA", "AdamW8bit", "MuonAdamW", "Sharded"]
