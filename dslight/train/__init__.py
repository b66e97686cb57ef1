"""What training adds to a model: optimizers per part, sharding, callbacks."""

from dslight.train.strategy import Sharded

__all__ = ["Sharded"]
