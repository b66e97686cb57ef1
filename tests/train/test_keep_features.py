"""A frozen encoder is run once: losses and answers are those without kept features, in every arm and epoch."""

import pytest

from dslight.cli import main
from dslight.components import VisionEncoder
from dslight.recipe.compose import compose, to_yaml


@pytest.fixture
def frozen(recipe, tmp_path):
    """The recipe, whose encoder does not train."""
    values = compose(recipe)
    del values["stage"]["train"]["vision_encoder"]
    file = tmp_path / "frozen.yaml"
    file.write_text(to_yaml(values))
    return file


@pytest.fixture
def seen(monkeypatch):
    """How many views the encoder saw."""
    counts, read = [], VisionEncoder.read

    def counted(self, pixels, *args):
        counts.append(len(pixels))
        return read(self, pixels, *args)

    monkeypatch.setattr(VisionEncoder, "read", counted)
    return counts


def test_arms_and_epochs_read_what_the_first_one_kept(pages, frozen, logged, tmp_path, seen):
    asked = [
        "trainer.max_steps=8",
        "trainer.log_every_n_steps=1",
        f"data.val.pages.root={pages / 'val'}",
        "data.val.pages.limit=4",
    ]
    keep = [f"data.keep_features.folder={tmp_path / 'kept'}"]

    def run(name, *more):
        seen.clear()
        folder = tmp_path / name
        assert main(["fit", str(frozen), f"run_dir={folder}", *asked, *more]) == 0
        questions = (folder / "questions" / "pages.jsonl").read_text()
        return [float(row["train/loss"]) for row in logged(folder)], questions, sum(seen)

    losses, questions, views = run("without")
    first, answers, computed = run("first", *keep)
    assert first == pytest.approx(losses, abs=1e-6)
    assert answers == questions
    assert 0 < computed < views  # of an epoch and a half
    second, answers, computed = run("second", *keep)
    assert second == pytest.approx(losses, abs=1e-6)
    assert answers == questions
    assert computed == 0
    keep.append("trainer.max_steps=2")
    other, *_ = run("workers", *keep, "data.num_workers=1")
    assert other == pytest.approx(losses[:2], abs=1e-6)
    *_, computed = run("low", *keep, "model.stacking={class_path: dslight.components.LowResolution}")
    assert computed == 0  # the base view is the same
    for file in (tmp_path / "kept").rglob("*.feature"):
        file.write_bytes(file.read_bytes()[:-1])
    again, *_, computed = run("damaged", *keep)
    assert again == pytest.approx(losses[:2], abs=1e-6)
    assert computed > 0


def test_an_encoder_that_trains_is_refused(recipe, tmp_path, capsys):
    keep = f"data.keep_features={tmp_path / 'kept'}"
    assert main(["fit", str(recipe), f"run_dir={tmp_path / 'run'}", keep]) != 0
    assert "data.keep_features: the vision encoder trains (stage.train.vision_encoder" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()
