"""Torch only: the arithmetic of stacking (sampling, injection, loss), free of Lightning and of any configuration."""
