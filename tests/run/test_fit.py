"""A run leaves what its folder's docstring says, is not repeated by accident, and can be interrupted at any moment."""

import json
import re
import shutil
import signal
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from said import messages

from dslight.cli import main
from dslight.recipe.compose import compose, recipe_hash
from dslight.run import folder as folder_module

STEPS = 9
QUESTIONS = 24
RESULT = {
    "name", "seed", "recipe_hash", "scores", "headline", "accuracy", "parameters", "visual_tokens", "stacked_tokens",
    "context_length", "step_seconds", "steps", "train_seconds", "versions", "git_commit", "sources",
}  # fmt: skip


def assert_equal(run, whole) -> None:
    """The same losses and scores step by step, the same weights to the last bit, the same answers."""
    assert run.losses() == whole.losses()
    assert run.scores() == whole.scores()
    ours, theirs = run.weights(), whole.weights()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    ours, theirs = ((path / "questions" / "pages.jsonl").read_text() for path in (run.path, whole.path))
    assert ours == theirs
    assert run.json("result.json")["scores"] == whole.json("result.json")["scores"]


def test_a_run_leaves_what_the_docstring_of_its_folder_says(whole):
    documented = set(re.findall(r"^    ([\w.]+)", folder_module.__doc__, flags=re.MULTILINE))
    assert whole.files() == documented - {"submissions", "judged", "diagnostics.json"}  # of recipes that ask for them
    assert whole.checkpoints()[-1] == f"step-{STEPS:08d}.ckpt"
    assert {name.split(".")[0] for name in whole.weights()} == {"vision_encoder", "projector", "language_model"}


def test_the_result_holds_the_scores_and_what_they_cost(whole, recipe):
    result = whole.json("result.json")
    assert set(result) == RESULT
    assert result["steps"] == STEPS
    assert result["recipe_hash"] == recipe_hash(compose(recipe))
    assert result["headline"] == "val/pages/vqa_accuracy"
    assert result["accuracy"] == result["scores"][result["headline"]]
    assert (result["visual_tokens"], result["stacked_tokens"]) == (16 * 5, 16 * 4)
    assert result["context_length"] == 16  # of the image: the base view's, as `dslight plan` and the paper count it
    tensors = whole.weights().values()
    assert result["parameters"] == {
        "total": sum(t.numel() for t in tensors),
        "trainable": sum(t.numel() for t in tensors),
    }
    assert 0 < result["step_seconds"] * STEPS < 10 * result["train_seconds"]
    assert result["versions"]["torch"] == version("torch")


def test_the_environment_is_written_down(whole):
    environment = whole.json("environment.json")
    assert environment["versions"]["lightning"] == version("lightning")
    assert set(environment) == {"versions", "git_commit", "python", "command", "id"}


def test_every_question_is_answered_and_the_score_follows_from_the_answers(whole):
    answers = [json.loads(line) for line in (whole.path / "questions" / "pages.jsonl").read_text().splitlines()]
    assert len({answer["question_id"] for answer in answers}) == len(answers) == QUESTIONS
    right = sum(answer["prediction"] in answer["references"] for answer in answers)
    assert right == sum(answer["score"] for answer in answers)
    assert whole.json("result.json")["accuracy"] == pytest.approx(right / QUESTIONS)


def test_the_metrics_have_every_step_once_and_the_scores_in_between(whole):
    assert [step for step, _ in whole.losses()] == list(range(1, STEPS + 1))
    scored = [row for row in whole.metrics() if row["val/pages/vqa_accuracy"]]
    assert len(scored) == 4  # after steps 3, 6 and 9 while training, and of everything at the end


