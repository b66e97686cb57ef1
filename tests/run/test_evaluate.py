"""``validate`` scores a checkpoint as ``fit`` did; ``predict`` answers as the validation loop does."""

import json
import shutil
from typing import Any

import pytest

from dslight.cli import main
from dslight.data.sample import parse_sample
from dslight.data.shards import ShardReader


@pytest.fixture(scope="module")
def trained(fit, tmp_path_factory):
    """A run that has learnt enough to answer different questions differently."""
    return fit(tmp_path_factory.mktemp("trained") / "run", "trainer.max_steps=31", "trainer.limit_val_batches=1")


def answers(run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "questions" / "pages.jsonl").read_text().splitlines()]


def call(verb, run, *more: str) -> list[str]:
    return [verb, str(run.path / "recipe.yaml"), *more]


def test_validate_prints_and_writes_the_scores_of_the_fit(trained, capsys):
    """Of all questions, although the recipe validates on one batch while it trains."""
    right = [answer["prediction"] in answer["references"] for answer in answers(trained)]
    assert sum(right[:8]) / 8 != sum(right) / 24, "one batch would score the same: train for another number of steps"
    assert main(call("validate", trained)) == 0
    scores = trained.json("result.json")["scores"]
    written = trained.json("scores.json")
    assert written["scores"] == scores
    assert written["checkpoint"].endswith("step-00000031.ckpt")
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("val/"))
    assert printed == {name: f"{value:.4f}" for name, value in scores.items()}


def test_validate_takes_another_checkpoint(trained, fit, tmp_path):
    """The run of two more steps would score itself; it is asked about the other run's weights."""
    other = fit(tmp_path / "run", "trainer.max_steps=2")
    newest = trained.path / "checkpoints" / "step-00000031.ckpt"
    assert main(call("validate", other, "--ckpt", str(newest))) == 0
    assert other.json("scores.json")["scores"] == trained.json("result.json")["scores"]
    assert other.json("scores.json")["checkpoint"] == str(newest)


def test_predict_answers_as_the_validation_loop_did(trained, pages, tmp_path, capsys):
    expected = {(answer["key"], answer["question"]): answer["prediction"] for answer in answers(trained)}
    assert len(set(expected.values())) > 1
    reader = ShardReader(pages / "val")
    for row in range(len(reader)):
        key = reader.locate(row)[1]
        sample = parse_sample(key, reader.read(row))
        (tmp_path / "page.png").write_bytes(sample.images[0])
        question = sample.questions[row].text
        capsys.readouterr()
        asked = ["--image", str(tmp_path / "page.png"), "--question", question, "--max-new-tokens", "16"]
        assert main(call("predict", trained, *asked)) == 0
        assert capsys.readouterr().out.rstrip("\n") == expected[key, question]


def test_predict_reads_no_shards(trained, pages, tmp_path, capsys):
    recipe = (trained.path / "recipe.yaml").read_text().replace(str(pages / "train"), "/no/pages")
    shutil.copy(trained.path / "checkpoints" / "step-00000031.ckpt", tmp_path / "model.ckpt")
    (tmp_path / "recipe.yaml").write_text(recipe)
    asked = ["--question", "B3", "--ckpt", str(tmp_path / "model.ckpt"), "--max-new-tokens", "2"]
    assert main(["predict", str(tmp_path / "recipe.yaml"), *asked]) == 0


def test_a_picture_that_is_not_there_or_is_none_is_refused(trained, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    for name, said in (("gone.png", "there is no file"), ("text.png", "does not decode")):
        capsys.readouterr()
        assert main(call("predict", trained, "--image", str(tmp_path / name), "--question", "B3")) == 1
        message = capsys.readouterr().err
        assert message.startswith("dslight: --image")
        assert said in message
        assert name in message


def test_a_question_that_is_too_long_is_refused(trained, capsys):
    assert main(call("predict", trained, "--question", "A1 " * 3000)) == 1
    assert "data.max_length 2048" in capsys.readouterr().err


def test_a_recipe_without_validation_sources_cannot_be_validated(trained, capsys):
    assert main(call("validate", trained, "data.val=null")) == 1
    assert capsys.readouterr().err.startswith("dslight: data.val: names no source")


def test_validate_needs_neither_the_training_data_nor_the_weights_that_training_began_with(trained, tmp_path, capsys):
    away = ["data.train=[nowhere]", f"weights.vision_encoder={tmp_path / 'gone.safetensors'}"]
    assert main(["validate", str(trained.path / "recipe.yaml"), f"run_dir={trained.path}", *away]) == 0
    assert "val/pages/vqa_accuracy" in capsys.readouterr().out
