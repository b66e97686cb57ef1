"""`dslight data`: the format is guessed, said and shown before the work, and the old programs do it."""

import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from sources import PHOTO, chat, encode, shard_files

from data_prep.guess import guess
from data_prep.llava import main as llava
from dslight.cli import main
from dslight.data.sample import parse_sample
from dslight.data.shards import Manifest, ShardReader

PNG = encode(PHOTO)
SAID = {
    "messages": [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "A"}],
    "images": ["a.png"],
}
ALPACA = {"instruction": "Q", "output": "A", "image": "a.png"}
LLAVA = {"image": "a.png", "conversations": chat("<image>\nQ", "A")}


def json_file(path: Path, *entries: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    for name in ("a.png", "images/b.png"):
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(PNG)
    return path


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def table(path: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"image": [{"bytes": PNG, "path": None}], "conversations": [chat("<image>\nQ", "A")]}
    pyarrow.parquet.write_table(pa.table(rows), path)
    return path


def captioned(root: Path) -> Path:
    (root / "00000").mkdir(parents=True)
    (root / "00000" / "000000001.png").write_bytes(PNG)
    (root / "00000" / "000000001.txt").write_text("A page.")
    (root / "00000" / "000000001.json").write_text("{}")
    return root


def energon(root: Path) -> Path:
    members = [("._a.png", b"macOS"), ("a.png", PNG), ("a.json", json.dumps({"caption": "A page."}).encode())]
    (root / ".nv-meta").mkdir(parents=True)
    (root / ".nv-meta" / "split.yaml").write_text("split_parts: {}\n")
    return tar(root / "shard_0.tar", *members).parent


SOURCES = {
    "llava": (lambda root: json_file(root / "x.json.jsonl", LLAVA), "llava"),
    "llava in a folder": (lambda root: json_file(root / "x.jsonl", LLAVA).parent, "llava"),
    "packed": (lambda root: json_file(root / "x.jsonl.gz", LLAVA), "llava"),
    "in images/": (lambda root: json_file(root / "x.jsonl", {**LLAVA, "image": "b.png"}), "llava"),
    "messages": (lambda root: json_file(root / "x.jsonl", SAID), "messages"),
    "system beside": (lambda root: json_file(root / "x.jsonl", {**LLAVA, "system": "S"}), "messages"),
    "alpaca": (lambda root: json_file(root / "x.jsonl", ALPACA), "messages"),
    "parquet": (lambda root: table(root / "x.parquet"), "tables"),
    "folder of parquet": (lambda root: table(root / "data" / "train-0.parquet").parents[1], "tables"),
    "webdataset": (lambda root: tar(root / "0.tar", ("a.png", PNG), ("a.txt", b"A page.")), "tars"),
    "energon": (lambda root: energon(root), "tars"),
    "files": (lambda root: captioned(root / "files"), "files"),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_what_people_have_goes_in_by_one_command(name, tmp_path, capsys):
    make, form = SOURCES[name]
    source, out = make(tmp_path / "source"), tmp_path / "out"
    assert main(["data", "convert", str(source), "--out", str(out), "--workers", "1"]) == 0
    reader = ShardReader(out, check="full")
    samples = [parse_sample(reader.index.key(row), reader.read(row)) for row in range(len(reader))]
    assert [list(sample.images) for sample in samples] == [[PNG]]
    assert samples[0].turns[-1].text in ("A", "A page.")
    said = capsys.readouterr().out
    assert f"(--format {form}), since " in said
    assert "0: 1 image (11x9); " in said
    assert main(["data", "verify", str(out)]) == 0
    assert main(["data", "info", str(out)]) == 0
    assert f"{out}: 1 records, " in capsys.readouterr().out


def test_it_writes_what_the_program_of_the_format_writes(tmp_path):
    source = json_file(tmp_path / "x.jsonl", LLAVA, LLAVA)
    llava(["--json", str(source), "--images", str(tmp_path), "--out", str(tmp_path / "theirs"), "--name", "n"])
    assert main(["data", "convert", str(source), "--out", str(tmp_path / "ours"), "--name", "n"]) == 0
    assert shard_files(tmp_path / "ours") == shard_files(tmp_path / "theirs")


def test_a_preview_writes_nothing_and_a_format_can_be_told(tmp_path, capsys):
    source = json_file(tmp_path / "x.jsonl", LLAVA, {**LLAVA, "image": "gone.png"}, {**LLAVA, "score": 3})
    call = ["data", "convert", str(source), "--out", str(tmp_path / "out"), "--preview", "--format", "messages"]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "(--format messages)\n" in said
    assert "1: would be set aside, image-missing: image 'gone.png': there is none" in said
    assert "2: 1 image (11x9); '<image>\\nQ' | 'A'; not read: score" in said
    assert not (tmp_path / "out").exists()


def test_a_preview_needs_no_folder_and_shows_what_is_finished_once_more(tmp_path, capsys):
    source = json_file(tmp_path / "x.jsonl", LLAVA)
    assert main(["data", "convert", str(source), "--preview"]) == 0
    assert main(["data", "convert", str(source), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["data", "convert", str(source), "--out", str(tmp_path / "out"), "--preview"]) == 0
    assert "0: 1 image (11x9); " in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "images", "out", "x.jsonl"]


@pytest.mark.parametrize("form", ["llava", "messages", "files", None])
def test_a_second_source_is_not_passed_over(form, tmp_path, capsys):
    first, second = json_file(tmp_path / "a" / "x.jsonl", LLAVA), json_file(tmp_path / "b" / "y.jsonl", LLAVA)
    call = ["data", "convert", str(first.parent), str(second), "--out", str(tmp_path / "out")]
    assert main([*call, *(["--format", form] if form else [])]) == 1
    assert f"{second}: --format {form or 'llava'} takes one source at a time" in capsys.readouterr().err


def test_a_second_folder_without_tars_is_not_passed_over(tmp_path, capsys):
    first = tar(tmp_path / "tars" / "0.tar", ("a.png", PNG), ("a.txt", b"A page.")).parent
    (tmp_path / "empty").mkdir()
    assert main(["data", "convert", str(first), str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 1
    assert f"{tmp_path / 'empty'}: holds no .tar file" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--system=keep", "--name=n", "--shard-entries=3"])
def test_what_a_format_would_pass_over_is_refused(option, tmp_path, capsys):
    source = tar(tmp_path / "tars" / "0.tar", ("a.png", PNG), ("a.txt", b"A page."))
    assert main(["data", "convert", str(source), "--out", str(tmp_path / "out"), option]) == 1
    assert f"{option.partition('=')[0]}: is for --format " in capsys.readouterr().err


def test_pictures_of_any_ending_that_is_read_are_found(tmp_path):
    (tmp_path / "a.tiff").write_bytes(PNG)
    (tmp_path / "a.txt").write_text("A page.")
    assert guess([str(tmp_path)]).format == "files"


def test_what_was_found_is_said_as_it_is(tmp_path):
    asked = {"image": "a.png", "questions": [{"question_id": 1, "question": "Q", "answers": ["A"]}]}
    assert guess([str(json_file(tmp_path / "a.jsonl", asked))]).why == "its first entries are questions"
    assert guess([str(json_file(tmp_path / "b.jsonl", LLAVA))]).why.endswith("are conversations of human and gpt")


def test_tars_are_indexed_where_they_lie_or_linked_elsewhere(tmp_path, capsys):
    path = tar(tmp_path / "tars" / "0.tar", ("a.png", PNG), ("a.seg.png", PNG), ("a.txt", b"A page."))
    before = path.read_bytes()
    out = tmp_path / "out"
    assert (
        main(["data", "convert", str(path.parent), "--out", str(out), "--leave-out", "seg.png", "--workers", "1"]) == 0
    )
    assert not (path.parent / "manifest.json").exists()
    assert len(parse_sample("a", ShardReader(out).read(0)).images) == 1
    assert main(["data", "convert", str(path.parent), "--workers", "1"]) == 0
    assert Manifest.load(path.parent).meta["program"] == "dslight data convert"
    assert path.read_bytes() == before
    assert "seg.png" in capsys.readouterr().out
    assert main(["data", "convert", str(path.parent), "--out", str(out)]) == 1
    assert "finished already" in capsys.readouterr().err


def of(*entries: object):
    """Makes a file of entries in a folder."""
    return lambda root: json_file(root / "x.jsonl", *entries)


REFUSED = {
    "nothing there": (lambda root: root / "gone", "there is no such file or folder"),
    "an empty folder": (lambda root: root / "empty", "holds no tars, tables, file of entries"),
    "another ending": (lambda root: json_file(root / "x.csv", LLAVA), r"tells no format; name it: --format llava\|"),
    "another form": (of({"a": 1, "b": 2}), "have the keys a, b, which are of no form"),
    "no entry": (of(), "has no entry"),
    "two files": (lambda root: json_file(of(LLAVA)(root).parent / "y.jsonl", LLAVA).parent, "holds 2 files of"),
    "pictures elsewhere": (of({**LLAVA, "image": "c.png"}), "say where they are: --images"),
    "all bad": (of({**LLAVA, "video": "c.mp4"}), "not one of its first 1 entries is good"),
    "shards": (lambda root: made(root), "these are shards of dslight already"),
}


def made(root: Path) -> Path:
    llava(["--json", str(json_file(root / "x.jsonl", LLAVA)), "--images", str(root), "--out", str(root / "made")])
    return root / "made"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_in_a_sentence(name, tmp_path, capsys):
    make, message = REFUSED[name]
    (tmp_path / "empty").mkdir()
    assert main(["data", "convert", str(make(tmp_path)), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert said.count("dslight data: ") == 1
    assert len(said) < 800
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_tars_that_lie_there_already_are_not_taken_for_others(tmp_path, capsys):
    path = tar(tmp_path / "tars" / "0.tar", ("a.png", PNG), ("a.txt", b"A page."))
    tar(tmp_path / "out" / "0.tar", ("a.png", PNG), ("a.txt", b"B page."))
    assert main(["data", "convert", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "0.tar: lies there already, and is not" in capsys.readouterr().err


def test_a_source_without_a_folder_to_write_is_refused(tmp_path, capsys):
    assert main(["data", "convert", str(json_file(tmp_path / "x.jsonl", LLAVA))]) == 1
    assert "--out: name the folder" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--where", "a>1"), ("--leave-out", "png"), ("--image-column", "a")])
def test_an_option_of_another_format_is_refused(option, value, tmp_path, capsys):
    source = json_file(tmp_path / "x.jsonl", LLAVA)
    assert main(["data", "convert", str(source), "--out", str(tmp_path / "out"), option, value]) == 1
    assert f"{option}: is for --format " in capsys.readouterr().err


def test_info_is_there_for_programs_and_says_what_has_no_shards(tmp_path, capsys):
    root = made(tmp_path)
    capsys.readouterr()
    assert main(["data", "info", str(root), "--json"]) == 0
    (info,) = json.loads(capsys.readouterr().out)
    assert (info["records"], info["made_by"]["program"], info["report"]["images"]) == (1, "data_prep.llava", 1)
    assert main(["data", "info", str(tmp_path)]) == 1
    assert "holds no finished shards" in capsys.readouterr().err


def test_the_folder_of_a_url_is_taken_for_tables():
    assert guess(["hf://datasets/a/b"]).format == guess(["s3://a/b/*.parquet"]).format == "tables"


def test_a_page_of_records_is_made(tmp_path):
    root = made(tmp_path)
    assert main(["data", "inspect", str(root), "--out", str(tmp_path / "page.html")]) == 0
    assert "data:image/" in (tmp_path / "page.html").read_text()


def test_a_caption_that_cannot_be_read_stops_nothing(tmp_path):
    root = captioned(tmp_path / "files")
    rng = np.random.default_rng(0)
    for name, caption in (("b", b"caf\xe9"), ("c", None), ("d", "\ufeffB.".encode())):
        (root / f"{name}.png").write_bytes(encode(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)))
        if caption is not None:
            (root / f"{name}.txt").write_bytes(caption)
    assert main(["data", "convert", str(root), "--out", str(tmp_path / "out"), "--max-bad", "1"]) == 0
    reader = ShardReader(tmp_path / "out")
    assert [parse_sample("k", reader.read(row)).turns[1].text for row in range(len(reader))] == ["A page.", "B."]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["bad"] == {"no-text": 2}


def hugging_face(root: Path, arrow: bool) -> Path:
    """What the ``datasets`` library writes."""
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": datasets.Image(),
        "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
    }
    rows = {"image": [{"bytes": PNG, "path": None}] * 2, "conversations": [chat("<image>\nQ", "A")] * 2}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
    made.save_to_disk(str(root)) if arrow else made.to_parquet(str(root / "x.parquet"))
    return root


def video(root: Path) -> Path:
    from clips import write_clip

    write_clip(root / "videos" / "a.mp4", list(range(0, 800, 100)), 800)
    return json_file(root / "x.jsonl", {"video": "a.mp4", "conversations": chat("<image>\nQ", "A")})


TRAINED = {name: (make, []) for name, (make, _) in SOURCES.items()} | {
    "parquet in place": (lambda root: hugging_face(root, arrow=False), ["--in-place"]),
    "arrow": (lambda root: hugging_face(root, arrow=True), []),
    "arrow in place": (lambda root: hugging_face(root, arrow=True), ["--in-place"]),
    "a whole video": (video, ["--keep-videos"]),
    "a video": (video, ["--side", "32"]),
    "a video's frames": (video, ["--tile", "none", "--frames", "3", "--side", "32"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with tiny models."""
    import tiny_world

    return tiny_world.write(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_what_goes_in_by_one_command_trains(name, world, tmp_path, monkeypatch):
    import tiny_world

    import dslight

    make, options = TRAINED[name]
    (tmp_path / "source").mkdir()
    source = make(tmp_path / "source")
    monkeypatch.chdir(world)
    assert main(["data", "convert", str(source), "--out", str(tmp_path / "theirs"), "--workers", "1", *options]) == 0
    made = tiny_world.parts()
    model = dslight.VLM(made["encoder"], dslight.MLPProjector, dslight.DeepStackL(crops=4), made["lm"])
    data = dslight.Data(train=[str(tmp_path / "theirs")], global_batch_size=1)
    trainer = {**tiny_world.QUICK, "max_steps": 2}
    dslight.fit(model, data, {"projector": 1e-2}, trainer, str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
