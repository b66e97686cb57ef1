"""No name that stands in a file leads out of its folder, and names in sub-folders are read from everywhere."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from data_prep.digits import png
from data_prep.images import Images
from data_prep.mix import main as mix
from data_prep.videos import Videos
from dslight.checkpoints import complete
from dslight.checkpoints.read import files_of
from dslight.cli import main
from dslight.components.component import WeightsError
from dslight.data.sample import BadSample
from dslight.data.shards import Cache, Manifest, ShardError, ShardReader, ShardWriter, verify
from dslight.data.shards.elsewhere import Elsewhere, Place, end_sha256
from dslight.metrics.base import Answer, Verdict
from dslight.metrics.submission import submission
from dslight.names import UnsafeNameError, below, checked
from dslight.types import Question

PROMISE = "no name leads out of its folder"

OUT = {
    "absolute": "/etc/passwd",
    "by ..": "a/../../b.tar",
    "a drive letter": "C:b.tar",
    "a backslash": "..\\b.tar",
    "a NUL": "a\0.tar",
    "a line break": "a\n.tar",
    "an escape": "\x1b[2Jb.tar",
    "empty": "",
    "the folder itself": ".",
    "too long": "a" * 5000,
    "no text": 7,
}


@pytest.mark.promise(PROMISE, "a name that is")
@pytest.mark.parametrize("name", OUT.values(), ids=OUT)
def test_a_name_that_leads_out_is_refused_in_a_line(name, tmp_path, outcome):
    with pytest.raises(UnsafeNameError, match="the name of a shard is") as refused:
        below(tmp_path, name, "the name of a shard")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300
    outcome(refused)


@pytest.mark.parametrize("name", ["a.tar", "sub/a.tar", "./a.tar", "a..b/..c", "späť/图.tar", "a b.tar", "~/x"])
def test_a_name_below_its_folder_is_that_path(name, tmp_path):
    assert below(tmp_path, name) == tmp_path / name
    assert str(checked(name)) == os.path.normpath(name)


@pytest.fixture
def linked(tmp_path) -> tuple[Path, Path]:
    """A folder, and a secret beside it that a link in ``sub`` leads to."""
    root, secret = tmp_path / "root", tmp_path / "secret"
    root.mkdir()
    secret.mkdir()
    (root / "sub").symlink_to(secret)
    return root, secret


@pytest.mark.promise(PROMISE, "a symbolic link that leads out of the folder")
def test_a_link_that_leads_out_is_refused_unless_it_is_allowed(linked, monkeypatch, outcome):
    root, _ = linked
    with pytest.raises(UnsafeNameError, match="DSLIGHT_ALLOW_LINKS=1 allows that") as refused:
        below(root, "sub/a.png")
    outcome(refused)
    monkeypatch.setenv("DSLIGHT_ALLOW_LINKS", "1")
    assert below(root, "sub/a.png") == root / "sub/a.png"
    with pytest.raises(UnsafeNameError):
        below(root, "../secret")


def test_a_folder_that_is_itself_reached_over_a_link_is_its_own_home(linked, tmp_path):
    root, secret = linked
    (secret / "real").mkdir()
    assert below(root / "sub", "real/a.png") == root / "sub" / "real/a.png"


def write(root: Path, name: str = "a", pages: int = 3) -> Path:
    with ShardWriter(root, shard_records=2) as writer:
        for i in range(pages):
            turns = [{"from": "human", "value": "<image>\nA1"}, {"from": "gpt", "value": "7"}]
            writer.write(f"{name}-{i}", [png(np.full((8, 8), i, np.uint8))], {"conversations": turns})
    return root


def renamed(root: Path, name: str) -> None:
    manifest = Manifest.load(root)
    Manifest((replace(manifest.shards[0], name=name), *manifest.shards[1:])).save(root)


MANIFESTS = [
    "/etc/passwd.tar",
    "../a/shard-000000.tar",
    "..\\shard.tar",
    "a\0.tar",
    "",
    "notes.txt",
    "shard-000001.tar",
]


@pytest.mark.promise(PROMISE, "a manifest that names")
@pytest.mark.parametrize("name", MANIFESTS, ids=ascii)
@pytest.mark.parametrize("where", ["here", "file://"])
def test_a_manifest_names_shards_of_its_own_folder(where, name, tmp_path, outcome):
    root = write(tmp_path / "a")
    renamed(root, name)
    before = {path for path in tmp_path.rglob("*") if path.parent != tmp_path / "cache"}
    read = ShardReader if where == "here" else Cache(tmp_path / "cache", pause=0).open
    with pytest.raises(ShardError) as refused:
        read(str(root) if where == "here" else f"file://{root}")
    outcome(refused)
    assert {path for path in tmp_path.rglob("*") if (tmp_path / "cache") not in (path, *path.parents)} == before
    assert list(verify(root))


@pytest.mark.promise(PROMISE, "a shard that is a link to somewhere else")
def test_a_shard_is_no_link_to_somewhere_else(tmp_path, outcome, monkeypatch):
    root = write(tmp_path / "a")
    (root / "shard-000000.tar").rename(tmp_path / "away.tar")
    (root / "shard-000000.tar").symlink_to(tmp_path / "away.tar")
    with pytest.raises(ShardError, match="symbolic link") as refused:
        ShardReader(root)
    outcome(refused)
    monkeypatch.setenv("DSLIGHT_ALLOW_LINKS", "1")
    assert len(ShardReader(root)) == 3


@pytest.mark.promise(PROMISE, "an index of weights that names")
@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "a.txt"])
def test_an_index_of_weights_names_files_of_its_own_folder(name, tmp_path, outcome):
    folder = tmp_path / "weights"
    folder.mkdir()
    (tmp_path / "secret.bin").touch()
    (folder / "a.txt").touch()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(WeightsError) as refused:
        files_of(folder)
    outcome(refused)


@pytest.mark.promise(PROMISE, "the list of a checkpoint's files")
def test_a_list_of_a_checkpoints_files_names_its_own(tmp_path, outcome):
    folder = tmp_path / "ckpt"
    folder.mkdir()
    (tmp_path / "secret").write_text("1")
    files = {"format": "dslight-checkpoint", "files": {"../secret": 1}}
    (folder / complete.COMPLETE).write_text(json.dumps(files))
    assert not complete.is_complete(folder)
    with pytest.raises(WeightsError, match=r"leads out by \.\.") as refused:
        complete.listed(folder)
    outcome(refused)


@pytest.mark.promise(PROMISE, "an entry whose image, or video, lies over a link")
def test_images_and_videos_are_found_below_their_places(linked, outcome):
    root, secret = linked
    (secret / "a.png").write_bytes(png(np.zeros((8, 8), np.uint8)))
    images = Images.open([str(root)])
    with pytest.raises(BadSample, match="symbolic link") as refused:
        images.read("sub/a.png")
    assert images.size("sub/a.png") == 0
    outcome(refused)
    with pytest.raises(BadSample, match="symbolic link"):
        Videos([root]).find("sub/a.png")
    for name in ("../secret/a.png", "/etc/passwd", "a\\b", "a\0b"):
        with pytest.raises(BadSample, match="the name of an image"):
            images.read(name)


@pytest.mark.promise(PROMISE, "a kind of question that becomes the name of a file")
def test_what_goes_to_a_server_is_written_below_its_folder(tmp_path):
    question = Question("1/0/x", "Is it?", ("Yes",), type="../../up", key="k")
    files = submission("mme", [Answer(question, "Yes", Verdict(1.0, False))])
    assert all(below(tmp_path, name).parent == tmp_path for name in files)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """What ``data_prep.mix`` makes of two sources: shards in a folder for each."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("mixed") / "mix"
    for name in ("one", "two"):
        (raw / name).mkdir()
        entries = []
        for i in range(5):
            (raw / name / f"{i}.png").write_bytes(png(np.full((8, 8), i, np.uint8)))
            turns = [{"from": "human", "value": "<image>\nA1"}, {"from": "gpt", "value": f"{name} {i}"}]
            entries.append({"id": f"{i}", "image": f"{i}.png", "conversations": turns})
        (raw / f"{name}.json").write_text(json.dumps(entries))
    (raw / "mix.yaml").write_text("sources: {one: {json: one.json, images: one}, two: {json: two.json, images: two}}")
    mix([str(raw / "mix.yaml"), "--raw", str(raw), "--out", str(out), "--workers", "1", "--shard-entries", "2"])
    return out


