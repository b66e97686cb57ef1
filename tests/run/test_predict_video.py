"""``dslight predict --video``: the model is shown the frames that a validation would show it."""

import sys
from pathlib import Path

import pytest
from said import messages

from dslight.cli import main
from dslight.data.video import Sampling
from dslight.processor import Processor

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from clips import number, picture, write_clip
from PIL import Image

TIMES = list(range(0, 2400, 100))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", TIMES, 2400)


@pytest.fixture(scope="module")
def run(fit, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("video") / "run", "trainer.max_steps=1", "trainer.limit_val_batches=0")


@pytest.fixture
def asked(monkeypatch):
    """What the model was shown, question by question."""
    seen, ask = [], Processor.ask

    def noted(self, question, images=(), videos=None):
        seen.append(list(images))
        return ask(self, question, images, videos)

    monkeypatch.setattr(Processor, "ask", noted)
    return seen


def predict(run, *options: object) -> int:
    given = ["--question", "A1", "--max-new-tokens", "1", *map(str, options)]
    return main(["predict", str(run.path / "recipe.yaml"), *given])


def test_the_frames_are_those_that_shards_of_the_video_hold(run, clip, asked, tmp_path):
    still = tmp_path / "still.png"
    Image.fromarray(picture(200)).save(still)
    assert predict(run, "--video", clip) == 0
    assert predict(run, "--video", clip, "--frames", 4, "--tile", "2x2") == 0
    assert predict(run, "--video", clip, "--frames", 3, "--tile", "none", "--image", still) == 0
    assert asked[0] == Sampling(6, (2, 3)).images(clip)
    assert asked[1] == Sampling(4, (2, 2)).images(clip)
    assert asked[2] == [still.read_bytes(), *Sampling(3, None).images(clip)]
    (tmp_path / "frame.jpg").write_bytes(asked[2][1])
    assert number(Image.open(tmp_path / "frame.jpg")) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--video", "gone.mp4"], "--video: there is no file gone.mp4"),
        (["--video", __file__], "does not decode"),
        (["--video", __file__, "--frames", "9", "--tile", "2x3"], "--tile: 2x3 has room for 6 frames; --frames: 9"),
        (["--frames", "6"], "--frames, --tile: say what is made of a --video, and there is none"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_built(run, options, said, asked, capsys):
    assert predict(run, *options) == 1
    message = messages(capsys.readouterr().err)
    assert message.startswith("dslight: --")
    assert said in message
    assert asked == []


def test_without_pyav_it_says_what_to_install(run, clip, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    assert predict(run, "--video", clip) == 1
    assert "reading videos needs PyAV; pip install 'dslight[video]'" in capsys.readouterr().err
