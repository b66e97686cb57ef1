"""Parquet and arrow as the `datasets` library writes them become shards; rows are read where they lie."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from sources import chat, encode, environment, shard_files

from data_prep import rows
from data_prep.entries import SourceError
from data_prep.rows import Table, Tables, arrow
from data_prep.tables import TableEntry, condition, files_of, image_columns, main, open_tables
from dslight.data.sample import parse_sample
from dslight.data.shards import ShardReader, verify

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()
Image, Value = datasets.Image(), datasets.Value
PICTURES = [encode(np.random.default_rng(i).integers(0, 255, (12, 10, 3), dtype=np.uint8)) for i in range(6)]


def struct(i: int) -> dict[str, object]:
    return {"bytes": PICTURES[i], "path": f"{i}.png"}


def parts(*content: dict[str, object]) -> list[dict[str, object]]:
    return [{"type": "text", "text": None, "index": None, **part} for part in content]


ONEVISION = [
    {"id": f"o{i}", "image": struct(i), "conversations": chat(f"<image>\nQ{i}", f"A{i}"), "data_source": "s"}
    for i in range(5)
] + [{"id": "o5", "image": None, "conversations": chat("Q5", "A5"), "data_source": "s"}]
FINEVISION = [
    {
        "images": [struct(j) for j in range(i)],
        "texts": [{"user": "Q", "assistant": f"A{i}"}, {"user": "R", "assistant": "B"}],
        "source": "s", "relevance_ratings": [i, 5], "relevance_min": i or None, "image_correspondence_min": i,
    }
    for i in range(4)
]  # fmt: skip
SHOWN = [{"text": "Compare"}, {"type": "image", "index": 1}, {"type": "image", "index": 0}]
VSFT = [
    {
        "messages": [
            {"role": "user", "content": parts(*SHOWN)},
            {"role": "assistant", "content": parts({"text": "Both."})},
        ],
        "images": [struct(0), struct(1)],
    }
]  # fmt: skip
PAIRS = [{"image": struct(0), "caption": "A page."}]
ASKED = [{"picture": struct(2), "question": "Q", "answer": "A"}]
IMAGES = datasets.List(Image)
TEXT = datasets.Features({"user": Value("string"), "assistant": Value("string")})
FEATURES = {
    "onevision": {
        "id": Value("string"), "image": Image, "data_source": Value("string"),
        "conversations": datasets.List({"from": Value("string"), "value": Value("string")}),
    },
    "finevision": {
        "images": IMAGES, "texts": datasets.List(TEXT), "source": Value("string"), "relevance_min": Value("int64"),
        "relevance_ratings": datasets.List(Value("int64")), "image_correspondence_min": Value("int64"),
    },
    "vsft": {
        "messages": datasets.List({"role": Value("string"), "content": datasets.List(
            {"type": Value("string"), "text": Value("string"), "index": Value("int64")})}),
        "images": IMAGES,
    },
    "captions": {"image": Image, "caption": Value("string")},
    "questions": {"picture": Image, "question": Value("string"), "answer": Value("string")},
}  # fmt: skip
ROWS = {"onevision": ONEVISION, "finevision": FINEVISION, "vsft": VSFT, "captions": PAIRS, "questions": ASKED}


def dataset(form: str):
    return datasets.Dataset.from_list(ROWS[form], features=datasets.Features(FEATURES[form]))


def converted(out: Path, *arguments: object) -> tuple[list, dict]:
    main([*map(str, arguments), "--out", str(out), "--workers", "1"])
    reader = ShardReader(out, check="full")
    samples = [parse_sample(reader.index.key(row), reader.read(row)) for row in range(len(reader))]
    return samples, json.loads((out / "report.json").read_text())


EXPECTED = {
    "onevision": [([i], [f"<image>\nQ{i}", f"A{i}"]) for i in range(5)] + [([], ["Q5", "A5"])],
    "finevision": [
        (list(range(i)), ["<image>\n" * i + "Q", f"A{i}", "R", "B"]) for i in range(4)
    ],
    "vsft": [([1, 0], ["Compare<image>\n<image>", "Both."])],
    "captions": [([0], ["<image>\n", "A page."])],
    "questions": [([2], ["<image>\nQ", "A"])],
}  # fmt: skip


@pytest.mark.parametrize("written", ["parquet", "arrow"])
@pytest.mark.parametrize("form", EXPECTED)
def test_the_forms_of_hugging_face_are_read_with_all_their_pictures(form, written, tmp_path):
    if written == "parquet":
        source = tmp_path / "x.parquet"
        dataset(form).to_parquet(str(source))
    else:
        source = tmp_path / "saved"
        dataset(form).save_to_disk(str(source))
    samples, report = converted(tmp_path / "out", source)
    found = [([PICTURES.index(image) for image in s.images], [turn.text for turn in s.turns]) for s in samples]
    assert found == EXPECTED[form]
    assert report["bad"] == {}
    assert list(verify(tmp_path / "out")) == []


def test_the_number_of_processes_and_where_files_end_change_no_byte(tmp_path):
    found = dataset("onevision")
    found.to_parquet(str(tmp_path / "one" / "all.parquet"), batch_size=2)
    for number, part in enumerate((range(4), range(4, 6))):
        found.select(part).to_parquet(str(tmp_path / "two" / f"part-{number}.parquet"))
    written = []
    for source, workers in (("one", 1), ("two", 2)):
        out = tmp_path / f"{source}-out"
        main(
            [
                str(tmp_path / source),
                "--out",
                str(out),
                "--name",
                "n",
                "--shard-entries",
                "4",
                "--workers",
                str(workers),
            ]
        )
        files = shard_files(out)
        files.pop("manifest.json")  # names its sources
        written.append(files)
    assert len([name for name in written[0] if name.endswith(".tar")]) == 2
    assert written[0] == written[1]


def test_ratings_are_filters_and_what_they_leave_out_is_counted(tmp_path, capsys):
    dataset("finevision").to_parquet(str(tmp_path / "x.parquet"))
    samples, report = converted(tmp_path / "out", tmp_path / "x.parquet", "--where", "relevance_min>=2")
    assert [len(sample.images) for sample in samples] == [2, 3]
    assert report["left_out"] == 2
    assert report["unread"] == {"source": 2}
    assert "left out by --where: 2" in capsys.readouterr().out
    assert list(map(condition("a=1"), (1, 2, None))) == [True, False, False]
    assert condition("name != 'x'")("y")


def test_what_is_wrong_with_a_table_is_said_in_a_sentence(tmp_path):
    path = tmp_path / "x.parquet"
    dataset("finevision").to_parquet(str(path))
    out = ["--out", str(tmp_path / "out"), "--workers", "1"]
    for arguments, message in (
        ([str(tmp_path / "none.parquet")], "names no .parquet or .arrow file"),
        ([str(path), "--where", "rating>1"], "no column rating, but images, texts"),
        ([str(path), "--where", "rating"], "as in relevance_min>=4"),
        ([str(path), "--where", "source>1"], "cannot be compared"),
        ([str(path), "--where", "source==1"], "source holds texts .*, which cannot be compared with 1, .*source=='1'"),
        ([str(path), "--where", "relevance_min==many"], "relevance_min holds numbers .*compared with 'many', texts"),
        ([str(path), "--where", "relevance_min==null"], "relevance_min holds numbers .*compared with None, nothing"),
        ([str(path), "--where", "relevance_min>9"], "leaves out all 4 rows"),
        ([str(path), "--image-column", "photo"], "no column photo"),
    ):
        with pytest.raises((SourceError, SystemExit), match=message):
            main([*arguments, *out])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-9])
    (tmp_path / "page.arrow").write_bytes(b"<html>not found</html>")
    for name in ("cut.parquet", "page.arrow"):
        with pytest.raises(SourceError, match=rf"{name}: cannot be read"):
            main([str(tmp_path / name), *out])
    whole = bytearray(path.read_bytes())
    whole[4:60] = bytes([255]) * 56
    (tmp_path / "damaged.parquet").write_bytes(whole)
    with pytest.raises(SystemExit, match=r"damaged\.parquet: cannot be read"):
        main([str(tmp_path / "damaged.parquet"), *out])


def test_columns_of_pictures_are_found_by_their_type_and_several_are_named(tmp_path):
    pa = arrow()
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    assert image_columns(pa.schema({"x": pa.string(), "foto": picture})) == ("foto",)
    assert image_columns(pa.schema({"jpg": pa.binary(), "blob": pa.binary()})) == ("jpg",)
    several = pa.schema({"image_1": picture, "image_2": picture})
    with pytest.raises(SourceError, match=r"image_1, image_2.*--image-column"):
        image_columns(several)
    assert image_columns(several, ["image_2", "image_1"]) == ("image_2", "image_1")
    row = {"image_1": struct(1), "image_2": struct(2), "question": "Q", "answer": "A"}
    assert list(TableEntry(("image_2", "image_1"))(row).images) == [PICTURES[2], PICTURES[1]]


def test_one_bad_row_stops_nothing(tmp_path):
    rows = [dict(row) for row in ONEVISION]
    rows[1]["image"] = {"bytes": b"<html>", "path": None}
    rows[2]["image"] = None
    rows[3]["conversations"] = None
    datasets.Dataset.from_list(rows, features=datasets.Features(FEATURES["onevision"])).to_parquet(
        str(tmp_path / "x.parquet")
    )
    samples, report = converted(tmp_path / "out", tmp_path / "x.parquet", "--max-bad", "1")
    assert [sample.id for sample in samples] == ["o0", "o4", "o5"]
    assert report["bad"] == {"image-format": 1, "marks": 1, "no-text": 1}


@pytest.mark.parametrize("where", [[], ["--where", "n>=0"]])
def test_a_text_that_is_not_utf8_costs_its_row_alone(where, tmp_path):
    pa = arrow()
    answers = pa.array(["A", b"caf" + b"\xe9", "B"], pa.binary()).view(pa.string())
    rows = {"question": ["Q"] * 3, "answer": answers, "n": [0, 1, 2]}
    pa.parquet.write_table(pa.table(rows), tmp_path / "x.parquet")
    samples, report = converted(tmp_path / "out", tmp_path / "x.parquet", "--max-bad", "1", *where)
    assert [sample.turns[1].text for sample in samples] == ["A", "B"]
    assert report["bad"] == {"no-text": 1}


def test_what_img2dataset_writes_as_parquet_is_read(tmp_path):
    pa = arrow()
    rows = {"caption": ["A page."], "key": ["0"], "url": ["u"], "status": ["success"], "jpg": [PICTURES[0]]}
    pa.parquet.write_table(pa.table(rows), tmp_path / "00000.parquet")
    ((sample,), _) = converted(tmp_path / "out", tmp_path / "00000.parquet")
    assert (sample.images, sample.turns[1].text) == ((PICTURES[0],), "A page.")


def test_tables_are_read_through_fsspec(tmp_path):
    import fsspec

    dataset("onevision").to_parquet(str(tmp_path / "x.parquet"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/tables/x.parquet", (tmp_path / "x.parquet").read_bytes())
    assert files_of(["memory://tables"]) == files_of(["memory://tables/*.parquet"]) == ["memory:///tables/x.parquet"]
    samples, _ = converted(tmp_path / "out", "memory://tables/x.parquet")
    assert [len(sample.images) for sample in samples] == [1] * 5 + [0]
    assert Table.open(f"file://{tmp_path}/x.parquet").digest == Table.open(str(tmp_path / "x.parquet")).digest


def test_a_finished_conversion_stays_and_is_refused_for_another_source(tmp_path, capsys):
    dataset("captions").to_parquet(str(tmp_path / "x.parquet"))
    converted(tmp_path / "out", tmp_path / "x.parquet")
    converted(tmp_path / "out", tmp_path / "x.parquet")
    assert "finished already" in capsys.readouterr().out
    dataset("onevision").to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(SystemExit, match="finished by another job"):
        converted(tmp_path / "out", tmp_path / "x.parquet")


READ = """
import resource, sys
from data_prep.rows import Table
table = Table.open(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(len(row["image"]["bytes"]) for row in table.read(0, table.rows))
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_a_row_group(tmp_path):
    pa = arrow()
    rng, size, rows = np.random.default_rng(0), 200_000, 1000
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    with pa.parquet.ParquetWriter(tmp_path / "x.parquet", pa.schema({"image": picture})) as writer:
        images = [{"bytes": rng.bytes(size), "path": None} for _ in range(rows)]
        writer.write_table(pa.table({"image": pa.array(images, picture)}), row_group_size=rows)
    assert pa.parquet.ParquetFile(tmp_path / "x.parquet").num_row_groups == 1
    call = [sys.executable, "-c", READ, str(tmp_path / "x.parquet")]
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=environment())
    count, megabytes = map(int, done.stdout.split())
    assert count == size * rows
    assert megabytes < 60  # of 200


