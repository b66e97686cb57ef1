"""What is read or built has a limit that is asked before, and named when it is passed."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_prep.digits import png
from data_prep.entries import read_entries
from data_prep.eval.files import load
from data_prep.eval.tables import table
from data_prep.images import Images
from data_prep.mix import Mix
from dslight.checkpoints.read import shapes
from dslight.components.component import WeightsError
from dslight.data.conversation import template
from dslight.data.sample import BadSample, Turn, decode_image, parse_sample
from dslight.data.shards import Cache, Index, Manifest, ShardError, ShardReader, ShardWriter, index_tars
from dslight.limits import LIMITS, check_counts, limit, setting
from dslight.recipe.ablation import expand
from dslight.recipe.build import check
from dslight.recipe.compose import compose
from dslight.recipe.errors import RecipeError

ROOT = Path(__file__).parents[2]
READ = "what is read has a limit before it is read"
BUILT = "numbers of a configuration have a limit before anything is built"
WRITTEN = "YAML does not multiply"
MIB = 1 << 20


@contextmanager
def frugal(most: int = 64 * MIB, seconds: float = 60) -> Iterator[None]:
    """Little of Python's memory, and little time of this process, whatever else the machine does."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < most, f"{peak:,} bytes"
    assert time.process_time() - began < seconds


@contextmanager
def refusal(error: type[BaseException], match: str, most: int = 64 * MIB) -> Iterator[Any]:
    """A frugal one, with these words."""
    with pytest.raises(error, match=match) as refused, frugal(most):
        yield refused


@pytest.fixture
def small(monkeypatch) -> Callable[..., None]:
    """``small(member_bytes=100)``: other limits for a test."""

    def lower(**limits: int) -> None:
        for name, value in limits.items():
            monkeypatch.setenv(setting(name), str(value))

    return lower


# --- the settings


def test_a_limit_is_a_setting_of_whoever_runs_the_program(small):
    assert limit("member_bytes") == LIMITS["member_bytes"].default
    small(member_bytes=7)
    assert limit("member_bytes") == 7


@pytest.mark.parametrize("value", ["many", "0", "-1", "1e9"])
def test_a_limit_that_is_no_number_is_refused_by_name(value, monkeypatch):
    monkeypatch.setenv("DSLIGHT_MAX_RUNS", value)
    with pytest.raises(ValueError, match=f"DSLIGHT_MAX_RUNS: '{value}'; a whole number above 0"):
        limit("runs")


def test_every_limit_is_documented():
    text = (ROOT / "docs" / "security.md").read_text()
    assert [name for name in LIMITS if f"`{setting(name)}`" not in text] == []


# --- archives


def packed(path: Path, size: int, claimed: int | None = None) -> Path:
    """A zip whose only member unpacks to ``size`` zeros, and may claim to be smaller."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(size))
    if claimed is not None:
        data = bytearray(path.read_bytes())
        for at in (22, data.rindex(b"PK\1\2") + 24):
            data[at : at + 4] = struct.pack("<I", claimed)
        path.write_bytes(bytes(data))
    return path


@pytest.mark.promise(READ, "a zip member that unpacks to")
@pytest.mark.parametrize("claimed", [None, 10], ids=["200 MiB", "200 MiB, and says 10 bytes"])
def test_a_zip_member_is_unpacked_up_to_the_limit(claimed, tmp_path, small, outcome):
    images = Images.open([str(packed(tmp_path / "a.zip", 200 * MIB, claimed))])
    small(member_bytes=MIB)
    with refusal(BadSample, r"1,048,577 bytes or more, unpacked; at most 1,048,576") as refused:
        images.read("a.png")
    assert refused.value.reason == "image-too-large"
    outcome(refused)


@pytest.mark.promise(READ, "a member of a tar, a file or a shard above the limit")
def test_members_above_the_limit_are_not_read(tmp_path, small, outcome):
    data = os.urandom(2000)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(data)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "images" / "a.png", "a.png")
    turns = [{"from": "human", "value": "A1"}, {"from": "gpt", "value": "7 " * 1000}]
    with ShardWriter(tmp_path / "shards") as writer:
        writer.write("a", [], {"conversations": turns})
    places = [Images.open([str(tmp_path / name)]) for name in ("a.tar", "images")]
    small(member_bytes=1000)
    for images in places:
        with pytest.raises(BadSample, match="has 2,000 bytes; at most 1,000"):
            images.read("a.png")
    with pytest.raises(ShardError, match=r"a\.json has [\d,]+ bytes; at most 1,000") as refused:
        ShardReader(tmp_path / "shards")
    with pytest.raises(ShardError, match=r"a\.png: has 2,000 bytes; at most 1,000"):
        index_tars(tmp_path)
    outcome(refused)


@pytest.mark.promise(READ, "a tar header of 8 MiB")
def test_headers_inside_a_tar_are_bounded(tmp_path, outcome):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"comment": "x" * (8 * MIB)}
        tar.addfile(info)
    with refusal(SystemExit, r"a header of 8,\d+,\d+ bytes; at most 1,048,576", 8 * MIB) as refused:
        Images.open([str(tmp_path / "a.tar")])
    with pytest.raises(ShardError, match="a header of"):
        index_tars(tmp_path)
    outcome(refused)


def index_of(**arrays: Any) -> bytes:
    """An index with other arrays."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, value in {**arrays_of(Index.build([])), **arrays}.items():
            data = value if isinstance(value, bytes) else npy(value)
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


