"""Old recipes are rewritten in short forms, and say what they said."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslight.cli import main
from dslight.recipe.compose import compose
from dslight.recipe.errors import RecipeError
from dslight.recipe.migrate import migrate, migrate_files

OLD = """# what it is
name: old
model:
  vision_encoder: {class_path: dslight.components.TimmEncoder, init_args: {name: vit_tiny_patch16_224}}
  projector: {class_path: my_package.nets.Narrow}
  stacking:  # the point of it
    class_path: dslight.components.DeepStackL
    init_args:
      num_stacks: 4  # crops
      operation: {class_path: dslight.components.GatedAdd, init_args: {init: 0.0}}
trainer:
  strategy:
    class_path: dslight.train.Sharded
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/pages/vqa_accuracy}
"""
NEW = """# what it is
name: old
model:
  vision_encoder: {TimmEncoder: {name: vit_tiny_patch16_224}}
  projector: {my_package.nets.Narrow: {}}
  stacking:  # the point of it
    DeepStackL:
      crops: 4  # crops
      operation: {GatedAdd: {init: 0.0}}
trainer:
  strategy:
    Sharded: {}
  callbacks:
    - ModelCheckpoint: {monitor: val/pages/vqa_accuracy}
"""


def test_the_words_change_and_comments_stay():
    assert migrate(OLD) == NEW
    assert migrate(NEW) == NEW


def test_it_says_the_same_afterwards(tmp_path, capsys):
    file = tmp_path / "old.yaml"
    file.write_text(OLD)
    with pytest.warns(FutureWarning, match="crops now"):
        before = compose(file)
    assert main(["migrate", str(file)]) == 0
    assert (file.read_text(), dict(compose(file))) == (NEW, dict(before))
    assert main(["migrate", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: rewritten\n{file}: as it was\n"
    assert list(tmp_path.iterdir()) == [file]


def test_what_would_say_something_else_stays_as_it_is(tmp_path, monkeypatch):
    file = tmp_path / "old.yaml"
    file.write_text(OLD)
    monkeypatch.setattr("dslight.recipe.migrate.migrate", lambda text: text.replace("4", "5"))
    with pytest.raises(RecipeError, match="it would say something else"):
        migrate_files([file])
    assert file.read_text() == OLD
    assert list(tmp_path.iterdir()) == [file]


def test_the_shipped_recipes_are_in_todays_words():
    shipped = (Path(__file__).parents[2] / "recipes").rglob("*.yaml")
    assert [path for path in shipped if migrate(path.read_text()) != path.read_text()] == []