@pytest.fixture
def url(request, mixed, tmp_path) -> Iterator[str]:
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.put(str(mixed), "/mixes/mine", recursive=True)
        yield "memory://mixes/mine"
        memory.rm("/mixes", recursive=True)
    elif request.param == "file":
        yield f"file://{mixed}"
    else:
        handler = functools.partial(Quiet, directory=str(mixed.parent))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_address[1]}/{mixed.name}"
            server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def placed(tmp_path) -> Path:
    """Shards whose pictures stay in a parquet file in another folder."""
    page = {"bytes": png(np.zeros((8, 8, 3), np.uint8)), "path": "a.png"}
    turns = [{"from": "human", "value": "<image>\nA1"}, {"from": "gpt", "value": "7"}]
    rows = [{"id": str(i), "image": page, "conversations": turns} for i in range(3)]
    (tmp_path / "source").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "source" / "a.parquet", compression="none")
    call = ["data", "convert", str(tmp_path / "source"), "--out", str(tmp_path / "placed"), "--in-place"]
    assert main([*call, "--workers", "1"]) == 0
    return tmp_path / "placed"


@pytest.mark.promise(PROMISE, "the table of pictures that stay in place is")
@pytest.mark.parametrize("what", ["a file of others", "a pipe", "not there", "a name with NUL", "no text"])
def test_pictures_are_read_from_the_very_table_that_was_converted_and_from_no_other_file(
    what, placed, tmp_path, outcome
):
    (tmp_path / "private").write_bytes(b"a key" * 100)
    os.mkfifo(tmp_path / "pipe")
    names = dict(zip(["a file of others", "a pipe", "not there"], ["private", "pipe", "gone"], strict=True))
    name = {"a name with NUL": "a\0b", "no text": 7}.get(what) or str(tmp_path / names[what])
    assert len(ShardReader(placed).read(0)) == 2
    manifest = Manifest.load(placed)
    manifest.meta["in_place"][0]["file"] = name
    manifest.save(placed)
    with pytest.raises(ShardError) as refused:
        ShardReader(placed).read(0)
    outcome(refused)


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1, 10**9])
def test_a_picture_that_lies_behind_the_end_of_its_table_is_none(offset, tmp_path):
    file = tmp_path / "a.parquet"
    file.write_bytes(b"x" * 100)
    with file.open("rb") as opened:
        size, end = end_sha256(opened)
    listed = [{"file": str(file), "bytes": size, "end_sha256": end}]
    found = Elsewhere(tmp_path, Manifest((), {"in_place": listed}))
    place = Place(0, 0, offset, 10, 10, 0, 10, b"0" * 16).to_bytes()
    with pytest.raises(ValueError, match=r"^jpg: "):
        found.fill({"jpg.at": place}, None, True)


@pytest.mark.promise("a mix is read from elsewhere as it is here", "a mix of two sources behind")
@pytest.mark.parametrize("url", ["file", "memory", "http"], indirect=True)
def test_a_mix_is_read_from_elsewhere(url, mixed, tmp_path, outcome):
    here = ShardReader(mixed, "full")
    most = max(shard.bytes for shard in here.manifest.shards)
    remote = Cache(tmp_path / "cache", limit=2 * most, pause=0).open(url)
    there = ShardReader(remote.root, "full", remote)
    assert len(there) == 10
    for row in range(10):
        assert there.read(row) == here.read(row)
    kept = {path.relative_to(remote.root).as_posix() for path in remote.root.rglob("*.tar")}
    assert kept <= {shard.name for shard in here.manifest.shards}
    assert 0 < len(kept) <= 2  # the limit holds for shards in sub-folders too
    assert not [path for path in remote.root.rglob("*") if path.name.endswith((".tmp", ".room"))]
    outcome(f"{len(there)} records of {len(here.manifest.shards)} shards, the same bytes")