def arrays_of(index: Index) -> dict[str, Any]:
    return {name: getattr(index, name) for name in index.arrays}


def npy(value: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, value, allow_pickle=False)
    return out.getvalue()


def claims(shape: str) -> bytes:
    """An array that says of itself that it is huge."""
    return npy(np.zeros(1, np.int64)).replace(
        b"'shape': (1,), }" + b" " * 20, f"'shape': {shape}, }}".ljust(36).encode()
    )


def deflated() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays_of(Index.build([])).items():
            archive.writestr(f"{name}.npy", npy(value))
    return out.getvalue()


INDEXES = {
    "packed members": deflated,
    "an array that claims 8 TB": lambda: index_of(offsets=claims("(1000000000000,)")),
    "more offsets than members": lambda: index_of(offsets=np.zeros(3, np.int64)),
    "a number below 0": lambda: index_of(first=np.array([-1])),
    "texts for numbers": lambda: index_of(first=np.array([b"x"])),
    "a million questions in no bytes": lambda: index_of(
        keys=np.array([b"a"]), first=np.array([0, 0]), questions=np.array([10**6], np.int32)
    ),
}


@pytest.mark.promise(READ, "the index of a shard with")
@pytest.mark.parametrize("what", INDEXES)
def test_an_index_is_no_larger_than_its_bytes(what, outcome):
    data = INDEXES[what]()
    with refusal(ShardError, "is no index of a shard") as refused:
        Index.from_bytes(data)
    outcome(refused)


@pytest.mark.promise(READ, "a manifest, or an index, above the limit")
def test_manifests_and_indexes_are_bounded_here_and_elsewhere(tmp_path, small, outcome):
    with ShardWriter(tmp_path / "a") as writer:
        writer.write("a", [png(np.zeros((8, 8), np.uint8))], {"conversations": []})
    url = f"file://{tmp_path / 'a'}"
    small(manifest_bytes=50)
    with pytest.raises(ShardError, match=r"manifest\.json: has \d+ bytes; at most 50"):
        Manifest.load(tmp_path / "a")
    with pytest.raises(ShardError, match=r"manifest\.json: has more than 50 bytes") as refused:
        Cache(tmp_path / "cache", pause=0).open(url)
    small(manifest_bytes=100_000, index_bytes=50)
    with pytest.raises(ShardError, match=r"idx\.npz: has [\d,]+ bytes; at most 50"):
        ShardReader(tmp_path / "a")
    with pytest.raises(ShardError, match=r"idx\.npz: has more than 50 bytes"):
        Cache(tmp_path / "cache", pause=0).open(url)
    outcome(refused)


