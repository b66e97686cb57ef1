"""Checkpoints of the field, in and out: LLaVA, llava-hf, the released DeepStack models, and our own."""

from dslight.checkpoints.load import LoadReport, load_checkpoint, parts_in

__all__ = ["LoadReport", "load_checkpoint", "parts_in"]
