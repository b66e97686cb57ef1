"""img2dataset's folders, written as it writes them, are indexed where they lie; what it did not finish is refused."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from sources import PHOTO, chat, encode

from data_prep.img2dataset import main
from data_prep.verify import main as verify_main
from dslight.data.datamodule import Source, make_plan, open_train
from dslight.data.sample import BadSample, parse_sample
from dslight.data.shards import Manifest, ShardReader, index_tars, verify

GOOD = encode(np.tile(PHOTO, (3, 3, 1)), "JPEG")


def write_tar(root: Path, number: int, records: list[dict[str, object]]) -> None:
    """A shard as img2dataset's writer makes it: members jpg, txt, json under a key of digits; the stats come last."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / f"{number:05d}.tar", "w") as tar:
        for i, record in enumerate(records):
            key = f"{number:05d}{i:04d}"
            record = {"json": json.dumps({"key": key, "caption": record.get("txt"), "status": "success"}), **record}
            for extension, data in record.items():
                data = data if isinstance(data, bytes) else str(data).encode()
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    stats = {"count": len(records) + 2, "successes": len(records), "failed_to_download": 2, "status_dict": {}}
    (root / f"{number:05d}_stats.json").write_text(json.dumps(stats))


@pytest.fixture
def laion(tmp_path) -> Path:
    root = tmp_path / "laion"
    for number in range(3):
        write_tar(root, number, [{"jpg": GOOD, "txt": f"picture {number} {i}"} for i in range(5)])
    return root


