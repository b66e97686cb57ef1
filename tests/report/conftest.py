"""Run folders as training leaves them behind. Their curves take off late and level out, as those of real runs do."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dslight.recipe.ablation import Ablation
from dslight.recipe.compose import recipe_hash, to_yaml

HEADLINE = "val/digits/vqa_accuracy"


@pytest.fixture(name="finish")
def finish_fixture():
    """``finish(folder, ...)``."""
    return finish


@pytest.fixture(name="finish_all")
def finish_all_fixture():
    """``finish_all(ablation)``."""
    return finish_all


@pytest.fixture(name="answer")
def answer_fixture():
    """``answer(folder, source, scores)``."""
    return answer


def answer(
    folder: Path, source: str, scores: Sequence[float | None], key: str | Sequence[str] = "page-{}", **fields
) -> Path:
    """The per-question file of a run: question ``i`` is called ``q<i>``; ``fields`` are the same in all lines, or a
    list with one entry per line. The benchmark's number in ``result.json`` becomes the mean score, also as accuracy.
    """
    lines = []
    for i, score in enumerate(scores):
        own = {name: value[i] if isinstance(value, list) else value for name, value in fields.items()}
        entry = {
            "question_id": f"q{i}",
            "source": source,
            "benchmark": "exact",
            "type": "",
            "question": f"What is in {i}?",
            "prompt": f"What is in {i}?\nBriefly.",
            "prediction": "right" if score else "wrong",
            "references": ["right"],
            "score": None if score is None else float(score),
            "unresolved": False,
            "key": key.format(i) if isinstance(key, str) else key[i],
        }
        lines.append(json.dumps(entry | own, ensure_ascii=False))
    file = folder / "questions" / f"{source}.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = json.loads((folder / "result.json").read_text())
    scored = [score for score in scores if score is not None]
    first = result["headline"].startswith(f"val/{source}/")
    headline = result["headline"] if first else f"val/{source}/exact_match"
    result["scores"][headline] = float(np.mean(scored)) if scored else float("nan")
    if first:
        result["accuracy"] = result["scores"][headline]
    result.setdefault("sources", {})[source] = {"headline": headline}
    (folder / "result.json").write_text(json.dumps(result))
    return file


def finish(
    folder: Path,
    arm: str | None = None,
    seed: int = 0,
    score: float | None = 0.74,
    point: dict | None = None,
    recipe: dict | None = None,
    **changes,
) -> Path:
    """A finished run in ``folder``; ``changes`` go into its ``result.json``, where ``None`` takes a key out."""
    folder.mkdir(parents=True)
    recipe = recipe or {"name": arm or folder.name, "seed": seed}
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    if arm is not None:
        (folder / "run.json").write_text(json.dumps({"arm": arm, "point": point or {"seed": seed}}))
    result = {
        "name": recipe["name"],
        "seed": seed,
        "recipe_hash": recipe_hash(recipe),
        "scores": {HEADLINE: score, "val/digits/exact_match": score},
        "headline": HEADLINE,
        "accuracy": score,
        "visual_tokens": 16,
        "stacked_tokens": 0,
        "context_length": 32,
        "step_seconds": 0.09,
        "steps": 500,
        "parameters": {"total": 563_000, "trainable": 563_000},
        "train_seconds": 48.0,
        "git_commit": "0123456789abcdef",
        "versions": {"torch": "2.15.0", "lightning": "2.6.6"},
    } | changes
    (folder / "result.json").write_text(json.dumps({key: value for key, value in result.items() if value is not None}))
    if score is not None:
        noise = random.Random(f"{arm} {seed}")
        lines = ["epoch,step,train/loss," + str(result["headline"])]
        steps = result["steps"] or 500
        for step in range(10, steps + 1, 10):
            lines.append(f"0,{step},{3 * math.exp(-step / 150) + noise.random() / 10:.4f},")
            if step % 50 == 0:
                rise = 1 / (1 + math.exp(-(step - 130 - 30 * noise.random()) / 25))
                lines.append(f"0,{step},,{0.1 + (score - 0.1) * rise - 0.03:.4f}")  # of some of the questions
        lines.append(f"0,{steps + 1},,{score}")
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def finish_all(ablation: Ablation) -> None:
    """Finish all runs of an ablation with the arms below."""
    arms = {
        "low": (0.738, 16, 0, 32, 0.090),
        "low-repeated": (0.735, 16, 64, 32, 0.092),
        "upsampled": (0.731, 16, 64, 32, 0.146),
        "deepstack-v": (0.812, 16, 64, 32, 0.111),
        "deepstack-l": (0.911, 16, 64, 32, 0.159),
        "all-tokens": (0.916, 80, 0, 96, 0.252),
    }
    for run in ablation.runs:
        score, visual, stacked, context, seconds = arms[run.arm]
        seed = run.recipe["seed"]
        noise = random.Random(f"{run.arm} {seed}").uniform(-0.006, 0.006)
        costs = {"visual_tokens": visual, "stacked_tokens": stacked, "context_length": context, "step_seconds": seconds}
        finish(
            run.run_dir, run.arm, seed, score + noise, run.point, run.recipe, **costs, train_seconds=500 * seconds + 5
        )
