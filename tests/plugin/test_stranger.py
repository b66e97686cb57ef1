"""A stranger's encoder, in a package of its own, goes through the whole command line; dslight does not know of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import processes
import pytest
from processes import completed
from stranger.encoder import Dinov2Encoder

from data_prep import digits
from dslight.components import VisionEncoder
from dslight.testing import VisionEncoderContract

HERE = Path(__file__).parent


class TestDinov2Encoder(VisionEncoderContract):
    def make(self) -> VisionEncoder:
        return Dinov2Encoder(image_size=16, patch_size=4, hidden_size=32, depth=3, heads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory with data; the recipe lies elsewhere."""
    root = tmp_path_factory.mktemp("elsewhere")
    digits.main(["--out", str(root / "data"), "--train-pages", "8", "--val-pages", "2"])
    pages, _ = digits.draw_pages(1, "val", digits.np.random.default_rng(0))
    (root / "page.png").write_bytes(digits.png(pages[0]))
    return root


def dslight(folder: Path, verb: str, *arguments: str) -> str:
    """What ``dslight VERB recipe.yaml ...`` prints."""
    done = completed(processes.dslight, [verb, str(HERE / "recipe.yaml"), *arguments], folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def unknown(arguments: list[str]) -> None:
    """``dslight`` in a process that has not seen the package yet."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        del sys.modules[name]
    processes.dslight(arguments)


def test_plan_counts_the_stranger_s_encoder_in_a_process_that_knows_of_no_other(folder):
    done = completed(unknown, ["plan", str(HERE / "recipe.yaml"), "--json"], folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    plan = json.loads(done.stdout)
    encoder = next(part for part in plan["parts"] if part["name"] == "vision_encoder")
    real = Dinov2Encoder(image_size=16, patch_size=4, hidden_size=32, depth=3, heads=2)
    assert encoder["kind"] == "Dinov2Encoder"
    assert encoder["parameters"] == sum(parameter.numel() for parameter in real.parameters())
    assert encoder["forward_flops"] > 0
    assert not (folder / "runs").exists()


def test_it_trains_and_answers(folder):
    dslight(folder, "fit")
    run = folder / "runs" / "stranger"
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 2
    assert len((run / "questions" / "pages.jsonl").read_text().splitlines()) == 2 * digits.QUESTIONS
    answer = dslight(folder, "predict", "--image", "page.png", "--question", "A1", "--max-new-tokens", "5")
    assert answer.count("\n") == 1
    assert len(answer.split()) <= 5


def test_it_can_train_too_and_its_weights_load_into_its_own_class(folder):
    dslight(
        folder,
        "fit",
        "run_dir=runs/trained",
        "stage.train.vision_encoder.lr=1e-3",
        "model.stacking.init_args.tap=final",
    )
    encoder = Dinov2Encoder(image_size=16, patch_size=4, hidden_size=32, depth=3, heads=2)
    before = [parameter.clone() for parameter in encoder.parameters()]
    encoder.load_weights(folder / "runs" / "trained" / "weights" / "vision_encoder.safetensors")
    assert any(not a.equal(b) for a, b in zip(before, encoder.parameters(), strict=True))


def test_a_misspelt_argument_of_the_stranger_s_class_is_named(folder):
    with pytest.raises(AssertionError, match=r"model\.vision_encoder\.init_args\.hiden_size"):
        dslight(folder, "plan", "model.vision_encoder.init_args.hiden_size=3")
