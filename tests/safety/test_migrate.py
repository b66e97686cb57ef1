"""``dslight migrate`` of what is no recipe, and beside what it has not written."""

from __future__ import annotations

import time

import pytest

from dslight.cli import main
from dslight.errors import UserError
from dslight.recipe.migrate import migrate_files

OLD = "name: a\nmodel:\n  stacking:\n    class_path: dslight.components.DeepStackL\n    init_args: {num_stacks: 4}\n"


@pytest.mark.promise("a wrong type in a file is a sentence", "files that migrate is given")
@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\xff\xfe", "a: 1\n".encode("utf-16"), b"a: \xff"])
def test_a_file_that_is_no_text(content, tmp_path, outcome):
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.yaml") as refused:
        migrate_files([file])
    assert file.read_bytes() == content
    outcome(refused)


@pytest.mark.promise("what is read has a limit", "a file of 3 MB that migrate is given")
def test_a_file_that_is_too_large_to_be_a_recipe(tmp_path, outcome):
    file = tmp_path / "a.yaml"
    file.write_text("stacking:\n" + "    DeepStackL:\n" * 200_000)
    start = time.monotonic()
    with pytest.raises(UserError, match="DSLIGHT_MAX_RECIPE_BYTES") as refused:
        migrate_files([file])
    assert time.monotonic() - start < 5
    outcome(refused)


@pytest.mark.promise("only what dslight wrote is deleted", "a file, or a link, where migrate tries its text out")
def test_what_lies_beside_a_recipe_stays(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    (tmp_path / ".a.migrated.yaml").symlink_to(tmp_path / "letter.txt")
    (tmp_path / "a.yaml").write_text(OLD)
    assert main(["migrate", str(tmp_path / "a.yaml")]) == 0
    assert (tmp_path / "letter.txt").read_text() == "mine"
    assert {file.name for file in tmp_path.iterdir()} == {"letter.txt", ".a.migrated.yaml", "a.yaml"}
    assert "DeepStackL: {" in (tmp_path / "a.yaml").read_text()
