"""The adapter for VLMEvalKit, driven by a stand-in of that kit."""

import importlib
import io
import sys
from pathlib import Path

import pytest
from PIL import Image
from processes import completed


@pytest.fixture
def kit(monkeypatch):
    """The adapter's module with the stand-in below it."""
    _forget(monkeypatch)
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "standin"))
    yield importlib.import_module("dslight.harness.vlmevalkit")
    _forget(monkeypatch)


def _forget(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "vlmeval"] + ["dslight.harness.vlmevalkit"]:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_registered_model_gives_the_answers_that_validation_gets(kit, run, docs, validated, tmp_path):
    from vlmeval.config import supported_VLM

    kit.register("my_arm", recipe=str(run), max_new_tokens=16)
    model = supported_VLM["my_arm"]()
    assert not model.use_custom_prompt("MMBench_DEV_EN")
    for i, doc in enumerate(docs[:6]):
        path = tmp_path / f"{i}.png"
        doc["picture"].convert("RGB").save(path)
        message = [{"type": "image", "value": str(path)}, {"type": "text", "value": doc["q"]}]
        assert model.generate(message, dataset="pages") == validated[doc["id"]]


def test_pictures_stand_where_the_message_has_them_and_videos_are_frames(kit, run, docs, tmp_path):
    from dslight.data.video import Sampling

    model = kit.DSLight(recipe=str(run), max_new_tokens=6, frames=4, tile="2x2")
    asked = []
    ask = model.processor.rows.__class__.ask

    def heard(rows, sample, question, valid, *more):
        asked.append((sample, question))
        return ask(rows, sample, question, valid, *more)

    model.processor.rows.__class__.ask = heard
    try:
        path = tmp_path / "a.png"
        docs[0]["picture"].convert("RGB").save(path)
        model.generate(
            [
                {"type": "text", "value": "First "},
                {"type": "image", "value": str(path)},
                {"type": "text", "value": "then "},
                {"type": "image", "value": str(path)},
            ]
        )
        assert asked[-1][1].text == "First <image>\nthen <image>\n"
        assert asked[-1][0].images == (path.read_bytes(),) * 2
        clip = tmp_path / "clip"
        clip.mkdir()
        for i in range(8):
            Image.new("RGB", (32, 32), (30 * i, 0, 0)).save(clip / f"{i}.png")
        model.generate([{"type": "video", "value": str(clip)}, {"type": "text", "value": "What?"}])
        (shown,) = asked[-1][0].images
        assert Image.open(io.BytesIO(shown)).size == (1344, 1344)
        assert (shown,) == tuple(Sampling.of(4, "2x2").images(clip))
    finally:
        model.processor.rows.__class__.ask = ask
    with pytest.raises(TypeError, match="message: a part of type 'audio'; dslight takes text, pictures and videos"):
        model.generate_inner([{"type": "audio", "value": "a.wav"}])


def without_the_kit(run: Path) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "vlmeval"] + ["dslight.harness.vlmevalkit"]:
        sys.modules.pop(name, None)
    sys.modules["vlmeval"] = None  # type: ignore[assignment]  # as where it is not installed
    adapter = importlib.import_module("dslight.harness.vlmevalkit")
    with pytest.raises(ImportError) as said:
        adapter.register("my_arm", recipe=str(run))
    print(said.value)


def test_it_is_importable_without_the_kit_and_says_what_is_missing(run, tmp_path):
    done = completed(without_the_kit, run, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "VLMEvalKit is not installed" in done.stdout
