"""The engine: the same bytes whoever makes them, from wherever, and however often it was killed on the way."""

import fcntl
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from sources import command, environment, packed, shard_files

from data_prep import ingest
from data_prep.llava import main
from dslight.data.shards import Manifest, ShardReader, verify


def arguments(small: Path, out: Path, images: Path | None = None, **options: object) -> list[str]:
    options = {"shard_entries": 6, "workers": 2, "name": "n", "max_bad": 0, **options}
    named = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return ["--json", str(small / "data.json"), "--images", str(images or small / "images"), "--out", str(out), *named]


@pytest.fixture
def expected(small) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    main(arguments(small, small / "expected"))
    return shard_files(small / "expected")


def test_a_shard_is_a_range_of_entries(small, expected):
    manifest = Manifest.load(small / "expected")
    assert [shard.records for shard in manifest.shards] == [6, 6, 6, 6, 6, 6, 4]
    reader = ShardReader(small / "expected", check="full")
    assert [json.loads(reader.read(row)["json"])["id"] for row in range(40)] == [f"e{row}" for row in range(40)]
    assert list(verify(small / "expected")) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_processes_changes_no_byte(small, expected, workers):
    main(arguments(small, small / "out", workers=workers))
    assert shard_files(small / "out") == expected


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_gives_the_same_bytes_as_the_folder(small, expected, kind):
    main(arguments(small, small / "out", images=packed(small / "images", kind)))
    assert shard_files(small / "out") == expected


def test_jsonl_gives_the_same_shards_as_json(small, expected):
    entries = json.loads((small / "data.json").read_text())
    (small / "data.json").rename(small / "old.json")
    (small / "data.jsonl").write_text("\n".join(map(json.dumps, entries)))
    options = arguments(small, small / "out")
    options[1] = str(small / "data.jsonl")
    main(options)
    assert {name: data for name, data in shard_files(small / "out").items() if name.startswith("shard")} == {
        name: data for name, data in expected.items() if name.startswith("shard")
    }


def free(root: Path) -> bool:
    """Whether no process holds the folder."""
    with (root / ".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_killed_at_any_point_and_run_again_it_writes_the_same_bytes(small, expected):
    """SIGKILL of the main process alone, which is the worst: nobody tells its workers. They end by themselves."""
    pauses, unfinished = random.Random(0), 0
    for attempt in range(5):
        out = small / f"killed{attempt}"
        process = subprocess.Popen(
            command("llava", *arguments(small, out, shard_entries=6)), env=environment(), stderr=subprocess.DEVNULL
        )
        while len(list(out.glob("shard-*.tar"))) < attempt + 1 and process.poll() is None:
            time.sleep(0.001)
        time.sleep(pauses.uniform(0, 0.01))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        visible = {path.name: path.read_bytes() for path in out.glob("shard-*.tar")}
        assert visible
        assert visible.items() <= expected.items()  # what has its name is whole
        unfinished += not (out / "manifest.json").exists()
        end = time.monotonic() + 60
        while not free(out):
            assert time.monotonic() < end, "a worker outlived its main process"
            time.sleep(0.05)
        if (out / "manifest.json").exists():
            continue
        made = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}
        journaled = [json.loads(line)["info"]["name"] for line in (out / ".journal.jsonl").read_text().splitlines()[1:]]
        main(arguments(small, out))
        assert shard_files(out) == expected
        report = json.loads((out / "report.json").read_text())
        assert (report["entries"], report["records"], report["images"]) == (40, 40, 35)
        assert report["shards_of_earlier_runs"] == len(journaled)
        for name in journaled:  # a finished shard is not made twice
            assert (out / name).stat().st_mtime_ns == made[name]
    assert unfinished >= 3


