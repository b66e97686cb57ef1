"""Small files beside shards, runs and results: another type in one of them is a sentence, or is passed over."""

from __future__ import annotations

import json

import pytest

from dslight.cli import main
from dslight.errors import UserError
from dslight.matrix.run import folder, verdicts
from dslight.metrics import submission
from dslight.metrics.submission import OFFICIAL_IDS
from dslight.run.folder import RunFolder

pytestmark = pytest.mark.promise("a wrong type in a file is a sentence")
DEEP = "[" * 100_000


@pytest.mark.parametrize("text", [DEEP, "7", "[[1]]", '[{"a": 1}]', "[null]", ""])
def test_official_ids(text, tmp_path, outcome):
    (tmp_path / OFFICIAL_IDS).write_text(text)
    with pytest.raises(UserError, match=OFFICIAL_IDS) as refused:
        submission.official_ids(tmp_path)
    outcome(refused)


def test_official_ids_that_are_some(tmp_path):
    assert submission.official_ids(tmp_path) == []
    (tmp_path / OFFICIAL_IDS).write_text('[1, "b"]')
    assert submission.official_ids(tmp_path) == [1, "b"]


@pytest.mark.parametrize("text", [DEEP, "[]", '{"id": 7}', '{"id": ["a"]}', '{"id": "../../elsewhere"}', '{"id": ""}'])
def test_an_id_of_a_run_that_is_none_is_made_anew(text, tmp_path):
    (tmp_path / "environment.json").write_text(text)
    made = RunFolder(tmp_path).id()
    assert len(made) == 8
    assert int(made, 16) >= 0


def test_an_id_of_a_run_stays(tmp_path):
    (tmp_path / "environment.json").write_text('{"id": "0123abcd", "versions": {}}')
    assert RunFolder(tmp_path).id() == "0123abcd"


@pytest.mark.parametrize("text", [DEEP, "[]", '{"kind": "llama", "seconds": "long"}', '{"verdict": "works"}', "{"])
def test_verdicts_on_models(text, tmp_path, outcome):
    file = folder(tmp_path) / "llama.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(UserError, match=r"llama\.json") as refused:
        list(verdicts(tmp_path, ["llama"]))
    outcome(refused)


def test_a_verdict_is_read_as_it_was_written(tmp_path):
    file = folder(tmp_path) / "llama.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"kind": "llama", "verdict": "works", "notes": ["a"], "seconds": 1.5}))
    assert [(one.kind, one.notes, one.seconds) for one in verdicts(tmp_path, ["llama"])] == [("llama", ["a"], 1.5)]


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["sweep", str(tmp_path / "none.yaml"), "--list"]) == 1
    assert "none.yaml" in capsys.readouterr().err
