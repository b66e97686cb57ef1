"""The folder of kept features is bounded, shared, never trusted, and deletes nothing that it did not write."""

import logging
import os
import threading

import pytest
import torch

from dslight.errors import UserError
from dslight.features.store import MARK, FeatureStore, OnFull

KEYS = [f"{i:032x}" for i in range(40)]


def store(folder, limit=10**9, on_full: OnFull = "stop", sets=("a-final",)) -> FeatureStore:
    made = FeatureStore(folder, limit, on_full)
    for name in sets:
        made.open(name, {"encoder": "ViT"})
    return made


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_kept_is_read_bit_by_bit(tmp_path, dtype):
    feature = torch.randn(7, 3).to(dtype)
    store(tmp_path).keep_feature("a-final", KEYS[0], feature)
    found = store(tmp_path).feature("a-final", KEYS[0])
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found, feature)
    assert store(tmp_path).feature("a-final", KEYS[1]) is None
    assert store(tmp_path).feature("b-final", KEYS[0]) is None


def test_views_of_a_picture_are_read_as_said_and_their_keys_name_nothing_else(tmp_path):
    said = {"grid": [1, 2], "size": [30, 40], "keys": KEYS[:3]}
    store(tmp_path).keep_picture(KEYS[0], said)
    assert store(tmp_path).picture(KEYS[0]) == said
    store(tmp_path).keep_picture(KEYS[1], {**said, "keys": ["../../../etc/passwd"]})
    assert store(tmp_path).picture(KEYS[1]) is None


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "empty"])
def test_damaged_files_are_written_again_with_one_line(tmp_path, caplog, damage):
    kept, feature = store(tmp_path), torch.randn(50, 4)
    kept.keep_feature("a-final", KEYS[0], feature)
    (path,) = tmp_path.rglob("*.feature")
    raw = path.read_bytes()
    path.write_bytes({"cut": raw[:-5], "changed": raw[:-5] + b"12345", "other": b"hello" * 50, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert kept.feature("a-final", KEYS[0]) is None
        assert kept.feature("a-final", KEYS[0]) is None
    assert [record.getMessage() for record in caplog.records] == [f"{path}: damaged; its features are computed again"]
    kept.keep_feature("a-final", KEYS[0], feature)
    found = kept.feature("a-final", KEYS[0])
    assert found is not None
    assert torch.equal(found, feature)


def test_a_full_folder_keeps_no_more_and_is_read_as_ever(tmp_path, caplog):
    kept = store(tmp_path, limit=3 * 4096)
    with caplog.at_level(logging.WARNING):
        for key in KEYS[:6]:
            kept.keep_feature("a-final", key, torch.ones(10))
    assert [kept.feature("a-final", key) is not None for key in KEYS[:6]] == [True] * 3 + [False] * 3
    assert len(caplog.records) == 1
    assert "12,288 bytes are in use (data.keep_features.bytes)" in caplog.text


def test_writers_together_stay_below_the_limit(tmp_path):
    """As several processes do: each has counted nothing when it begins."""
    limit = 20 * 4096
    kept = [store(tmp_path, limit) for _ in range(4)]

    def write(number: int) -> None:
        for key in KEYS[number * 10 : number * 10 + 10]:
            kept[number].keep_feature("a-final", key, torch.ones(100))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.rglob("*.feature"))) == 20
    assert int((tmp_path / "used").read_text()) == limit


def test_room_is_made_of_sets_that_nobody_uses_the_longest_unused_first(tmp_path):
    limit = 6 * 4096
    for age, name in ((300, "old-final"), (100, "new-final")):
        kept = store(tmp_path, limit, sets=(name,))
        for key in KEYS[:3]:
            kept.keep_feature(name, key, torch.ones(10))
        os.utime(tmp_path / "sets" / name / "about.json", (1000 - age, 1000 - age))
    mine = tmp_path / "sets" / "old-final" / "notes.txt"
    mine.write_text("mine")
    named_alike = tmp_path / "sets" / "old-final" / "ff" / f"{KEYS[0]}.feature"
    named_alike.parent.mkdir()
    named_alike.write_text("somebody else's")
    kept = store(tmp_path, limit, "replace")
    kept.keep_feature("a-final", KEYS[0], torch.ones(10))
    left = files(tmp_path)
    assert not {name for name in left if name.startswith("sets/old-final/00")}
    assert len({name for name in left if name.startswith("sets/new-final/00")}) == 3
    assert mine.exists()
    assert named_alike.exists()
    for key in KEYS[1:30]:
        kept.keep_feature("a-final", key, torch.ones(10))
    assert kept.full
    assert kept.feature("a-final", KEYS[0]) is not None


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match=r"data\.keep_features\.folder: .* holds other files"):
        FeatureStore(tmp_path, 10**9)
    assert files(tmp_path) == {"thesis.tex"}


def test_what_killed_processes_have_left_goes_when_it_is_old(tmp_path):
    kept = store(tmp_path)
    kept.keep_feature("a-final", KEYS[0], torch.ones(3))
    (path,) = tmp_path.rglob("*.feature")
    old, young = (path.with_name(f".{KEYS[i]}.feature.0123456{i}.tmp") for i in (1, 2))
    for file in (old, young):
        file.write_text("part")
    os.utime(old, (0, 0))
    store(tmp_path).keep_feature("a-final", KEYS[3], torch.ones(3))
    assert young.exists()
    assert not old.exists()
    assert (tmp_path / MARK).exists()


def test_a_folder_that_cannot_be_written_is_read(tmp_path, caplog):
    kept = store(tmp_path)
    kept.keep_feature("a-final", KEYS[0], torch.ones(3))
    (tmp_path / "used").unlink()
    (tmp_path / "used").mkdir()  # as root, permissions hinder nobody
    again = store(tmp_path)
    again.keep_feature("a-final", KEYS[1], torch.ones(3))
    assert again.full
    assert "no more features are kept" in caplog.text
    assert again.feature("a-final", KEYS[0]) is not None