def interrupted(small: Path, out: Path, shards: int = 3) -> None:
    """Leave a folder as a run that was stopped after some shards leaves it."""
    main(arguments(small, out))
    manifest = Manifest.load(out)
    lines = [{key: manifest.meta[key] for key in manifest.meta if key != "quarantined"}]
    for number, info in enumerate(manifest.shards[:shards]):
        images = info.records - sum(row % 8 == 0 for row in range(number * 6, number * 6 + info.records))
        counts = {"images": images, "text_only": info.records - images}
        lines.append({"shard": number, "info": vars(info), "counts": counts, "bad": []})
    (out / ".journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in (out / "manifest.json", *(out / shard.name for shard in manifest.shards[shards:])):
        path.unlink()


def test_a_finished_shard_that_was_damaged_meanwhile_is_made_again(small, expected):
    out = small / "out"
    interrupted(small, out)
    os.truncate(out / "shard-000001.tar", 1000)
    (out / "shard-000002.idx.npz").unlink()
    main(arguments(small, out))
    assert shard_files(out) == expected
    assert json.loads((out / "report.json").read_text())["shards_of_earlier_runs"] == 1


def test_a_journal_whose_last_line_was_cut_is_read_up_to_there(small, expected):
    out = small / "out"
    interrupted(small, out)
    journal = out / ".journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    main(arguments(small, out))
    assert shard_files(out) == expected
    assert json.loads((out / "report.json").read_text())["shards_of_earlier_runs"] == 2


def test_it_does_not_go_on_with_other_arguments_or_another_file(small):
    out = small / "out"
    interrupted(small, out)
    with pytest.raises(SystemExit, match="another job: its shard_entries was 6, now it is 7"):
        main(arguments(small, out, shard_entries=7))
    text = (small / "data.json").read_text()
    (small / "data.json").write_text(text.replace("A3", "B3"))
    with pytest.raises(SystemExit, match="another job: its file_sha256 was"):
        main(arguments(small, out))


def test_a_second_writer_is_refused_while_the_first_is_at_work(small, monkeypatch):
    out = small / "out"
    out.mkdir()
    monkeypatch.setattr(ingest, "locked", lambda root, patience: original(root, 0.2))
    with original(out), pytest.raises(SystemExit, match="another writer is at work there"):
        main(arguments(small, out))
    assert list(out.iterdir()) == []


original = ingest.locked


def test_what_was_missing_is_looked_for_again_after_too_many_bad_entries(small, expected):
    """Entries that were quarantined because a folder was not there do not stay out once it is."""
    out = small / "out"
    (small / "images" / "sub").rename(small / "away")
    with pytest.raises(
        SystemExit, match=r"bad entries and counting \(image-missing \d+\); --max-bad 0\.5 allows 20 of 40"
    ):
        main(arguments(small, out, max_bad=0.5))
    assert not (out / "manifest.json").exists()
    assert len((out / "quarantine.jsonl").read_text().splitlines()) > 20  # a shard under way may add one
    (small / "away").rename(small / "images" / "sub")
    main(arguments(small, out))
    assert shard_files(out) == expected


def test_the_number_of_bad_entries_allowed_is_exact(small):
    (small / "images" / "sub" / "0.jpeg").unlink()
    entries = json.loads((small / "data.json").read_text())
    bad = sum(entry.get("image") == "sub/0.jpeg" for entry in entries)
    assert bad >= 2
    with pytest.raises(SystemExit, match=f"{bad} bad entries"):
        main(arguments(small, small / "refused", max_bad=(bad - 0.5) / 40))
    main(arguments(small, small / "out", max_bad=(bad + 0.5) / 40))
    assert len(ShardReader(small / "out")) == 40 - bad
    report = json.loads((small / "out" / "report.json").read_text())
    assert report["bad"] == {"image-missing": bad}


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(small, monkeypatch):
    usage = ingest.shutil.disk_usage(small)
    monkeypatch.setattr(ingest.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(SystemExit, match=r"about 0\.\d MB are needed, its disk has 0\.0 MB free"):
        main(arguments(small, small / "out"))
    assert not list((small / "out").glob("*.tar"))


def test_a_full_disk_stops_the_program_with_its_name_and_leaves_no_part(small):
    """A limit on the size of files stands in for the disk: EFBIG for ENOSPC."""
    line = " ".join(command("llava", *arguments(small, small / "out", shard_entries=40)))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 8; {line}"], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((small / "out").glob("*.tar*"))
    assert not list((small / "out").glob(".*.tmp"))


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(small, expected):
    entries = json.loads((small / "data.json").read_text())
    (small / "long").mkdir()
    (small / "long" / "data.json").write_text(json.dumps(entries * 100))
    out = small / "out"
    options = arguments(small / "long", out, images=small / "images", shard_entries=100)
    process = subprocess.Popen(
        command("llava", *options),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background starts deaf to it
    )
    while not list(out.glob("shard-*.tar")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "run it again to go on" in errors
    assert "Traceback" not in errors
    assert not list(out.glob(".*.tmp"))
    assert not (out / "manifest.json").exists()


def test_a_worker_that_is_killed_is_said_and_what_is_finished_is_kept(small, monkeypatch):
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ingest, "check_entry", die)  # workers are forked and have it too
    with pytest.raises(SystemExit, match="a process was killed from outside"):
        main(arguments(small, small / "out"))
    monkeypatch.undo()
    main(arguments(small, small / "out"))
    assert len(ShardReader(small / "out")) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "--workers: 0; 1 or more"),
        ({"shard_entries": 0}, "--shard-entries: 0"),
        ({"max_bad": 2}, "--max-bad: 2.0; a share"),
        ({"name": "a.b"}, r"--name: key 'a\.b-000000000'"),
        ({"images": Path("nowhere.zip")}, "'nowhere.zip' names no folder, zip or tar"),
    ],
)
def test_wrong_arguments_are_named(small, change, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments(small, small / "out", **change))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "must hold a list of entries, begins with '{}'"),
        ("a.json", '[{"id": 1}, 5]', "entry 1 must be an object, begins with '5]'"),
        ("a.json", '[{"id": 1}, {"id"', "entry 1: the file ends or is damaged there"),
        ("a.json", '[{"id": 1} ', "entry 1: the file ends"),
        ("a.json", "[]", "has 0 entries"),
        ("a.jsonl", '{"id": 1}\n{"id"\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]", "line 1 must be an object, is a list"),
    ],
)
def test_a_file_of_entries_that_is_none_is_named_with_the_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=message):
        main(["--json", str(tmp_path / name), "--out", str(tmp_path / "out")])
