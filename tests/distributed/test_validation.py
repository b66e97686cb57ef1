"""Validation while training, sharded over two processes: the scores of one, and what a checkpoint monitors."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from dslight.cli import main

HERE = Path(__file__).parent
SCORE = "val/pages/accuracy"


@pytest.fixture(scope="module")
def pair(recipe, fit, shards, tmp_path_factory):
    """Five questions after every second step. A digit anywhere in the answer counts, so that these models score."""
    root = tmp_path_factory.mktemp("validated")
    val = {"pages": {"root": str(shards / "val"), "limit": 5, "benchmark": "ocrbench"}}
    file = recipe("DeepStackL", validate_every=2)

    def run(name: str, ranks: int):
        best = {"dirpath": str(root / name / "best"), "monitor": SCORE, "mode": "max", "filename": "{step}"}
        callbacks = [
            {"class_path": "probe.Probe"},
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": best},
        ]
        overrides = ["seed=3", f"data.val={json.dumps(val)}", f"trainer.callbacks={json.dumps(callbacks)}"]
        done = fit(file, root / name, *overrides, ranks=ranks)
        assert done.code == 0, done.output[-4000:]
        return done

    return run("one", 1), run("two", 2), file, val


def scores(done) -> dict[int, float]:
    """By number of steps done."""
    with (done.folder / "run" / "metrics.csv").open() as text:
        return {int(row["step"]): float(row[SCORE]) for row in csv.DictReader(text) if row[SCORE]}


def test_scores_while_training_are_those_of_one_process(pair):
    one, two, *_ = pair
    assert scores(two) == scores(one)
    assert {2, 4, 6} <= set(scores(two))
    assert len(set(scores(two).values())) > 1


def test_the_best_checkpoint_is_that_of_the_best_score(pair, tmp_path, monkeypatch):
    """Validated on one process, the weights that two have kept score what they were kept for."""
    _, two, file, val = pair
    during = {step: score for step, score in scores(two).items() if step <= 6}
    best = max(during, key=lambda step: during[step])
    (kept,) = (two.folder / "best").iterdir()
    assert kept.name == f"step={best}.ckpt"
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PROBE_FOLDER", str(tmp_path))
    call = ["validate", str(file), f"run_dir={tmp_path / 'again'}", f"data.val={json.dumps(val)}", "--ckpt", str(kept)]
    assert main(call) == 0
    again = json.loads((tmp_path / "again" / "scores.json").read_text())
    assert again["scores"][SCORE] == pytest.approx(during[best])
    assert again["scores"][SCORE] > min(during.values())


def test_both_ranks_questions_are_in_the_file_in_order_and_once(pair):
    one, two, *_ = pair
    assert two.answers() == one.answers()
    assert [line["question_id"] for line in two.answers()] == [f"q{i}" for i in range(5)]
    result = two.result()
    mean = sum(line["score"] for line in two.answers()) / 5
    assert mean == pytest.approx(result["scores"][SCORE])
    facts = result["sources"]["pages"]
    assert (facts["questions"], facts["scored"], facts["limit"], facts["protocol"]) == (5, 5, 5, "official")
    assert facts["questions_per_second"] > 0
