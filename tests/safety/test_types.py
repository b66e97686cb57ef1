"""Files that hold something else than they should: a sentence that names file and key, or it still works."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from broken import broken

from data_prep.entries import read_entries
from data_prep.journal import Journal
from data_prep.llava import llava_entry
from data_prep.messages import MessagesEntry
from data_prep.mix import Mix, job_of
from data_prep.processes import program
from dslight.checkpoints.read import files_of
from dslight.data.sample import BadSample, parse_sample
from dslight.data.shards import MANIFEST, Manifest, ShardReader, ShardWriter
from dslight.data.shards.format import _checksum
from dslight.errors import UserError
from dslight.recipe.ablation import expand
from dslight.recipe.compose import compose
from dslight.recipe.schema import parse
from dslight.texts import LONGEST

pytestmark = pytest.mark.promise("a wrong type in a file is a sentence")


def check(path: str, name: str, use: Callable[[], Any], *named: str) -> None:
    """``use`` works, or says in a sentence what is wrong in which file or at which key."""
    try:
        use()
    except (UserError, SystemExit) as error:
        said = str(error)
        assert said, (path, name)
        assert max(map(len, said.splitlines())) <= LONGEST, (path, name, said)
        assert any(word in said for word in (*named, *path.split(".")) if word), (path, name, said)
    except BaseException as error:
        raise AssertionError(f"{path} = {name}: {type(error).__name__}: {str(error)[:300]}") from None


def test_recipes(recipe, tmp_path):
    document = compose(recipe)
    for path, name, text in broken(document, most=60):
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        check(path, name, lambda file=file: parse(compose(file)), "recipe.yaml")


def test_bases_and_command_lines(recipe, tmp_path):
    file = tmp_path / "own.yaml"
    for path, name, text in broken({"bases": [str(recipe)], "name": "own"}):
        file.write_text(text)
        check(path, name, lambda: compose(file), "own.yaml", "bases")
        check(path, name, lambda text=text: compose(recipe, [f"data={text}"]), "data")


def test_ablations(recipe, tmp_path):
    document = {
        "bases": [str(recipe)],
        "name": "effect",
        "run_dir": "runs/effect",
        "variants": {"low": {"cost": 2, "seed": 3}, "high": {"bases": [str(recipe)], "grid": {"seed": [4]}}},
        "grid": {"stage.warmup_steps": [1, 2]},
    }
    file = tmp_path / "effect.yaml"
    for path, name, text in broken(document):
        file.write_text(text)
        check(path, name, lambda: expand(file), "effect.yaml", "variants", "grid")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("grid: {'': [1, 2]}", "grid: ''"),
        ("grid: {a..b: [1, 2]}", "grid: 'a..b'"),
        ("grid: {a: {'': [1]}}", "grid.a: ''"),
        ('run_dir: "a\\0b"\ngrid: {x: [1, 2]}', "run_dir: holds a null character"),
        ("variants: {a: {x: 1, cost: .nan}}", "variants.a.cost"),
        ("variants: {a: {x: 1, cost: true}}", "variants.a.cost"),
        ("grid: {x: [1]}\nrun_dir: 7", "run_dir"),
    ],
)
def test_names_of_ablations_that_are_none(text, key, tmp_path):
    (tmp_path / "a.yaml").write_text(f"name: a\n{text}\n")
    with pytest.raises(UserError) as refused:
        expand(tmp_path / "a.yaml")
    assert key in str(refused.value)


@pytest.fixture
def shards(tmp_path) -> Path:
    with ShardWriter(tmp_path / "shards", shard_records=2, meta={"program": "test"}) as writer:
        for i in range(3):
            turns = [{"from": "human", "value": "A1"}, {"from": "gpt", "value": str(i)}]
            writer.write(f"k-{i}", [], {"conversations": turns})
    return tmp_path / "shards"


def test_manifests(shards):
    """With a checksum that fits, as another program would write it."""
    file = shards / MANIFEST
    document = json.loads(file.read_text())
    for path, name, text in broken(document):
        try:
            body = json.loads(text)
            body.pop("checksum", None)
            text = json.dumps({**body, "checksum": _checksum(body)})
        except (RecursionError, AttributeError, TypeError):
            pass
        file.write_text(text)
        check(path, name, lambda: ShardReader(shards).read(2), MANIFEST, "shard-")
        check(path, name, lambda: Manifest.load(shards), MANIFEST)


def test_journals(shards):
    head = {"program": "test", "name": "k"}
    (shards / MANIFEST).unlink()
    Journal(shards, head)
    line = {"shard": 0, "info": {"name": "shard-000000.tar"}, "counts": {"images": 1}, "bad": [{"row": 1}]}
    file = shards / ".journal.jsonl"
    for document, place in ((head, 0), (line, 1)):
        for path, name, text in broken(document):
            lines = [json.dumps(head), json.dumps(line)]
            lines[place] = text
            file.write_text("\n".join(lines) + "\n")
            check(path, name, lambda: Journal(shards, head).bad, str(shards))


RECORD = {
    "id": "a",
    "images": [],
    "conversations": [{"from": "human", "value": "A1"}, {"from": "gpt", "value": "3"}],
    "questions": [
        {"question_id": "q", "question": "B3", "answers": ["1"], "type": "t", "suffix": "s", "hidden": False}
    ],
    "caption": "a cat",
    "labels_grid": [[0, 1], [2, 3]],
}


def test_records_of_shards():
    for path, name, text in broken(RECORD):
        check(path, name, lambda text=text: parse_sample("k-0", {"json": text.encode()}), "k-0")


@pytest.mark.parametrize("convert", [llava_entry, MessagesEntry()], ids=["llava", "messages"])
def test_entries_of_others(convert, tmp_path):
    """A bad entry goes to the quarantine; a file that is no list of entries is named."""
    from data_prep.check import check_entry
    from data_prep.images import Images

    parts = [{"type": "text", "text": "what"}, {"type": "image", "image": "a.png"}, {"image_url": {"url": "b.png"}}]
    documents = [
        {"id": "a", "image": "a.png", "conversations": RECORD["conversations"]},
        {"id": "a", "images": ["a.png"], "messages": [{"role": "user", "content": parts}]},
        {"id": "a", "questions": RECORD["questions"]},
    ]
    images = Images([])
    for document in documents:
        for path, name, text in broken(document):
            try:
                raw = json.loads(text)
            except RecursionError:
                continue
            if isinstance(raw, dict):
                check(
                    path,
                    name,
                    lambda raw=raw: check_entry(raw, convert, images),
                    "entry",
                    "image",
                    "role",
                    "answer",
                    "part",
                )


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_files_of_entries(ending, tmp_path):
    file = tmp_path / f"data.{ending}"
    entry = {"id": "a", "conversations": RECORD["conversations"]}
    for path, name, text in broken(entry):
        file.write_text(f"[{text}, {json.dumps(entry)}]" if ending == "json" else f"{text}\n{json.dumps(entry)}\n")
        check(path, name, lambda: program(lambda: print(list(read_entries(file)))), "data.json")


def test_mixes(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    where = {"image": "", "contains": ["a"], "lacks": "b"}
    source = {
        "json": "a.json",
        "images": [],
        "where": where,
        "count": 3,
        "weight": 0.5,
        "prompt": ["a"],
        "format": "llava",
    }
    file = tmp_path / "mix.yaml"

    def use() -> None:
        mix = Mix.load(file)
        for name, one in mix.sources.items():
            job_of(name, one, mix, tmp_path, tmp_path / "out")

    for path, name, text in broken({"sources": {"a": source}, "seed": 0, "rounding": 1}):
        file.write_text(text)
        check(path, name, lambda: program(use), "mix.yaml", "sources.")


def test_indexes_of_weights(tmp_path):
    file = tmp_path / "model.safetensors.index.json"
    (tmp_path / "model-00001.safetensors").write_bytes(b"")
    for path, name, text in broken(
        {"metadata": {"total_size": 3}, "weight_map": {"a.weight": "model-00001.safetensors"}}
    ):
        file.write_text(text)
        check(path, name, lambda: files_of(tmp_path), "model.safetensors.index.json")


def test_a_bad_sample_is_told_with_its_class():
    with pytest.raises(BadSample) as caught:
        parse_sample("k", {"json": b"[" * 100_000})
    assert caught.value.reason == "record"
