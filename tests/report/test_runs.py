"""Reading run folders. The CSV log is written by Lightning's own logger."""

import json
import shutil

import pytest
from lightning.pytorch.loggers import CSVLogger

from dslight.recipe.ablation import expand
from dslight.recipe.errors import RecipeError
from dslight.report.runs import collect


def test_runs_below_a_folder_are_found_in_the_order_of_the_sweep(tmp_path, finish):
    for index, arm in enumerate(["second", "first", "alone"]):
        folder = finish(tmp_path / "runs" / arm / "seed=0", arm if arm != "alone" else None, seed=0)
        if arm != "alone":
            (folder / "run.json").write_text(f'{{"arm": "{arm}", "index": {2 - index}, "point": {{"seed": 0}}}}')
    results, unfinished = collect([tmp_path])
    assert [result.arm for result in results] == ["seed=0", "first", "second"]
    assert results[0].path == tmp_path / "runs/alone/seed=0"
    assert results[1].seed == 0
    assert results[1].point == {"seed": 0}
    assert unfinished == []


def test_a_run_without_a_result_and_one_of_another_recipe_are_left_out_with_the_reason(tmp_path, monkeypatch, finish):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("name: a\nvariants: {w: {x: 1}, x: {x: 2}, y: {x: 3}, z: {x: 4}}\n")
    ablation = expand("a.yaml")
    finish(ablation.runs[0].run_dir, "w", recipe=ablation.runs[0].recipe)
    finish(ablation.runs[1].run_dir, "x", recipe=ablation.runs[1].recipe | {"x": 9})
    ablation.runs[2].run_dir.mkdir()
    (ablation.runs[2].run_dir / "run.json").write_text("{}")
    results, unfinished = collect(ablation)
    assert [result.arm for result in results] == ["w"]
    assert unfinished == [
        "runs/a/x: its result is of another recipe (x: 9 -> 2); a report takes the overrides of its sweep",
        "runs/a/y: started, not finished",
        "runs/a/z: not started",
    ]


def test_the_curves_are_what_lightning_logged_while_training(tmp_path, finish):
    folder = finish(tmp_path / "run", score=None)
    logger = CSVLogger(tmp_path / "log", name="", version="")
    for step in (10, 20, 30):
        logger.log_metrics({"train/loss": 1 / step, "epoch": 0}, step)
        if step % 20 == 0:
            logger.log_metrics({"val/digits/vqa_accuracy": step / 100}, step)
        logger.save()
    logger.log_metrics({"val/digits/vqa_accuracy": 0.9}, 30)  # after training, on all questions
    logger.save()
    shutil.copy(tmp_path / "log/metrics.csv", folder)
    result = collect([folder])[0][0]
    assert result.curves["val/digits/vqa_accuracy"] == [(20, 0.2)]
    assert [step for step, _ in result.curves["train/loss"]] == [10, 20, 30]
    assert set(result.curves) == {"train/loss", "val/digits/vqa_accuracy"}


def test_a_step_that_a_resumed_run_logged_again_counts_once(tmp_path, finish):
    folder = finish(tmp_path / "run")
    (folder / "metrics.csv").write_text("step,loss\n10,0.1\n20,0.2\n20,0.3\n,0.9\n30,\n")
    assert collect([tmp_path])[0][0].curves == {"loss": [(10, 0.1), (20, 0.3)]}


@pytest.mark.parametrize(
    ("limit", "said"),
    [(None, ""), (1.0, ""), (1, "trainer.limit_val_batches: 1"), (0.5, "trainer.limit_val_batches: 0.5")],
)
def test_a_run_that_validated_on_a_slice_while_training_says_so(tmp_path, finish, limit, said):
    trainer = {} if limit is None else {"trainer": {"limit_val_batches": limit}}
    finish(tmp_path / "run", recipe={"name": "run", **trainer})
    assert collect([tmp_path])[0][0].validated_on == said


def test_labels_name_the_setting_where_the_runs_have_several(tmp_path, finish):
    points = [("a", {"seed": 0, "stage.lr": 1}), ("a", {"seed": 0, "stage.lr": 2}), ("b", {"seed": 0})]
    for i, (arm, point) in enumerate(points):
        finish(tmp_path / str(i), arm, 0, 0.5, point)
    assert [one.label for one in collect([tmp_path])[0]] == ["a lr=1", "a lr=2", "b"]
    assert [one.label for one in collect([tmp_path / "0"])[0]] == ["a"]


def test_versions_may_stand_in_the_environment_file(tmp_path, finish):
    folder = finish(tmp_path / "run", versions=None, git_commit=None)
    (folder / "environment.json").write_text('{"git_commit": "abc", "versions": {"torch": "2.11"}}')
    result = collect([tmp_path])[0][0]
    assert (result.commit, result.versions) == ("abc", {"torch": "2.11"})


def test_a_number_that_is_missing_or_not_a_number_is_none(tmp_path, finish):
    folder = finish(tmp_path / "run", accuracy=float("nan"), train_seconds=float("inf"), step_seconds=None)
    assert "NaN" in (folder / "result.json").read_text()
    result = collect([tmp_path])[0][0]
    assert result.number("parameters.total") == 563_000
    for key in ("accuracy", "train_seconds", "step_seconds", "parameters", "parameters.more", "name.first"):
        assert result.number(key) is None


def test_a_later_validation_on_fewer_questions_replaces_no_score(tmp_path, finish):
    asked = {"a": {"questions": 100, "headline": "val/a/x"}, "b": {"questions": 50, "headline": "val/b/x"}}
    folder = finish(tmp_path / "run", scores={"val/a/x": 0.5, "val/b/x": 0.6}, sources=asked)
    fewer = {"a": asked["a"] | {"questions": 10}, "b": asked["b"]}
    scored = {"checkpoint": "best.ckpt", "scores": {"val/a/x": 0.9, "val/b/x": 0.7}, "sources": fewer}
    (folder / "scores.json").write_text(json.dumps(scored))
    result = collect([tmp_path])[0][0]
    assert result.scores == {"val/a/x": 0.5, "val/b/x": 0.7}
    assert result.sources["a"]["questions"] == 100
    assert result.rescored == "best.ckpt"
    (folder / "scores.json").write_text(json.dumps({**scored, "sources": {"a": fewer["a"]}}))
    assert collect([tmp_path])[0][0].rescored is None


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no runs in there"):
        collect([tmp_path])
    with pytest.raises(RecipeError, match="gone: no such folder of runs"):
        collect([tmp_path / "gone"])