def test_the_tars_stay_as_they_are_and_training_reads_them(laion, program):
    before = {path.name: path.read_bytes() for path in laion.iterdir()}
    done = program("img2dataset", laion, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "15 records in 3 tars, indexed in place" in done.stdout
    assert {name: (laion / name).read_bytes() for name in before} == before
    readers = open_train([Source(str(laion))], "full")
    assert make_plan(readers, [Source(str(laion))], seed=0, global_batch=5).items == 15
    sample = parse_sample(readers[0].locate(7)[1], readers[0].read(7))
    assert (sample.key, sample.images) == ("000010002", (GOOD,))
    assert [turn.text for turn in sample.turns] == ["<image>", "picture 1 2"]
    theirs = list(webdataset.WebDataset([str(path) for path in sorted(laion.glob("*.tar"))], shardshuffle=False))
    assert [item["__key__"] for item in theirs] == [readers[0].locate(row)[1] for row in range(15)]
    assert Manifest.load(laion).meta["checked"] is True
    assert main([str(laion)]) is None  # again: the same


def test_the_number_of_processes_changes_no_byte(laion, tmp_path):
    written = []
    for workers in (1, 3):
        root = tmp_path / str(workers)
        shutil.copytree(laion, root)
        main([str(root), "--no-decode", "--workers", str(workers)])
        written.append({path.name: path.read_bytes() for path in root.iterdir()})
    assert "00002.idx.npz" in written[0]
    assert written[0] == written[1]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_key_that_another_tar_has_and_a_damaged_tar_are_named_by_any_number_of_processes(laion, workers):
    whole = (laion / "00002.tar").read_bytes()
    (laion / "00002.tar").write_bytes((laion / "00000.tar").read_bytes())
    with pytest.raises(SystemExit, match=r"00002\.tar: 000000000: the key occurs twice"):
        main([str(laion), "--workers", workers])
    (laion / "00002.tar").write_bytes(whole[:1000])
    with pytest.raises(SystemExit, match=r"00002\.tar"):
        main([str(laion), "--workers", workers])
    assert not (laion / "manifest.json").exists()


def test_the_caption_is_taken_from_the_json_where_there_is_no_txt(tmp_path):
    write_tar(tmp_path, 0, [{"jpg": GOOD, "json": json.dumps({"caption": "of the json"})}])
    main([str(tmp_path), "--workers", "1"])
    assert parse_sample("k", ShardReader(tmp_path).read(0)).turns[1].text == "of the json"


def test_a_tar_without_its_stats_is_unfinished_and_refused(laion):
    (laion / "00001_stats.json").unlink()
    with pytest.raises(
        SystemExit, match=r"^00001\.tar: no 00001_stats\.json beside it, so img2dataset did not finish it"
    ):
        main([str(laion)])
    assert not (laion / "manifest.json").exists()


def test_a_cut_tar_is_refused_at_every_block(tmp_path):
    laion = tmp_path / "laion"
    for number in range(2):
        write_tar(laion, number, [{"jpg": GOOD, "txt": "picture"}] * 2)
    path = laion / "00001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    for size in range(0, members[-1].offset_data + 512, 512):
        path.write_bytes(whole[:size])
        with pytest.raises(SystemExit, match=r"00001\.tar"):
            main([str(laion), "--no-decode", "--workers", "1"])
    for member in members[1:]:  # even with a proper end: the stats say how many, and a part of a record shows
        path.write_bytes(whole[: member.offset] + bytes(1024))
        with pytest.raises(SystemExit, match=r"00001\.tar"):
            main([str(laion), "--no-decode", "--workers", "1"])
    assert not (laion / "manifest.json").exists()


def test_stats_without_a_tar_and_stats_of_something_else_are_named(laion):
    (laion / "00000.tar").unlink()
    (laion / "00001_stats.json").write_text("{}")
    with pytest.raises(SystemExit) as error:
        main([str(laion)])
    assert "00000_stats.json: its tar is missing" in str(error.value)
    assert "00001_stats.json: successes: missing; so it is not img2dataset's" in str(error.value)


def test_the_parquet_has_to_say_as_many_as_the_stats(laion):
    pyarrow = pytest.importorskip("pyarrow", reason="the parquet is compared where pyarrow is installed")
    from pyarrow import parquet

    def listed(successes: int) -> None:
        status = ["success"] * successes + ["failed_to_download"] * 2
        parquet.write_table(pyarrow.table({"status": status}), laion / "00000.parquet")

    listed(5)
    main([str(laion), "--no-decode"])
    listed(4)
    with pytest.raises(SystemExit, match=r"00000_stats\.json says 5 images, 00000\.parquet 4"):
        main([str(laion), "--no-decode"])


def test_what_is_bad_is_left_out_of_the_index_and_named(laion):
    bad = [
        {"jpg": GOOD, "txt": "good"},
        {"jpg": GOOD[:300], "txt": "cut"},
        {"jpg": GOOD, "txt": "  "},
        {"jpg": b"", "txt": "empty"},
        {"txt": "no image"},
        {"jpg": GOOD, "txt": "good too"},
    ]
    write_tar(laion, 3, bad)
    with pytest.raises(SystemExit, match="4 of 21 records are bad"):
        main([str(laion), "--max-bad", "0.1"])
    assert not (laion / "manifest.json").exists()
    main([str(laion), "--max-bad", "0.2"])
    reader = ShardReader(laion, check="full")
    assert [reader.locate(row)[1] for row in range(15, 17)] == ["000030000", "000030005"]
    assert len(reader) == 17
    assert parse_sample("k", reader.read(16)).turns[1].text == "good too"
    lines = [json.loads(line) for line in (laion / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["key"], line["reason"]) for line in lines] == [
        ("000030001", "image-damaged"),
        ("000030002", "no-text"),
        ("000030003", "image-damaged"),
        ("000030004", "image-missing"),
    ]
    assert list(verify(laion)) == []
    os.truncate(laion / "00003.tar", 2000)
    assert {problem.shard for problem in verify(laion)} == {"00003.tar"}
    with pytest.raises(SystemExit):
        verify_main([str(laion)])


def test_a_folder_without_tars_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no \.tar file"):
        main([str(tmp_path)])


# --- tars of other tools
# --------------------------------------------------------------------------------------------------------------------


def pack(root: Path, members: dict[str, bytes], successes: int | None = 1) -> Path:
    """A tar of these members in this order."""
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "00000.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if successes is not None:
        (root / "00000_stats.json").write_text(json.dumps({"successes": successes}))
    return root


def only(root: Path):
    """The one record of a folder."""
    reader = ShardReader(root)
    assert len(reader) == 1
    return parse_sample(reader.locate(0)[1], reader.read(0))


SMALL = encode(PHOTO)
TEXT = {"a.txt": b"a caption"}
PICTURES = {
    "numbered": ({"a.10.jpg": SMALL, "a.2.jpg": GOOD, **TEXT}, (GOOD, SMALL)),
    "named": ({"a.input.jpg": GOOD, **TEXT}, (GOOD,)),
    "gif": ({"a.gif": encode(PHOTO, "GIF"), **TEXT}, (encode(PHOTO, "GIF"),)),
    "bmp": ({"a.bmp": encode(PHOTO, "BMP"), **TEXT}, (encode(PHOTO, "BMP"),)),
    "tiff": ({"a.TIFF": encode(PHOTO, "TIFF"), **TEXT}, (encode(PHOTO, "TIFF"),)),
    "by its bytes": ({"a.bin": GOOD, **TEXT, "a.cls": b"3"}, (GOOD,)),
    "beside macOS's files": ({"._a.jpg": b"mac", "._a.txt": b"mac", "a.jpg": GOOD, **TEXT}, (GOOD,)),
    "with a mask": ({"a.jpg": GOOD, "a.png": SMALL, **TEXT}, (GOOD, SMALL)),
}


@pytest.mark.parametrize("options", [[], ["--no-decode"]], ids=["decoded", "trusted"])
@pytest.mark.parametrize("name", PICTURES)
def test_no_picture_of_a_record_is_left_behind_whatever_it_is_called(name, options, tmp_path):
    members, images = PICTURES[name]
    main([str(pack(tmp_path, members)), "--max-bad", "1", "--workers", "1", *options])
    sample = only(tmp_path)
    assert sample.images == images
    assert [turn.text for turn in sample.turns] == ["<image>" * len(images), "a caption"]


def test_what_is_taken_of_several_images_is_said_and_can_be_left_out(tmp_path, capsys):
    root = str(pack(tmp_path, {"a.jpg": GOOD, "a.png": SMALL, **TEXT}))
    main([root, "--workers", "1"])
    assert "1 records have the images jpg + png, and all of them are taken" in capsys.readouterr().out
    main([root, "--workers", "1", "--leave-out", ".PNG"])
    assert "have the images" not in capsys.readouterr().out
    assert only(tmp_path).images == (GOOD,)
    assert Manifest.load(tmp_path).meta["leave_out"] == ["png"]
    assert list(verify(tmp_path)) == []


def test_what_is_called_a_mask_is_left_alone_unless_it_is_named(tmp_path, capsys):
    root = str(pack(tmp_path, {"a.jpg": GOOD, "a.seg.png": SMALL, "a.depth.png": SMALL, **TEXT}))
    main([root, "--workers", "1"])
    assert only(tmp_path).images == (GOOD,)
    assert "1 records have .seg.png, which is left alone" in capsys.readouterr().out
    main([root, "--workers", "1", "--take", ".seg.png"])
    assert only(tmp_path).images == (GOOD, SMALL)
    assert list(verify(tmp_path)) == []
    index_tars(tmp_path)
    assert only(tmp_path).images == (GOOD,)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.mp4": b"film", **TEXT}, "has a caption and no image, only mp4, txt"),
        ({"a.json": json.dumps({"conversations": chat("<image>Q", "A")}).encode()}, "marks, and no image among json"),
        ({"a.jpg": GOOD, "a.txt": "café".encode("latin-1")}, "its caption is not UTF-8"),
    ],
    ids=["video", "marks", "latin-1"],
)  # fmt: skip
def test_a_record_whose_caption_has_no_picture_or_no_text_is_set_aside(members, words, tmp_path):
    good = {"b.json": b'{"caption": "good"}'} if "a.json" in members else {"b.txt": b"good"}
    members = members | {"b.jpg": GOOD} | good
    main([str(pack(tmp_path, members, 2)), "--max-bad", "1", "--workers", "1"])
    (line,) = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert line["key"] == "a"
    assert words in line["message"]
    assert only(tmp_path).key == "b"
    index_tars(tmp_path)  # without looking at them
    reader = ShardReader(tmp_path)
    with pytest.raises(BadSample, match=words):
        parse_sample("a", reader.read(0))


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    main([str(pack(tmp_path, {"a.jpg": GOOD, "a.txt": b"\xef\xbb\xbfa cat"})), "--workers", "1"])
    assert only(tmp_path).turns[1].text == "a cat"
    json_ = json.dumps({"caption": "\ufeffa cat"}).encode()
    main([str(pack(tmp_path, {"a.jpg": GOOD, "a.json": json_})), "--workers", "1"])
    assert only(tmp_path).turns[1].text == "a cat"


def test_members_that_do_not_lie_together_are_refused_as_what_they_are(tmp_path):
    root = pack(tmp_path, {"a.jpg": GOOD, "b.jpg": GOOD, "a.txt": b"A", "b.txt": b"B"}, 2)
    with pytest.raises(SystemExit, match=r"00000\.tar: a: its members do not lie together \(a\.txt comes after other"):
        main([str(root), "--workers", "1"])
    assert not (root / "manifest.json").exists()


def test_tars_of_another_tool_are_not_called_unfinished(tmp_path):
    root = pack(tmp_path, {"a.jpg": GOOD, **TEXT}, None)
    with pytest.raises(SystemExit, match=r"not img2dataset's; index those of another tool with .*verify --index"):
        main([str(root)])
    verify_main(["--index", str(root)])
    assert only(root).images == (GOOD,)


def test_a_name_that_is_not_utf8_is_indexed(tmp_path):
    root = pack(tmp_path, {"caf\udce9.jpg": GOOD, "caf\udce9.txt": b"a cat"})
    main([str(root), "--workers", "1"])
    assert only(root).key == "caf\\xe9"
    assert list(verify(root)) == []
