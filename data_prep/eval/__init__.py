"""Evaluation sets in the files of their authors to question shards: ``python -m data_prep.eval vqav2 ...``."""