@pytest.mark.promise(READ, "a shard that is longer elsewhere than its manifest says")
def test_no_more_is_fetched_than_the_manifest_says(tmp_path, outcome):
    with ShardWriter(tmp_path / "a") as writer:
        writer.write("a", [], {"conversations": []})
    remote = Cache(tmp_path / "cache", pause=0).open(f"file://{tmp_path / 'a'}")
    with (tmp_path / "a" / "shard-000000.tar").open("ab") as file:
        file.write(bytes(100_000))
    with pytest.raises(ShardError, match=r"has more than [\d,]+ bytes \(the manifest says no more\)") as refused:
        remote.shard(Manifest.load(remote.root).shards[0])
    assert not list(remote.root.rglob("*.tar"))
    outcome(refused)


# --- text and tables


@pytest.mark.promise(READ, "one line, one entry, or one file of JSON above the limit")
def test_json_is_bounded_by_line_entry_and_file(tmp_path, small, outcome):
    long = {"id": "x" * 5000}
    (tmp_path / "a.jsonl").write_text(json.dumps(long))
    (tmp_path / "a.json").write_text(json.dumps([long]))
    (tmp_path / "endless.json").write_text("[{" + '"x' * (3 * MIB))
    small(json_bytes=1000, file_bytes=1000)
    for name, match in (
        ("a.jsonl", r"line 1 is 1,001 characters long or longer; at most 1,000"),
        ("endless.json", r"entry 0: is not whole, or no JSON, within [\d,]+ characters .*; at most 1,000"),
    ):
        with refusal(SystemExit, match, 16 * MIB) as refused:
            list(read_entries(tmp_path / name))
    outcome(refused)
    with pytest.raises(SystemExit, match=r"a\.json: has [\d,]+ bytes; at most 1,000"):
        load(tmp_path / "a.json")


@pytest.mark.promise(READ, "a record whose json is above the limit, or nested too deeply")
def test_the_json_of_a_record_is_bounded(small, outcome):
    with pytest.raises(BadSample, match="its json does not parse"):
        parse_sample("a", {"json": b"[" * 1_000_000})
    small(json_bytes=10)
    with pytest.raises(BadSample, match="a: its json has 19 bytes; at most 10") as refused:
        parse_sample("a", {"json": b'{"conversations":1}'})
    outcome(refused)


@pytest.mark.promise(READ, "JSON of a million brackets")
def test_json_that_is_nested_too_deeply_is_refused_in_a_line(tmp_path, outcome):
    deep = "[" * 1_000_000
    (tmp_path / "a.jsonl").write_text(deep)
    (tmp_path / "a.json").write_text(f'[{{"a": {deep}')
    (tmp_path / "b.json").write_text(deep)
    (tmp_path / "manifest.json").write_text(deep)
    for read in (lambda: list(read_entries(tmp_path / "a.jsonl")), lambda: list(read_entries(tmp_path / "a.json"))):
        with pytest.raises(SystemExit) as refused:
            read()
    with pytest.raises(SystemExit):
        load(tmp_path / "b.json")
    with pytest.raises(ShardError, match="not readable as JSON"):
        Manifest.load(tmp_path)
    outcome(refused)


@pytest.mark.promise(READ, "a table of text that is larger than the limit")
def test_a_table_of_text_is_read_up_to_the_limit(tmp_path, small, outcome):
    (tmp_path / "a.tsv").write_text("index\tquestion\n" + "1\tx\n" * 1000)
    small(file_bytes=100)
    with refusal(SystemExit, r"a\.tsv: has [\d,]+ bytes; at most 100") as refused:
        list(table(tmp_path / "a.tsv"))
    outcome(refused)


