"""Checkpoints, and folders in the place of one, that are something else: a sentence that names the file."""

from __future__ import annotations

import io
import json
import shutil
import zipfile

import pytest
import torch

from dslight.checkpoints.read import unpickled
from dslight.cli import main
from dslight.errors import UserError, WeightsError
from dslight.files.typed import FileError, read_json
from dslight.run.evaluate import load_checkpoint
from dslight.run.python import load
from dslight.texts import LONGEST

pytestmark = pytest.mark.promise("a wrong type in a file is a sentence")

PICKLES = {
    "marks without an end": b"\x80\x02" + b"(" * 50_000 + b".",
    "nothing on the stack": b"\x80\x02]e.",
    "a name that is no text": b"\x80\x02K\x01K\x02\x86Q.",
    "an item of nothing": b"\x80\x02K\x01K\x02K\x03s.",
    "no such memo": b"\x80\x02h\x07.",
    "cut": b"\x80\x02}(X",
    "nothing": b"",
}


@pytest.mark.parametrize("pickle", PICKLES.values(), ids=PICKLES)
def test_pickles_that_are_none(pickle, tmp_path, outcome):
    written = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(2)}}, written)
    file = tmp_path / "a.ckpt"
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle if name.endswith("data.pkl") else old.read(name))
    with pytest.raises(WeightsError, match=r"a\.ckpt") as refused:
        unpickled(file)
    outcome(refused)


@pytest.mark.parametrize(
    "state", [{}, {"weight": torch.zeros(3)}, {"weight": 7}, {7: torch.zeros(2)}, {"other": torch.zeros(2)}]
)
def test_weights_of_another_model(state, tmp_path, outcome):
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"--ckpt: .*a\.ckpt") as refused:
        load_checkpoint(torch.nn.Linear(2, 2), tmp_path / "a.ckpt")
    outcome(refused)


def test_a_folder_that_is_neither_run_nor_export_nor_checkpoint(tmp_path, outcome):
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"holds no run, export or checkpoint") as refused:
        load(tmp_path)
    outcome(refused)


@pytest.mark.parametrize("text", ["a: 1", "model: []", "model: {language_model: {init_args: {}}}\nweights: x", "- 1"])
def test_recipes_of_exports(text, tmp_path, outcome):
    (tmp_path / "dslight.yaml").write_text(text)
    with pytest.raises(UserError, match=r"dslight\.yaml") as refused:
        load(tmp_path)
    outcome(refused)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", b"[" * 100_000), ("tokenizer.json", b"{nope"), ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b"[" * 100_000), ("chat_template.jinja", b"\xff\xfe\x00 binary"),
    ],
)  # fmt: skip
def test_tokenizers(name, text, pages, tmp_path, tiny_lm, outcome):
    shutil.copytree(pages / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / name).write_bytes(text)
    model = tiny_lm()
    model.tokenizer_path = str(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer: ") as refused:
        model.load_tokenizer()
    if text.startswith((b"{", b"\xff")):
        assert f"/tokenizer/{name} " in str(refused.value)
    outcome(refused)


def test_a_file_that_is_larger_than_json_may_be(tmp_path, monkeypatch, outcome):
    monkeypatch.setenv("DSLIGHT_MAX_FILE_BYTES", "1000")
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"a": "b" * 1000}))
    with pytest.raises(
        FileError, match=r"result\.json: has 1,009 bytes; at most 1,000 \(DSLIGHT_MAX_FILE_BYTES"
    ) as refused:
        read_json(file, dict)
    outcome(refused)


PARTS = {
    "state_dict": {"a": torch.zeros(1)},
    "optimizer_states": [7],
    "loops": "x",
    "callbacks": [1],
    "lr_schedulers": [{"a": 1}],
}


@pytest.fixture(scope="module")
def interrupted(recipe, tmp_path_factory):
    """A run that is to be continued."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["fit", str(recipe), f"run_dir={folder}"]) == 0
    (folder / "result.json").unlink()
    return folder


def test_a_checkpoint_is_not_blamed_for_what_the_device_says(interrupted, recipe, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    run = shutil.copytree(interrupted, tmp_path / "run")
    monkeypatch.setattr("dslight.vlm.VLM.configure_optimizers", full)
    with pytest.raises(torch.OutOfMemoryError):
        main(["fit", str(recipe), f"run_dir={run}"])
    assert "cannot be continued" not in capsys.readouterr().err


@pytest.mark.parametrize("part", PARTS)
def test_a_run_that_cannot_be_continued(part, interrupted, recipe, tmp_path, capsys, outcome):
    run = shutil.copytree(interrupted, tmp_path / "run")
    for file in (run / "checkpoints").glob("*.ckpt"):
        torch.save(torch.load(file, weights_only=True) | {part: PARTS[part]}, file)
    assert main(["fit", str(recipe), f"run_dir={run}"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "step-00000003.ckpt: the run cannot be continued from it" in said
    assert len(said) <= LONGEST + len("dslight: ")
    outcome(said)
