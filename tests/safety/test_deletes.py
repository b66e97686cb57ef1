"""Nothing is deleted that this program did not write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.digits import png
from dslight.data.shards import Cache, ShardError, ShardWriter
from dslight.recipe.ablation import Run
from dslight.recipe.compose import to_yaml
from dslight.recipe.errors import RecipeError
from dslight.run.deletion import LOCK, begin_folder, end_folder
from dslight.run.folder import RunFolder
from dslight.run.sweep import _delete

PROMISE = "only what dslight wrote is deleted"
RECIPE: dict[str, Any] = {"name": "mine", "data": {}}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run's folder with all that one leaves behind, and a diary of its owner."""
    folder = RunFolder(tmp_path / "run")
    folder.open(RECIPE)
    for name in (
        "optimizer.txt", "progress.json", "metrics.csv", "result.json", "scores.json", "run.json", "log.txt",
        "logs/attempt-0/metrics.csv", "logs/attempt-0/hparams.yaml", "checkpoints/step-00000001.ckpt",
        "checkpoints/step-00000002.ckpt/.metadata", "checkpoints/step-00000002.ckpt/__0_0.distcp",
        "checkpoints/step-00000002.ckpt/meta.pt", "checkpoints/step-00000002.ckpt/complete.json",
        "checkpoints/.step-00000003.partial", "weights/projector.safetensors", "questions/pages.jsonl",
        "questions/limited/pages.jsonl", "submissions/pages/submission.json", "diagnostics.json",
        "judged/replies.jsonl", "judged/mmvet.gpt-4.json", "judged/mmvet.gpt-4.jsonl",
        "diagnostics/questions.jsonl", "diagnostics/pages-3.png", ".result.json.17.partial",
    ):  # fmt: skip
        file = folder.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    return folder


@pytest.mark.promise(PROMISE, "fit --fresh on a run")
def test_a_fresh_run_begins_in_an_empty_folder(run):
    run.open(RECIPE, fresh=True)
    assert files(run.path) == {"recipe.yaml", "environment.json"}


MINE = [
    "notes.md",
    "checkpoints/best.ckpt",
    "checkpoints/step-00000002.ckpt/notes.md",
    "weights/projector.bak",
    "src/a.py",
]


@pytest.mark.promise(PROMISE, "fit --fresh on a run that holds files of its owner")
def test_what_the_owner_put_into_a_run_stays_and_is_named(run, capsys, outcome):
    for name in MINE:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("mine")
    run.open(RECIPE, fresh=True)
    assert files(run.path) == {"recipe.yaml", "environment.json", *MINE}
    said = capsys.readouterr().out
    assert all(name in said for name in MINE)
    outcome(said.strip())


@pytest.mark.promise(PROMISE, "fit --fresh on a folder with a recipe.yaml that is no run")
def test_a_folder_with_a_recipe_is_no_run(tmp_path, outcome):
    (tmp_path / "recipe.yaml").write_text(to_yaml(RECIPE))
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RecipeError, match="is not the folder of a run") as refused:
        RunFolder(tmp_path).open(RECIPE, fresh=True)
    assert files(tmp_path) == {"recipe.yaml", "thesis.tex"}
    outcome(refused)


@pytest.mark.promise(PROMISE, "fit --fresh through a symbolic link")
@pytest.mark.parametrize("where", ["the run's folder", "checkpoints", "a file"])
def test_nothing_is_deleted_through_a_link(where, run, tmp_path, outcome):
    away = tmp_path / "away"
    target = {"the run's folder": run.path, "checkpoints": run.checkpoints, "a file": run.path / "log.txt"}[where]
    target.rename(away)
    target.symlink_to(away)
    before = files(tmp_path)
    with pytest.raises(RecipeError, match="is a symbolic link") as refused:
        run.open(RECIPE, fresh=True)
    assert files(tmp_path) == before
    assert "\n" not in str(refused.value)
    if where != "a file":  # and a run does not begin where its old checkpoints would have to be deleted so
        with pytest.raises(RecipeError, match="is a symbolic link"):
            run.open(RECIPE)
    outcome(refused)