@pytest.mark.promise(READ, "a parquet file that unpacks to more than the limit")
def test_a_parquet_file_is_unpacked_up_to_the_limit(tmp_path, small, outcome):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"x": ["a" * 100_000] * 1000}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < MIB
    small(file_bytes=MIB // 2)
    with refusal(SystemExit, r"\d+ rows have [\d,]+ bytes; at most 524,288") as refused:
        list(table(tmp_path / "a.parquet"))
    outcome(refused)


# --- weights and pictures


@pytest.mark.promise(READ, "a safetensors header that claims 2**40 bytes, or a tensor larger than the file")
def test_headers_of_safetensors_claim_no_more_than_there_is(tmp_path, outcome):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    save_file({"w": torch.zeros(2)}, tmp_path / "b.safetensors")
    data = (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data.replace(b"[2]", b"[9]"))
    for name in "ab":
        with refusal(WeightsError, "is no safetensors file") as refused:
            shapes(tmp_path / f"{name}.safetensors")
    outcome(refused)


@pytest.mark.promise(READ, "a PyTorch file whose members are packed: 1 GiB in 1 MiB")
def test_weights_are_not_unpacked(tmp_path, outcome):
    torch.save({"weight": torch.zeros(16 * MIB)}, tmp_path / "plain.bin")
    with (
        zipfile.ZipFile(tmp_path / "plain.bin") as plain,
        zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    assert (tmp_path / "pytorch_model.bin").stat().st_size < MIB
    with pytest.raises(WeightsError, match="holds packed members") as refused:
        shapes(tmp_path / "pytorch_model.bin")
    outcome(refused)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.promise(READ, "a PNG with 100 MB of text in 100 KB, or of 10**9 pixels")
def test_pictures_unpack_no_text_and_no_more_pixels_than_the_cap(outcome):
    picture = png(np.zeros((8, 8), np.uint8))
    head, rest = picture[:33], picture[33:]
    text = head + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000), 9)) + rest
    large = picture[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 32768, 32768, 8, 0, 0, 0, 0)) + rest
    for data in (text, large):
        with pytest.raises(BadSample) as refused, frugal():
            decode_image(data)
    outcome(refused)


# --- recipes


def recipe(**more: Any) -> dict[str, Any]:
    decoder = {
        "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 1, "num_key_value_heads": 1,
    }  # fmt: skip
    vit = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 1}
    values: dict[str, Any] = {
        "model": {
            "vision_encoder": {
                "class_path": "dslight.components.TimmEncoder",
                "init_args": {"name": "vit_tiny_patch16_224", "model_args": vit},
            },
            "projector": {"class_path": "dslight.components.MLPProjector", "init_args": {}},
            "stacking": {"class_path": "dslight.components.DeepStackL", "init_args": {"num_stacks": 1}},
            "language_model": {"class_path": "dslight.components.HFCausalLM", "init_args": {"config": decoder}},
        },
        "data": {
            "train": ["nowhere"],
            "views": {"class_path": "dslight.data.images.GridViews", "init_args": {"rows": 1, "cols": 1}},
            "global_batch_size": 1,
        },
    }
    for key, value in more.items():
        node, path = values, key.split("__")
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return values


LM, VIT = "model__language_model__init_args__config", "model__vision_encoder__init_args__model_args"
VIEWS = "data__views"
TOO_MANY = {
    "layers of the decoder": {f"{LM}__num_hidden_layers": 10**6},
    "layers of the decoder, far too many": {f"{LM}__num_hidden_layers": 10**12},
    "layers of the encoder": {f"{VIT}__depth": 10**9},
    "stacks": {"model__stacking__init_args__num_stacks": 10**9},
    "sites": {"model__stacking__init_args__sites": [10**9]},
    "rows of crops": {f"{VIEWS}__init_args__rows": 10**6},
    "crops": {f"{VIEWS}": {"class_path": "dslight.data.images.AspectGridViews", "init_args": {"max_crops": 10**6}}},
    "grids": {f"{VIEWS}": {"class_path": "dslight.data.images.AnyResViews", "init_args": {"grids": [[10**9, 1]]}}},
    "crops in all": {f"{VIEWS}__init_args": {"rows": 1000, "cols": 1000}},
    "fine crops": {f"{VIEWS}": {"class_path": "dslight.data.images.HDViews", "init_args": {"up": 10**9}}},
    "pixels of a view": {VIEWS: {"class_path": "dslight.data.native.NativeViews", "init_args": {"max_pixels": 10**15}}},
    "pieces of a view": {
        VIEWS: {"class_path": "dslight.data.native.NaFlexViews", "init_args": {"max_pieces": 10**8, "up": 4}}
    },
    "data processes": {"data__num_workers": 10**6},
    "parameters": {f"{LM}__hidden_size": 10**8, f"{LM}__intermediate_size": 10**8, f"{LM}__vocab_size": 10**5},
}


