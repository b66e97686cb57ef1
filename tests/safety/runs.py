"""Finished runs, whole ones and ones of which a file is another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dslight.recipe.compose import to_yaml

HEADLINE = "val/digits/vqa_accuracy"
RESULT = {
    "name": "low",
    "seed": 0,
    "recipe_hash": "abc",
    "scores": {HEADLINE: 0.5},
    "sources": {"digits": {"headline": HEADLINE, "questions": 2}},
    "headline": HEADLINE,
    "accuracy": 0.5,
    "parameters": {"total": 100, "trainable": 10},
    "visual_tokens": 16,
    "context_length": 32,
    "step_seconds": 0.1,
    "steps": 30,
    "train_seconds": 3.0,
    "git_commit": "0123456789",
    "versions": {"torch": "2.14"},
}
LINE = {
    "question_id": "q0",
    "source": "digits",
    "type": "t",
    "question": "What is it?",
    "prompt": "What is it? Briefly.",
    "prediction": "3",
    "references": ["3"],
    "score": 1.0,
    "unresolved": False,
    "key": "page-0",
}
OTHER = LINE | {"question_id": "q1", "score": 0.0}
DIAGNOSED = {
    "stacks": [{"part": "language_model", "layer": 0}],
    "parts": {"language_model": {"layers": 4}},
    "comparisons": {"digits": [{"name": "all", "title": "all stacks"}, {"name": "without_any", "title": "none"}]},
    "norms": [{"part": "language_model", "layer": 0, "relative": 0.1, "cosine": 0.2}],
    "heat_maps": [{"file": None, "note": "no picture", "question": "?", "answer": "3", "heat": "attention"}],
}
SCORED = {"source": "digits", "number": 0, "scores": {"all": 1.0, "without_any": 0.0}}
CURVE = "epoch,step,train/loss,val/digits/vqa_accuracy\n0,10,1.5,\n0,20,1.0,0.2\n0,30,0.9,0.4\n0,30,,0.5\n"


def lines(*entries: Any) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def run(folder: Path, arm: str = "low", **files: str) -> Path:
    """A finished run; ``files`` stand in the place of its own."""
    own = {
        "recipe.yaml": to_yaml({"name": "low", "seed": 0}),
        "result.json": json.dumps(RESULT),
        "run.json": json.dumps({"arm": arm, "index": 0, "point": {"seed": 0}}),
        "environment.json": json.dumps({"versions": {"torch": "2.14"}, "git_commit": "012345"}),
        "scores.json": json.dumps({"checkpoint": "last.ckpt", "scores": {HEADLINE: 0.5}, "sources": {}}),
        "metrics.csv": CURVE,
        "questions/digits.jsonl": lines(LINE, OTHER),
        "diagnostics.json": json.dumps(DIAGNOSED),
        "diagnostics/questions.jsonl": lines(SCORED),
    }
    for name, text in (own | files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder
