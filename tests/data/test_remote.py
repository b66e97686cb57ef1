"""Shards behind a URL: from a real HTTP server in a process of its own that cuts, lies and dawdles, and from fsspec's
memory."""

import functools
import http.server
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

from dslight.data.datamodule import ShardData, Source, ValSource
from dslight.data.images import SingleView
from dslight.data.plan import Order
from dslight.data.shards import Cache, ShardError, ShardReader, verify
from dslight.layout import SlotLayout


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, writes down what was asked for, and reads from the file ``fault`` what to do to tars:
    ``cut N``: break off the next N in the middle; ``flip``: change a byte; ``slow``: pause in the middle."""

    def __init__(self, *args, control: Path, **kwargs) -> None:
        self.control = control
        super().__init__(*args, **kwargs)

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        with (self.control / "asked").open("a") as file:
            file.write(self.path + "\n")
        path = Path(self.translate_path(self.path))
        fault = (self.control / "fault").read_text().split() if (self.control / "fault").exists() else ["none"]
        if not path.name.endswith(".tar") or fault[0] == "none" or not path.exists():
            return super().do_GET()
        data = bytearray(path.read_bytes())
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault[0] == "cut" and int(fault[1]) > 0:
            (self.control / "fault").write_text(f"cut {int(fault[1]) - 1}")
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.close()
            return None
        if fault[0] == "flip":
            data[700] ^= 1
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        if fault[0] == "slow":
            time.sleep(float(fault[1]))
        self.wfile.write(data[len(data) // 2 :])
        return None


def _serve(root: Path, control: Path, port) -> None:
    handler = functools.partial(Handler, directory=str(root), control=control)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    port.value = server.server_address[1]
    server.serve_forever()


class Server:
    def __init__(self, root: Path, control: Path) -> None:
        control.mkdir()
        self.control = control
        context = multiprocessing.get_context("fork")
        port = context.Value("i", 0)
        self.process = context.Process(target=_serve, args=(root, control, port), daemon=True)
        self.process.start()
        while not port.value:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{port.value}"

    def fault(self, what: str) -> None:
        (self.control / "fault").write_text(what)

    def asked(self) -> Counter:
        return Counter(line.rpartition("/")[2] for line in (self.control / "asked").read_text().splitlines())


@pytest.fixture
def shards(tmp_path, write_shards) -> Path:
    return write_shards(tmp_path / "served" / "set", 30)  # five shards


@pytest.fixture
def server(shards, tmp_path):
    server = Server(shards.parent, tmp_path / "control")
    yield server
    server.process.terminate()


def opened(url: str, folder: Path, limit: int | None = None) -> ShardReader:
    remote = Cache(folder, limit, pause=0.01).open(url)
    return ShardReader(remote.root, "full", remote)


def contents(reader: ShardReader) -> list[dict[str, bytes]]:
    return [reader.read(row) for row in range(len(reader))]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".room"))]


def test_what_is_read_over_http_is_what_lies_on_the_disk(server, shards, tmp_path):
    reader = opened(f"{server.url}/set/", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.tar"))  # pulled when they are read
    assert contents(reader) == contents(ShardReader(shards))
    assert list(verify(reader.root)) == []
    contents(opened(f"{server.url}/set", tmp_path / "cache"))
    asked = server.asked()
    assert {name: asked[name] for name in asked if name.endswith(".tar")} == {f"shard-{i:06d}.tar": 1 for i in range(5)}
    assert {asked[name] for name in asked if name.endswith(".npz")} == {1}
    assert asked["manifest.json"] == 2  # fetched at every start


def test_a_cut_connection_is_tried_again(server, shards, tmp_path):
    reader = opened(f"{server.url}/set", tmp_path / "cache")
    server.fault("cut 2")
    assert reader.read(3) == ShardReader(shards).read(3)
    assert server.asked()["shard-000000.tar"] == 3
    assert contents(reader) == contents(ShardReader(shards))
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("fault", "what"), [("cut 99", "4 attempts"), ("flip", "their SHA-256 is .*, the manifest says")]
)
def test_what_never_arrives_whole_is_an_error_that_names_the_shard_and_is_not_kept(fault, what, server, tmp_path):
    reader = opened(f"{server.url}/set", tmp_path / "cache")
    server.fault(fault)
    with pytest.raises(ShardError, match=rf"{server.url}/set/shard-000001\.tar: not fetched .*{what}"):
        reader.read(8)
    assert not list((tmp_path / "cache").rglob("*.tar"))
    assert leftovers(tmp_path / "cache") == []


def _pull(url: str, cache: Path) -> None:
    reader = opened(url, cache)
    contents(reader)


def test_of_the_processes_of_a_node_one_pulls_each_shard(server, tmp_path):
    server.fault("slow 0.3")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_pull, args=(f"{server.url}/set", tmp_path / "cache")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    asked = server.asked()
    assert {asked[name] for name in asked if name.endswith(".tar")} == {1}


def test_a_process_that_is_killed_while_it_pulls_leaves_no_lock_and_no_shard(server, shards, tmp_path):
    server.fault("slow 30")
    context = multiprocessing.get_context("fork")
    first = context.Process(target=_pull, args=(f"{server.url}/set", tmp_path / "cache"))
    first.start()
    while not any(path.stat().st_size for path in (tmp_path / "cache").rglob(".*.tar.tmp")):
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert not list((tmp_path / "cache").rglob("*.tar"))
    server.fault("none")
    assert contents(opened(f"{server.url}/set", tmp_path / "cache")) == contents(ShardReader(shards))
    assert leftovers(tmp_path / "cache") == []


def test_the_cache_keeps_to_its_limit(server, shards, tmp_path):
    sizes = [path.stat().st_size for path in shards.glob("*.tar")]
    limit = max(sizes) * 2
    reader, done, most = opened(f"{server.url}/set", tmp_path / "cache", limit), threading.Event(), [0]

    def watch() -> None:
        while not done.is_set():
            with suppress(FileNotFoundError):  # removed between two looks
                found = list((tmp_path / "cache").rglob("*.tar"))
                most[0] = max(most[0], sum(path.stat().st_size for path in found))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(2):
            assert contents(reader) == contents(ShardReader(shards))
    finally:
        done.set()
        watcher.join()
    assert max(sizes) < most[0] <= limit
    kept = {path.name for path in (tmp_path / "cache").rglob("*.tar")}
    assert kept == {"shard-000003.tar", "shard-000004.tar"}  # those that were opened last
    assert leftovers(tmp_path / "cache") == []
    for row in (21, 0, 7):  # shard 3 is opened again, so that 4 is the one that was longest not opened
        opened(f"{server.url}/set", tmp_path / "cache", limit).read(row)
        if row == 21:
            assert server.asked()["shard-000003.tar"] == 2
        if row == 0:
            kept = {path.name for path in (tmp_path / "cache").rglob("*.tar")}
            assert kept == {"shard-000000.tar", "shard-000003.tar"}
    with pytest.raises(ShardError, match=r"data\.cache_bytes: 1000, but .*/shard-000000\.tar alone has"):
        opened(f"{server.url}/set", tmp_path / "small", 1000).read(0)


def test_shards_that_changed_are_pulled_anew(server, shards, tmp_path, write_shards):
    contents(opened(f"{server.url}/set", tmp_path / "cache"))
    (shards / "manifest.json").unlink()
    write_shards(shards, 25, "b")  # tars of the same names and sizes
    new = opened(f"{server.url}/set", tmp_path / "cache")
    assert new.locate(0)[1] == "b-0000"
    assert contents(new) == contents(ShardReader(shards))


def test_what_is_not_there_is_named(server, tmp_path):
    with pytest.raises(ShardError, match=rf"{server.url}/nothing/manifest\.json: there is no such file"):
        opened(f"{server.url}/nothing", tmp_path / "cache")
    server.process.terminate()
    server.process.join()
    with pytest.raises(ShardError, match=r"/set/manifest\.json: not fetched in 4 attempts; the last: Client"):
        opened(f"{server.url}/set", tmp_path / "cache")


# --- from a recipe
# -----------------------------------------------------------------------------------------------


def module(tokenizer, *train: str, **settings) -> ShardData:
    made = ShardData(list(train), SingleView(), 4, template="bare", **settings)
    made.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
    made.setup("fit")
    return made


def keys(data: ShardData) -> list[list[str]]:
    return [list(batch.keys) for batch in data.train_dataloader()]


@pytest.fixture
def in_memory(shards):
    fs = fsspec.filesystem("memory")
    fs.put(str(shards), "/bucket/set", recursive=True)
    yield "memory://bucket/set"
    fs.rm("/bucket", recursive=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", [None, Order(pack=True, window=2)], ids=["plain", "packed"])
def test_training_from_a_url_sees_what_training_from_the_folder_sees(
    workers, order, server, in_memory, shards, tokenizer, tmp_path
):
    expected = keys(module(tokenizer, str(shards), order=order))
    for i, url in enumerate((f"{server.url}/set", in_memory, f"file://{shards}")):
        data = module(tokenizer, url, order=order, cache=str(tmp_path / f"cache{i}"), num_workers=workers)
        assert keys(data) == expected


def test_questions_come_from_a_url_too(in_memory, shards, tokenizer, tmp_path, write_shards):
    fsspec.filesystem("memory").put(str(write_shards(tmp_path / "q", 5, questions=2)), "/bucket/q", recursive=True)
    val = {"q": ValSource("memory://bucket/q")}
    (loader,) = module(tokenizer, in_memory, val=val, cache=str(tmp_path / "cache")).val_dataloader()
    assert sum(len(batch.questions) for batch in loader) == 10


def test_a_url_that_cannot_be_opened_is_refused_by_its_place_in_the_recipe(shards, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"data\.cache: missing; data\.train\[1\]\.root is https://nowhere/set"):
        module(tokenizer, str(shards), Source("https://nowhere/set"))
    with pytest.raises(
        ShardError, match=r"data\.train\[0\]\.root: memory://empty/manifest\.json: there is no such file"
    ):
        module(tokenizer, "memory://empty", cache=str(tmp_path))
    with pytest.raises(ShardError, match=r"data\.train\[0\]\.root: s3://bucket/set: .*s3fs"):
        module(tokenizer, "s3://bucket/set", cache=str(tmp_path))
    with pytest.raises(ShardError, match=r"data\.train\[0\]\.root: nonsense://set: .*nonsense"):
        module(tokenizer, "nonsense://set", cache=str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.cache_bytes: 5; name a folder: data\.cache"):
        ShardData([str(shards)], SingleView(), 4, cache_bytes=5)
