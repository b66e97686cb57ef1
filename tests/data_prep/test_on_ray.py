"""Converting, indexing, verifying and tokenizing on a Ray cluster of two nodes: the bytes are those of one machine."""

import importlib
import io
import json
import re
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import ROOT, encode, shard_files

from data_prep.engines import nothing
from data_prep.on_ray import EngineError, Ray
from data_prep.tokenize import main as tokenize
from dslight.cli import main

ray = pytest.importorskip("ray", reason="needs Ray, which is not installed here: pip install 'dslight[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
RECIPE = ROOT / "recipes" / "quickstart" / "deepstack_l.yaml"


@pytest.fixture(scope="module")
def cluster():
    """Two nodes; one of them may be killed by the last test."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_worker_niceness", "0")  # default: 15, which never ends beside other work
        made = importlib.import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=NODE)
        made.second = made.add_node(**NODE)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def on_ray(cluster) -> list[str]:
    return ["--engine", "ray", "--ray-address", cluster.address]


def facts(root: Path) -> tuple[dict[str, bytes], dict[str, object]]:
    """All that was written, and the report but for its seconds."""
    report = json.loads((root / "report.json").read_text())
    return shard_files(root), {name: value for name, value in report.items() if name != "seconds"}


def test_tars_are_indexed_and_looked_at(on_ray, tmp_path):
    for name, engine in (("local", ["--workers", "2"]), ("ray", on_ray)):
        (tmp_path / name).mkdir()
        for number in range(4):
            with tarfile.open(tmp_path / name / f"{number:05d}.tar", "w") as tar:
                for row in range(6):
                    picture = encode(np.full((8, 8, 3), row, np.uint8))
                    cut = picture[:40] if (number, row) == (2, 3) else picture
                    for ending, data in (("png", cut), ("txt", b"a caption")):
                        info = tarfile.TarInfo(f"{number}{row}.{ending}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        assert main(["data", "convert", str(tmp_path / name), "--max-bad", "0.5", *engine]) == 0
    assert facts(tmp_path / "ray") == facts(tmp_path / "local")
    assert b'"23"' in (tmp_path / "ray" / "quarantine.jsonl").read_bytes()


def test_damage_is_named_alike(small, on_ray, capsys):
    convert = ["data", "convert", str(small / "data.json"), "--out", str(small / "out"), "--shard-entries", "6"]
    assert main([*convert, "--workers", "1"]) == 0
    verify = ["data", "verify", str(small / "out"), "--decode"]
    said = []
    for damaged in (False, True):
        if damaged:
            for name in ("shard-000001.tar", "shard-000004.tar"):
                data = bytearray((small / "out" / name).read_bytes())
                data[700] ^= 1
                (small / "out" / name).write_bytes(data)
        for engine in (["--workers", "1"], on_ray):
            capsys.readouterr()
            assert main([*verify, *engine]) == damaged
            said.append(capsys.readouterr().out)
    whole, also_whole, problems, also_problems = said
    assert whole == also_whole
    assert "every byte" in whole
    assert problems == also_problems
    assert problems.count("changed") == 2


def test_tokens_are_the_same(pages, on_ray, tmp_path):
    for name, engine in (("local", ["--workers", "1"]), ("ray", on_ray)):
        shutil.copytree(pages / "train", tmp_path / name)
        for old in [*(tmp_path / name).glob("tokens.*"), *(tmp_path / name).glob("lengths.*")]:
            old.unlink()
        options = [f"data.train=[{tmp_path / name}]", "data.order.group_by=[length]", *engine]
        options.append(f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}")
        tokenize([str(RECIPE), *options])
    made = {path.name for path in (tmp_path / "ray").iterdir()} - {path.name for path in (pages / "train").iterdir()}
    assert {name.partition(".")[0] for name in made} >= {"tokens", "lengths"}
    assert shard_files(tmp_path / "ray") == shard_files(tmp_path / "local")


def test_a_folder_that_a_node_does_not_see_is_refused(cluster, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"a")
    (tmp_path / "out").mkdir()
    engine = Ray.reached(cluster.address)
    with engine.pool([tmp_path / "images"], tmp_path / "out", nothing) as pool:
        assert pool.submit(len, "abc").result() == 3
        (tmp_path / "images" / "a.jpg").unlink()
        with pytest.raises(EngineError, match=r"images/a\.jpg: is not the same on node .*a shared file system"):
            pool.submit(len, "abc").result()
    assert not list((tmp_path / "out").iterdir())


def test_the_work_of_a_node_that_is_killed_is_done_again(cluster, on_ray, tmp_path):
    """Its process writes to the same folder, and dies with a shard in hand."""
    gradient = np.broadcast_to(np.linspace(0, 255, 4000).astype(np.uint8)[None, :, None], (4000, 4000, 3))
    Image.fromarray(gradient).save(tmp_path / "a.jpg")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A gradient."}]
    entries = [{"id": str(i), "image": "a.jpg", "conversations": turns} for i in range(100)]
    entries[31]["image"] = "b.jpg"
    (tmp_path / "data.json").write_text(json.dumps(entries))
    convert = ["data", "convert", str(tmp_path / "data.json"), "--shard-entries", "10", "--name", "n"]
    convert += ["--max-bad", "0.5", "--images", str(tmp_path)]
    begun, out, stop = set[str](), tmp_path / "ray", threading.Event()

    def kill() -> None:
        killed = False
        while not stop.wait(0.005):
            parts = {path.name for path in out.glob(".shard-*.tmp") if ".tar." in path.name}
            begun.update(parts)
            if not killed and len(parts) == 2 and len(list(out.glob("shard-*.tar"))) >= 2:
                cluster.remove_node(cluster.second, allow_graceful=False)
                killed = True

    watch = threading.Thread(target=kill)
    watch.start()
    try:
        assert main([*convert, "--out", str(out), *on_ray]) == 0
    finally:
        stop.set()
        watch.join()
    numbers = [re.sub(r"\.tar\..*", "", name) for name in begun]
    again = {name for name in numbers if numbers.count(name) > 1}
    assert again, f"no shard was begun twice: {sorted(begun)}"
    assert main([*convert, "--out", str(tmp_path / "local"), "--workers", "2"]) == 0
    assert facts(out) == facts(tmp_path / "local")
