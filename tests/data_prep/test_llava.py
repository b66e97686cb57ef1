"""LLaVA's files to shards: what is good is kept as it is, what is bad is named."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from sources import chat, packed

from data_prep.llava import main
from data_prep.verify import main as verify_main
from dslight.data.sample import parse_sample
from dslight.data.shards import ShardReader


def save(path, kind="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 11, 3), dtype=np.uint8)).save(out, kind)
    path.write_bytes(out.getvalue())
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    save(images / "coco" / "a.jpg")
    save(images / "b.png", "PNG")
    save(images / "really_a.jpg", "GIF")
    (images / "empty.jpg").write_bytes(b"")
    (images / "page.jpg").write_bytes(b"<html>404</html>")
    (images / "cut.jpg").write_bytes(save(images / "whole.jpg")[:300])
    return tmp_path


GOOD = [
    {"id": "1", "image": "coco/a.jpg", "conversations": chat("<image>\nQ", "A", "Q2", "A2")},
    {"id": "1", "conversations": chat("text only, ids repeat", "A")},
    {"id": "3", "image": ["coco/a.jpg", "b.png"], "conversations": chat("<image> and <image>", "A")},
    {"id": "4", "image": "really_a.jpg", "conversations": chat("<image>\nQ", "A")},
]
BAD = [
    ({"id": "b0", "image": "gone.jpg", "conversations": chat("<image>", "A")}, "image-missing", "there is none"),
    ({"id": "b1", "image": "empty.jpg", "conversations": chat("<image>", "A")}, "image-empty", "0 bytes"),
    ({"id": "b2", "image": "page.jpg", "conversations": chat("<image>", "A")}, "image-format", "not a PNG, JPEG"),
    ({"id": "b3", "image": "cut.jpg", "conversations": chat("<image>", "A")}, "image-damaged", "does not decode"),
    ({"id": "b4", "image": "b.png", "conversations": chat("<image> <image>", "A")}, "marks", "2 <image> marks"),
    ({"id": "b5", "conversations": []}, "no-answer", "no answer"),
    ({"id": "b6", "conversations": [*chat("Q"), *chat("Q")]}, "roles", "two human turns"),
    ({"id": "b7"}, "no-text", "neither conversations"),
    ({"id": "b8", "image": 5, "conversations": chat("<image>", "A")}, "image-name", "given as 5"),
    ({"id": "b9", "image": "../data.json", "conversations": chat("<image>", "A")}, "image-name", "leads out by .."),
    ({"id": "b10", "conversations": [{"from": "narrator", "value": "Q"}]}, "roles", "'narrator'"),
    ({"id": "b11", "conversations": "hello"}, "record", "TypeError"),
    ({"id": "b12", "conversations": chat("a lone \ud83d", "A")}, "record", "UnicodeEncodeError"),
]


def run(folder, entries, *options):
    path = folder / "data.json"
    path.write_text(json.dumps(entries))
    main(["--json", str(path), "--images", str(folder / "images"), "--out", str(folder / "out"), *options])


def test_good_entries_keep_their_text_and_their_image_bytes(folder):
    run(folder, GOOD)
    reader = ShardReader(folder / "out", check="full")
    samples = [parse_sample(reader.locate(row)[1], reader.read(row)) for row in range(len(reader))]
    assert [sample.key for sample in samples] == [f"out-{row:09d}" for row in range(4)]
    for sample, entry in zip(samples, GOOD, strict=True):
        assert [turn.text for turn in sample.turns] == [turn["value"] for turn in entry["conversations"]]
    assert samples[0].images == ((folder / "images/coco/a.jpg").read_bytes(),)
    assert len(samples[2].images) == 2
    assert set(reader.read(2)) == {"0.jpg", "1.png", "json"}
    assert set(reader.read(3)) == {"gif", "json"}
    assert [info["name"] for info in json.loads(reader.read(3)["json"])["image_info"]] == ["really_a.jpg"]
    assert (folder / "out" / "quarantine.jsonl").read_text() == ""


def test_bad_entries_are_quarantined_with_their_reason(folder):
    run(folder, [*(entry for entry, *_ in BAD), *GOOD], "--max-bad", "0.8")
    lines = [json.loads(line) for line in (folder / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(len(BAD)))
    for line, (entry, reason, words) in zip(lines, BAD, strict=True):
        assert (line["id"], line["reason"]) == (entry["id"], reason)
        assert words in line["message"]
    reader = ShardReader(folder / "out")
    assert len(reader) == len(GOOD)
    assert reader.manifest.meta["quarantined"] == len(BAD)


def test_too_many_bad_entries_stop_the_program_without_a_manifest(folder):
    with pytest.raises(SystemExit, match=r"2 bad entries and counting .*; --max-bad 0\.1 allows 1 of 17"):
        run(folder, [*(entry for entry, *_ in BAD), *GOOD], "--max-bad", "0.1")
    assert not (folder / "out" / "manifest.json").exists()
    assert len((folder / "out" / "quarantine.jsonl").read_text().splitlines()) == 2


def test_a_jsonl_file_and_a_second_call(folder, capsys):
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in GOOD) + "\n\n")
    arguments = ["--json", str(path), "--images", str(folder / "images"), "--out", str(folder / "out"), "--name", "mix"]
    main(arguments)
    main(arguments)
    assert "finished already, from 4 entries" in capsys.readouterr().out
    assert ShardReader(folder / "out").locate(0)[1] == "mix-000000000"


def test_a_finished_folder_is_not_taken_for_what_another_call_would_make(folder):
    run(folder, GOOD)
    other = folder / "other.json"
    other.write_text(json.dumps(GOOD[1:]))
    arguments = ["--images", str(folder / "images"), "--out", str(folder / "out")]
    before = (folder / "out" / "manifest.json").read_bytes()
    with pytest.raises(SystemExit, match=r"another job: its file was .data\.json., now it is .other\.json.; write"):
        main(["--json", str(other), *arguments])
    source = folder / "data.json"
    with pytest.raises(SystemExit, match=r"its shard_entries was \d+, now it is 2;"):
        main(["--json", str(source), *arguments, "--shard-entries", "2"])
    source.write_text(json.dumps(GOOD[1:]))
    with pytest.raises(SystemExit, match="its file_sha256 was"):
        main(["--json", str(source), *arguments])
    assert (folder / "out" / "manifest.json").read_bytes() == before
    next((folder / "out").glob("*.tar")).unlink()
    with pytest.raises(SystemExit, match=r"\.tar: missing, with its 4 records; delete the folder"):
        main(["--json", str(source), *arguments])


def test_shards_that_were_converted_are_not_indexed_as_if_they_were_others(folder, capsys):
    run(folder, GOOD)
    out = folder / "out"
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(SystemExit, match=r"--index is for plain WebDataset tars, and these were converted \(manifest"):
        verify_main(["--index", str(out)])
    (out / "manifest.json").unlink()
    with pytest.raises(SystemExit, match=r"these were converted \("):
        verify_main(["--index", str(out)])
    assert not (out / "manifest.json").exists()
    (out / "manifest.json").write_bytes(before)
    verify_main([str(out)])
    assert "every byte is as it was written" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="there is no such folder"):
        verify_main([str(folder / "gone")])


def test_verify_names_what_is_wrong_and_sets_the_exit_status(folder, capsys):
    run(folder, GOOD)
    out = folder / "out"
    verify_main([str(out), "--decode"])
    assert "every byte is as it was written" in capsys.readouterr().out
    tar = out / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[int(ShardReader(out).index.offsets[0]) + 1] ^= 1
    tar.write_bytes(data)
    with pytest.raises(SystemExit) as exit_:
        verify_main([str(out)])
    assert exit_.value.code == 1
    assert "shard-000000.tar: out-000000000: " in capsys.readouterr().out


def test_only_below_ocr_vqa_another_ending_stands_for_a_missing_file_and_is_counted(folder):
    for place in ("ocr_vqa", "coco"):
        save(folder / "images" / place / "images" / "book.v1.png", "PNG")
    entries = [
        {"id": place, "image": f"{place}/images/book.v1.jpg", "conversations": chat("<image>", "A")}
        for place in ("ocr_vqa", "coco")
    ]
    run(folder, entries, "--max-bad", "0.5")
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["changed"] == {"another ending": 1}
    assert report["bad"] == {"image-missing": 1}
    (record,) = (ShardReader(folder / "out").read(0),)
    assert json.loads(record["json"])["image_info"][0]["name"] == "ocr_vqa/images/book.v1.png"


def test_the_images_of_the_665k_mix_are_read_from_the_downloads_as_they_are(folder, program):
    """A zip per source under its prefix, two of them under one, and a folder."""
    for name in ("vg/VG_100K/1.jpg", "vg2/VG_100K_2/2.jpg", "gqa/images/3.jpg", "plain/ocr_vqa/images/4.jpg"):
        save(folder / "downloads" / name)
    zips = [
        f"{to}={packed(folder / 'downloads' / at, 'zip')}" for to, at in (("vg", "vg"), ("vg", "vg2"), ("gqa", "gqa"))
    ]
    names = ["vg/VG_100K/1.jpg", "vg/VG_100K_2/2.jpg", "gqa/images/3.jpg", "ocr_vqa/images/4.jpg"]
    entries = [{"id": name, "image": name, "conversations": chat("<image>", "A")} for name in names]
    (folder / "mix.json").write_text(json.dumps([*entries, GOOD[1]]))
    places = [text for spec in (*zips, folder / "downloads" / "plain") for text in ("--images", spec)]
    done = program("llava", "--json", folder / "mix.json", "--out", folder / "mix", *places)
    assert done.returncode == 0, done.stderr
    assert "5 records with 4 images (1 of text only)" in done.stdout
    assert [info.records for info in ShardReader(folder / "mix").manifest.shards] == [5]
