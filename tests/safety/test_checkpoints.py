"""Checkpoints, and folders in the place of one, that are something else: a sentence that names the file."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch

from dslight.checkpoints.read import unpickled
from dslight.errors import UserError, WeightsError
from dslight.run.evaluate import load_checkpoint
from dslight.run.python import load

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
