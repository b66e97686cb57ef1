"""Numbers on the command line, and values of questions, that mean nothing: refused by name, not counted with."""

from __future__ import annotations

import json

import pytest
import torch

from data_prep.eval.__main__ import main as evaluation
from data_prep.img2dataset import main as index
from data_prep.mix import Mix
from dslight.cli import main
from dslight.data.sample import BadSample, parse_sample


@pytest.mark.promise("a number that means nothing is refused by name")
@pytest.mark.parametrize("value", ["0", "-3"])
def test_world_sizes(value, recipe, capsys):
    assert main(["plan", str(recipe), "--world-size", value]) == 1
    assert f"--world-size: {value}" in capsys.readouterr().err


@pytest.mark.promise("a number that means nothing is refused by name")
@pytest.mark.parametrize("value", ["-3", "1" + "0" * 30])
def test_text_tokens(value, recipe, capsys):
    assert main(["plan", str(recipe), "--text-tokens", value]) == 1
    assert "--text-tokens: " in capsys.readouterr().err


@pytest.mark.promise("a number that means nothing is refused by name")
@pytest.mark.parametrize(("workers", "share"), [(1, float("nan")), (1, float("inf")), (1, -0.5), (0, 0.1)])
def test_shares_and_processes_of_tars(workers, share, tmp_path):
    with pytest.raises(SystemExit, match="--max-bad" if workers else "--workers"):
        index([str(tmp_path), f"--workers={workers}", f"--max-bad={share}"])


@pytest.mark.promise("a wrong type in a file is a sentence", "questions that are no texts")
@pytest.mark.parametrize(
    "change", [{"question": [1]}, {"question": None}, {"answers": [{"a": 1}]}, {"answers": [None]}]
)
def test_questions_that_are_no_texts(change):
    asked = {"question_id": "q", "question": "What?", "answers": ["a"]} | change
    with pytest.raises(BadSample, match=next(iter(change))):
        parse_sample("k", {"json": json.dumps({"id": "a", "questions": [asked]}).encode()})


@pytest.mark.promise("a wrong type in a file is a sentence", "a parquet file with damaged pages")
def test_parquet_with_damaged_pages(tmp_path, outcome):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "validation-00000-of-00001.parquet"
    parquet.write_table(
        arrow.table({"question_id": [1], "question": ["q" * 100], "answers": [["a"]], "image": [b"\x89PNG"]}), file
    )
    content = bytearray(file.read_bytes())
    content[4:40] = b"\xff" * 36
    file.write_bytes(content)
    with pytest.raises(SystemExit, match="validation") as refused:
        evaluation(["textvqa", "--annotations", str(file), "--out", str(tmp_path / "out"), "--workers", "1"])
    outcome(refused)


@pytest.fixture
def trained(recipe, tmp_path):
    """A run's folder with what ``export`` and ``predict`` look at first."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {}}, run / "checkpoints" / "step-00000003.ckpt")
    (run / "recipe.yaml").write_text(recipe.read_text())
    return run


@pytest.mark.promise("a number that means nothing is refused by name")
@pytest.mark.parametrize("size", ["0B", "many", "0GB", "5", "xGB", "infGB", "nanGB"])
def test_sizes_of_weights_files(size, trained, tmp_path, capsys):
    assert main(["export", str(trained), str(tmp_path / "out"), "--shard-size", size]) == 1
    assert f"--shard-size: {size!r}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.promise("nothing is lost in the dark", "weights written as whole numbers")
@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", "nn", "é"])
def test_dtypes_that_hold_no_weights(dtype, trained, tmp_path, capsys):
    assert main(["export", str(trained), str(tmp_path / "out"), "--dtype", dtype]) == 1
    assert f"--dtype: {dtype!r}" in capsys.readouterr().err


@pytest.mark.promise("a number that means nothing is refused by name")
@pytest.mark.parametrize("verb", ["predict", "chat"])
def test_lengths_of_answers(verb, trained, capsys):
    given = [str(trained)] if verb == "chat" else [str(trained / "recipe.yaml"), "--question", "A1"]
    assert main([verb, *given, "--max-new-tokens", "-1"]) == 1
    assert "--max-new-tokens: -1; 1 or more" in capsys.readouterr().err


@pytest.mark.promise("a wrong type in a file is a sentence", "a source of a mix without a name")
def test_a_source_without_a_name(tmp_path, outcome):
    (tmp_path / "mix.yaml").write_text("sources:\n  '': {json: a.json}\n")
    with pytest.raises(SystemExit, match=r"mix\.yaml: sources: ''") as refused:
        Mix.load(tmp_path / "mix.yaml")
    outcome(refused)
