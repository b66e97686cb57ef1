"""Tokens that are made before a run are those that the run makes."""

import shutil

import pytest
from sources import ROOT

from data_prep import tokenize
from dslight.data.caches.lengths import by_helpers
from dslight.recipe.build import check, connect, ready
from dslight.recipe.compose import compose

RECIPE = ROOT / "recipes" / "quickstart" / "deepstack_l.yaml"


def test_the_files_are_those_of_a_run(pages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tokenize, "RECORDS", 7)  # several pieces of the shard
    made, left_out = {}, shutil.ignore_patterns("tokens.*", "lengths.*")
    for name in ("ahead", "run"):
        folder = shutil.copytree(pages / "train", tmp_path / name, ignore=left_out)
        options = [f"data.train=[{folder}]", "data.order.group_by=[length]"]
        options.append(f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}")
        if name == "ahead":
            tokenize.main([str(RECIPE), *options, "--workers", "2"])
        else:
            recipe = {**compose(RECIPE, options), "weights": {}}
            experiment = check(recipe)
            connect(experiment, ready(recipe, None))
            experiment.data.keep_text(by_helpers(False))
        made[name] = {
            path.name: path.read_bytes() for kind in ("tokens", "lengths") for path in folder.glob(f"{kind}.*")
        }
    assert made["ahead"] == made["run"]
    assert sorted(name.partition(".")[0] for name in made["run"]) == ["lengths", "tokens"]
    (tokens,) = [name for name in made["run"] if name.startswith("tokens")]
    assert f"{tmp_path / 'ahead' / tokens}: {len(made['run'][tokens]):,} bytes" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_a_sentence(pages, tmp_path):
    options = [f"data.train=[{tmp_path / 'gone'}]", f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}"]
    with pytest.raises(SystemExit, match=r"^data\.train\[0\]\.root: '.*gone' is no folder"):
        tokenize.main([str(RECIPE), *options])