@pytest.fixture
def unpacked(monkeypatch):
    """The rows that are unpacked, by the numbers of their batches' first."""
    found = []

    class Counting(rows._Reader):
        def _begin(self, group):
            super()._begin(group)
            pieces, self._pieces = self._pieces, None
            start = self._at
            self._pieces = (found.append(start + i * rows._ROWS) or piece for i, piece in enumerate(pieces))

    monkeypatch.setattr(rows, "_Reader", Counting)
    rows._readers.clear()
    return found


def one_group(path, count):
    pa = arrow()
    pa.parquet.write_table(pa.table({"id": range(count), "image": [b"%d" % i for i in range(count)]}), path)
    return Table.open(str(path))


def test_a_row_group_is_unpacked_once_by_a_process_that_reads_shard_after_shard(tmp_path, unpacked):
    table = one_group(tmp_path / "x.parquet", 200)
    read = [one for _, batch in Tables((table,)).batches(7, set()) for one in numbers(batch)]
    assert read == list(range(200))
    assert unpacked == list(range(0, 200, rows._ROWS))
    assert numbers(table.read(3, 5)) == [3, 4]
    assert unpacked[13:] == [0]


def test_cells_are_found_in_any_order_and_the_columns_of_a_row_are_unpacked_together(tmp_path, unpacked):
    table = one_group(tmp_path / "x.parquet", 60)
    for row in (50, 3, 59, 0, 17):
        assert (table.cell(row, "image"), table.cell(row, "id")) == (b"%d" % row, row)
    assert unpacked == [0, 16, 32, 48]


def test_a_forked_process_reads_from_places_of_its_own(tmp_path):
    table = one_group(tmp_path / "x.parquet", 200)
    here = table.read(0, 200)
    first = numbers(islice(here, 20))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(ids, (table,)) == list(range(200))
    assert first + numbers(here) == list(range(200))


def ids(table):
    return numbers(table.read(0, table.rows))


def numbers(found):
    return [row["id"] for row in found]


def test_a_worker_reads_from_its_row_on(tmp_path):
    dataset("onevision").to_parquet(str(tmp_path / "x.parquet"), batch_size=2)
    tables, _ = open_tables([str(tmp_path / "x.parquet")] * 2)
    assert isinstance(tables, Tables)
    assert len(tables) == 12
    ids = [row["id"] for row in tables]
    for size in (1, 4, 5, 12, 20):
        batches = {number: numbers(batch) for number, batch in tables.batches(size, set())}
        assert [one for number in sorted(batches) for one in batches[number]] == ids
    assert [number for number, _ in tables.batches(4, {1})] == [0, 2]
    assert os.path.exists(tables.tables[0].url)