@pytest.mark.promise(PROMISE, "sweep --fresh where one of the folders is no run's")
def test_a_fresh_sweep_deletes_all_or_nothing(run, tmp_path, outcome):
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text(json.dumps({"my": "own"}))
    runs = [Run(i, "arm", {}, RECIPE, folder, {}) for i, folder in enumerate((run.path, other))]
    before = files(tmp_path)
    with pytest.raises(RecipeError, match="is not the folder of a run") as refused:
        _delete(runs)
    assert files(tmp_path) == before
    _delete(runs[:1])
    assert files(run.path) <= {LOCK}
    outcome(refused)


@pytest.mark.promise(PROMISE, "old checkpoints, one of them")
@pytest.mark.parametrize("what", ["with a file of its owner", "a link"])
def test_old_checkpoints_go_only_if_they_are_ours(what, run, tmp_path, outcome):
    old = run.checkpoints / "step-00000002.ckpt"
    if what == "a link":
        old.rename(tmp_path / "away")
        old.symlink_to(tmp_path / "away")
    else:
        (old / "notes.md").write_text("mine")
    (run.checkpoints / "step-00000009.ckpt").write_text("")
    before = files(tmp_path)
    with pytest.raises(RecipeError, match=r"notes\.md: is no file of a checkpoint|is a symbolic link") as refused:
        run.keep(1)
    assert before - files(tmp_path) <= {"run/checkpoints/step-00000001.ckpt"}
    outcome(refused)


@pytest.mark.promise(PROMISE, "export beside a folder that is called as its own unfinished one")
def test_an_export_takes_nobodys_folder_for_its_own(tmp_path, outcome):
    mine = tmp_path / ".out.partial"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    with pytest.raises(RecipeError, match="in the way") as refused:
        begin_folder(tmp_path / "out")
    assert files(mine) == {"thesis.tex"}
    (mine / "thesis.tex").unlink()
    mine.rmdir()
    begun = begin_folder(tmp_path / "out")
    (begun / "half").write_text("of an export that was killed")
    end_folder(begin_folder(tmp_path / "out"), tmp_path / "out")
    assert files(tmp_path / "out") == set()
    outcome(refused)


def shard(root: Path, name: str = "a") -> Path:
    with ShardWriter(root) as writer:
        writer.write(name, [png(np.zeros((8, 8), np.uint8))], {"conversations": []})
    return root


@pytest.mark.promise(PROMISE, "a conversion into a folder with shards of another program")
def test_shards_of_others_are_neither_replaced_nor_deleted(tmp_path, outcome):
    theirs = [tmp_path / "shard-000000.tar", tmp_path / "shard-000007.tar", tmp_path / ".draft.tmp"]
    for file in theirs:
        file.write_text("theirs")
    with pytest.raises(ShardError, match="neither replaced nor deleted") as refused:
        shard(tmp_path)
    assert [file.read_text() for file in theirs] == ["theirs"] * 3
    outcome(refused)


@pytest.mark.promise(PROMISE, "a conversion into a folder with somebody's hidden files")
def test_hidden_files_of_others_stay(tmp_path):
    (tmp_path / ".draft.tmp").write_text("mine")
    (tmp_path / "shard-old.tar.txt").write_text("mine")
    shard(tmp_path)
    assert {".draft.tmp", "shard-old.tar.txt", "shard-000000.tar", "manifest.json"} <= files(tmp_path)


@pytest.mark.promise(PROMISE, "a cache with a limit, in a folder that holds tars of its owner")
def test_a_cache_makes_room_only_of_what_it_has_pulled(tmp_path):
    size = 0
    for name in ("one", "two"):
        size = sum(path.stat().st_size for path in shard(tmp_path / name, name).glob("*.tar"))
    folder = tmp_path / "cache"
    (folder / "coco").mkdir(parents=True)
    (folder / "coco" / "train.tar").write_text("mine" * 10_000)
    cache = Cache(folder, limit=size, pause=0)
    for name in ("one", "two"):
        remote = cache.open(f"file://{tmp_path / name}")
        from dslight.data.shards import Manifest

        remote.shard(Manifest.load(remote.root).shards[0])
    kept = {path.name: path.parent.name for path in folder.rglob("*.tar")}
    assert kept["train.tar"] == "coco"
    assert len(list(folder.rglob("shard-*.tar"))) == 1  # the other one made room