def test_a_second_fit_returns_at_once_and_changes_nothing(whole, recipe, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")}
    assert main(["fit", str(recipe), f"run_dir={whole.path}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")} == before


def test_a_changed_recipe_is_refused_by_the_key_and_fresh_starts_anew(fit, recipe, tmp_path, capsys):
    run = fit(tmp_path / "run", "trainer.max_steps=1")
    assert run.checkpoints() == ["step-00000001.ckpt"]  # the last step's, although only every third is due
    (run.path / "left.txt").write_text("of the first run")
    changed = ["fit", str(recipe), f"run_dir={run.path}", "trainer.max_steps=1", "stage.train.projector.lr=0.5"]
    capsys.readouterr()
    assert main(changed) == 1
    message = messages(capsys.readouterr().err)
    assert message.startswith(f"dslight: run_dir: {run.path} holds a run of another recipe:\n")
    assert "\n  stage.train.projector.lr: 0.004 -> 0.5\n" in message
    assert "--fresh" in message
    assert run.json("result.json")["steps"] == 1
    assert main([*changed, "--fresh"]) == 0
    assert (run.path / "left.txt").read_text() == "of the first run"  # not a file of ours
    assert compose(run.path / "recipe.yaml")["stage"]["train"]["projector"]["lr"] == 0.5
    assert [path.name for path in (run.path / "logs").iterdir()] == ["attempt-0"]


def test_a_run_can_be_repeated_from_its_saved_recipe(fit, whole, tmp_path):
    again = fit(tmp_path / "run", file=whole.path / "recipe.yaml")
    assert_equal(again, whole)


def test_ctrl_c_saves_a_checkpoint_and_the_same_command_continues_exactly(interrupted, fit, whole, tmp_path):
    """Twice: inside the first of a step's two micro-batches in the middle of an epoch, then in the next epoch."""
    done = interrupted(tmp_path / "run", "train 4 SIGINT", command=True)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "the same command continues" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000005.ckpt").exists()
    assert not (tmp_path / "run" / "result.json").exists()

    done = interrupted(tmp_path / "run", "train 7 SIGINT")
    assert done.returncode == 130, done.stderr
    assert "continuing from" in done.stdout
    assert (tmp_path / "run" / "checkpoints" / "step-00000008.ckpt").exists()

    run = fit(tmp_path / "run")
    assert len(list((run.path / "logs").glob("attempt-*"))) == 3
    assert_equal(run, whole)
    result, expected = run.json("result.json"), whole.json("result.json")
    for key in ("steps", "parameters", "visual_tokens", "stacked_tokens", "context_length", "recipe_hash"):
        assert result[key] == expected[key], key


def test_slurms_announcement_is_a_stop_and_no_file_is_loaded_that_nobody_named(
    interrupted, fit, whole, tmp_path, monkeypatch
):
    task = {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "4242", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    job = {f"SLURM_{name}": value for name, value in task.items()}
    done = interrupted(tmp_path / "run", "train 4 SIGUSR1", **job)
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert done.returncode == 130, done.stderr
    assert not list((tmp_path / "run").glob("hpc_ckpt_*"))
    (tmp_path / "other").mkdir()
    for name in ("run", "other"):
        saved = tmp_path / "run" / "checkpoints" / "step-00000005.ckpt"
        shutil.copy(saved, tmp_path / name / "hpc_ckpt_1.ckpt")
    assert_equal(fit(tmp_path / "run"), whole)  # validated and saved after the last step, not the fifth
    assert_equal(fit(tmp_path / "other"), whole)  # nothing to continue, so from the first step on


def test_ctrl_c_during_validation_stops_after_the_next_step_and_continues_exactly(interrupted, fit, whole, tmp_path):
    done = interrupted(tmp_path / "run", "validate 3 SIGINT")
    assert done.returncode == 130, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000004.ckpt").exists()
    assert_equal(fit(tmp_path / "run"), whole)


def test_a_killed_run_continues_exactly_from_its_last_periodic_checkpoint(interrupted, fit, whole, tmp_path):
    done = interrupted(tmp_path / "run", "train 8 SIGKILL")
    assert done.returncode == -signal.SIGKILL
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000003.ckpt", "step-00000006.ckpt"]
    assert_equal(fit(tmp_path / "run"), whole)


@pytest.mark.parametrize("place", ["validate", "score"])
def test_ctrl_c_in_a_validation_after_the_last_step_loses_no_step(place, interrupted, fit, whole, tmp_path):
    done = interrupted(tmp_path / "run", f"{place} {STEPS} SIGINT")
    assert done.returncode == 130, done.stderr
    assert (tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}.ckpt").exists()
    assert_equal(fit(tmp_path / "run"), whole)


def test_a_sample_that_cannot_be_read_ends_the_run_by_name(recipe, pages, tmp_path, capsys):
    """``check: full`` finds a byte that changed; the size is still right, so only reading can tell."""
    shutil.copytree(pages / "train", tmp_path / "train")
    shard = next((tmp_path / "train").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    start = content.index(b"IDAT")
    content[start + 8] ^= 0xFF
    shard.write_bytes(content)
    overrides = [f"data.train=[{tmp_path / 'train'}]", "data.check=full", f"run_dir={tmp_path / 'run'}"]
    assert main(["fit", str(recipe), *overrides]) == 1
    said = messages(capsys.readouterr().err)
    assert str(shard) in said
    assert said.startswith("dslight: ")
    assert "Traceback" not in said


def test_a_run_without_a_name_needs_a_folder(recipe, tmp_path, capsys):
    values = Path(recipe).read_text().replace("name: quickstart/deepstack_l\n", "")
    (tmp_path / "nameless.yaml").write_text(values)
    assert main(["fit", str(tmp_path / "nameless.yaml")]) == 1
    assert messages(capsys.readouterr().err).startswith("dslight: name: missing; it names the run's folder")