@pytest.mark.promise(BUILT, "a recipe with too many")
@pytest.mark.parametrize("what", TOO_MANY)
def test_a_number_that_asks_for_too_much_is_refused_by_key_value_and_limit(what, outcome):
    with refusal(RecipeError, r"; at most [\d,]+ \(DSLIGHT_MAX_", 256 * MIB) as refused:
        check(recipe(**TOO_MANY[what]))
    key = next(iter(TOO_MANY[what])).split("__")[0]
    assert str(refused.value).startswith(key)
    outcome(refused)


def test_a_recipe_with_honest_numbers_passes():
    assert check(recipe()).model is not None
    for key, value in {"layer_norm_eps": 10, "block_size": 10**6, "warmup_steps": 10**7, "depth": 48}.items():
        check_counts({key: value}, "model")


@pytest.mark.promise(BUILT, "the config.json of a checkpoint with a million layers")
def test_numbers_of_a_checkpoint_are_bounded_too(tmp_path, outcome):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 10**6}))
    values = recipe(model__language_model__init_args={"pretrained": str(tmp_path)})
    with refusal(RecipeError, r"config\.json\.num_hidden_layers: 1,000,000; at most 2,048") as refused:
        check(values)
    outcome(refused)


ENDLESS = """
from torch import nn
from dslight.components import MLPProjector

class Endless(MLPProjector):
    def __init__(self, in_widths: list[int], out_width: int) -> None:
        super().__init__(in_widths, out_width)
        self.inner = nn.ModuleList()
        while True:
            self.inner.append(nn.Identity())
"""


@pytest.mark.promise(BUILT, "a part that never stops to make layers")
def test_a_part_that_never_stops_to_make_layers_is_given_up(tmp_path, small, monkeypatch, outcome):
    (tmp_path / "endless_part.py").write_text(ENDLESS)
    monkeypatch.syspath_prepend(str(tmp_path))
    small(modules=5000)
    with refusal(RecipeError, r"^model\.projector.*5,001 modules and more; at most 5,000") as refused:
        check(recipe(model__projector={"class_path": "endless_part.Endless"}))
    outcome(refused)


@pytest.mark.promise(BUILT, "an ablation of 10**7 runs")
def test_the_runs_of_an_ablation_are_counted_before_they_are_made(tmp_path, outcome):
    lines = "".join(f"  seed{i}: [{', '.join(map(str, range(10)))}]\n" for i in range(7))
    (tmp_path / "a.yaml").write_text(f"name: a\nvariants: {{one: {{}}}}\ngrid:\n{lines}")
    with refusal(RecipeError, r"10 x 10 x 10 x 10 x 10 x 10 x 10 runs; at most 10,000") as refused:
        expand(tmp_path / "a.yaml")
    outcome(refused)


@pytest.mark.promise(BUILT, "a source that an epoch shows 10**9 times")
def test_an_epoch_has_a_limit():
    from dslight.data.plan import PlanSource, TrainPlan

    with pytest.raises(ValueError, match=r"data\.train\[0\]\.weight: 1000000000\.0, [\d,]+ records an epoch; at most"):
        TrainPlan((PlanSource("", 100, 1e9),), 0, 1)


def chain(line: str, count: int = 60) -> str:
    return "".join(line.format(i=i, next=i + 1) + "\n" for i in range(count))


MULTIPLY = {
    "aliases": "a0: &a0 [1, 1]\n" + chain("a{next}: &a{next} [*a{i}, *a{i}]"),
    "interpolated texts": "x0: abc\n" + chain("x{next}: ${{x{i}}}${{x{i}}}"),
    "interpolated lists": "x0: [1]\n" + chain("x{next}: ['${{x{i}}}', '${{x{i}}}']"),
    "relative interpolations": "m:\n  x0: abc\n" + chain("  x{next}: ${{.x{i}}}${{.x{i}}}"),
    "names made of names": "k: {x: {n: x}}\nx0: abc\n" + chain("x{next}: ${{x{i}}}${{x{i}}}${{k.${{k.x.n}}.n}}"),
    "a resolver": "x0: abc\n" + chain("x{next}: ${{oc.select:x{i}}}${{x{i}}}"),
    "a chain of 5,000 names": "x0: abc\n" + chain("x{next}: ${{x{i}}}", 5000),
    "5,000 brackets": "a: " + "[" * 5000 + "]" * 5000,
    "a number of 100,000 digits": "a: " + "9" * 100_000,
    "2 MiB of text": "a: " + "b" * (2 * MIB),
}


@pytest.mark.promise(WRITTEN, "a recipe with")
@pytest.mark.parametrize("what", MULTIPLY)
def test_a_recipe_does_not_multiply(what, tmp_path, outcome):
    (tmp_path / "recipe.yaml").write_text(MULTIPLY[what])
    with pytest.raises(RecipeError) as refused, frugal(256 * MIB):
        compose(tmp_path / "recipe.yaml")
    assert "\n" not in str(refused.value)
    outcome(refused)


@pytest.mark.promise(WRITTEN, "aliases of a mix, or of a value on the command line")
def test_mixes_and_overrides_do_not_multiply(tmp_path, outcome):
    text = MULTIPLY["aliases"]
    (tmp_path / "mix.yaml").write_text(text)
    with refusal(SystemExit, "once its aliases") as refused:
        Mix.load(tmp_path / "mix.yaml")
    (tmp_path / "recipe.yaml").write_text("a: 1")
    doubled = "[&a0 [1, 1], " + ", ".join(f"&a{i + 1} [*a{i}, *a{i}]" for i in range(60)) + "]"
    with refusal(RecipeError, r"a: .*once its aliases"):
        compose(tmp_path / "recipe.yaml", [f"a={doubled}"])
    outcome(refused)


def test_aliases_and_interpolations_that_do_not_multiply_are_read(tmp_path):
    text = "a: &a {b: 1}\nc: *a\nd: ${a.b}\ne: '${.d} and ${c.b}'\n" + "".join(f"f{i}: ${{a}}\n" for i in range(50))
    (tmp_path / "recipe.yaml").write_text(text)
    found = compose(tmp_path / "recipe.yaml")
    assert (found["c"], found["d"], found["e"], found["f7"]) == ({"b": 1}, 1, "1 and 1", {"b": 1})


# --- chat templates


@pytest.fixture(scope="module")
def tokenizer(pages) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pages / "tokenizer", trust_remote_code=False)


SLOW = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATES = {
    "loops within loops": SLOW,
    "10 GB of text": "{{ 'a' * 10000000000 }}",
    "a text that is doubled": "{% set n = namespace(x='a') %}" + "{% set n.x = n.x ~ n.x %}" * 99,
    "20 MB for a line": "{{ 'a' * 20000000 }}",
    "a loop for one question": "{% if messages[0]['content'] == 'A1' %}" + SLOW + "{% endif %}",
}


@pytest.mark.promise("a chat template ends", "one with")
@pytest.mark.parametrize("what", TEMPLATES)
def test_a_chat_template_ends(what, tokenizer, small, outcome):
    from copy import copy

    theirs = copy(tokenizer)
    theirs.chat_template = TEMPLATES[what]
    small(template_seconds=1, template_memory=512 * MIB)
    with refusal(BadSample, r"data\.template: .*; at most [\d,]+ \(DSLIGHT_MAX_TEMPLATE_") as refused:
        template("tokenizer").encode([Turn("human", "A1"), Turn("gpt", "7")], theirs)
    outcome(refused)


def test_a_chat_template_that_ends_writes_what_it_writes(tokenizer):
    from copy import copy

    ours = copy(tokenizer)
    ours.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    encoded = template("tokenizer").encode([Turn("human", "A1"), Turn("gpt", "7")], ours)
    assert ours.decode(encoded.ids) == "A1 7"
    assert encoded.labels[-1] == encoded.ids[-1]
