"""The adapter for lmms-eval, driven by a stand-in of that harness; and by the real one, where it is installed."""

import importlib
import importlib.metadata
import importlib.util
import io
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import completed

from dslight.recipe.compose import compose

HERE = Path(__file__).parent


@pytest.fixture
def harness(monkeypatch):
    """The adapter's module with the stand-in below it."""
    _forget(monkeypatch)
    monkeypatch.syspath_prepend(str(HERE / "standin"))
    yield importlib.import_module("dslight.harness.lmms_eval")
    _forget(monkeypatch)


def _forget(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lmms_eval"] + ["dslight.harness.lmms_eval"]:
        monkeypatch.delitem(sys.modules, name, raising=False)


def text(doc):
    return doc["q"]


def pictures(doc):
    return [doc["picture"].convert("RGB")]


def right(doc, reply):
    return float(reply in doc["a"])


def without_the_harness(run: Path) -> None:
    sys.modules["lmms_eval"] = None  # type: ignore[assignment]  # as where it is not installed
    sys.modules.pop("dslight.harness.lmms_eval", None)
    adapter = importlib.import_module("dslight.harness.lmms_eval")
    with pytest.raises(ImportError) as said:
        adapter.DSLight(recipe=str(run))
    print(said.value)


def test_it_is_importable_without_the_harness_and_says_what_is_missing(run, tmp_path):
    done = completed(without_the_harness, run, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lmms-eval is not installed" in done.stdout


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_task_gets_the_answers_that_validation_gets(harness, run, docs, validated, batch_size):
    from lmms_eval.evaluator import evaluate

    lm = harness.DSLight.create_from_arg_string(f"recipe={run}", {"batch_size": batch_size, "max_batch_size": None})
    assert isinstance(lm, sys.modules["lmms_eval.api.model"].lmms)
    replies, score = evaluate(lm, "pages", docs, text, pictures, right, {"max_new_tokens": 16, "until": ["\n\n"]})
    assert replies == [validated[doc["id"]] for doc in docs]
    assert len(set(replies)) > 3
    assert score == sum(validated[doc["id"]] in doc["a"] for doc in docs) / len(docs)


def test_a_task_may_stop_answers_and_sample(harness, run, docs):
    from lmms_eval.evaluator import evaluate

    lm = harness.DSLight(recipe=str(run), batch_size=4)
    whole, _ = evaluate(lm, "pages", docs, text, pictures, right, {"max_new_tokens": 12})
    stop = max(whole, key=len)[1]
    cut, _ = evaluate(lm, "pages", docs, text, pictures, right, {"max_new_tokens": 12, "until": stop})
    assert cut == [reply.split(stop)[0].rstrip() for reply in whole]
    assert cut != whole
    torch.manual_seed(0)
    sampled, _ = evaluate(lm, "pages", docs, text, pictures, right, {"max_new_tokens": 12, "temperature": 5.0})
    assert sampled != whole


def test_the_harness_own_until_cuts_no_answer(harness, run):
    """It is written into every task that names none; a task's own stays."""
    lm = harness.DSLight(recipe=str(run))
    assert lm._known({"until": ["\n\n"]})["until"] == []
    assert lm._known({"until": ["\n\n", "User:"]})["until"] == ["\n\n", "User:"]
    assert lm._known({"until": "\n"})["until"] == ["\n"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_video_is_shown_as_predict_shows_it(harness, run, tmp_path, batch_size):
    from lmms_eval.evaluator import evaluate

    from dslight.data.video import Sampling

    folder = tmp_path / "clip"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (64, 64), (30 * i, 90, 200 - 20 * i)).save(folder / f"{i}.png")
    videos = [folder]
    if importlib.util.find_spec("av") is not None:
        videos.append(_clip(tmp_path / "clip.mp4"))
    lm = harness.DSLight(recipe=str(run), batch_size=batch_size, frames="4", tile="2x2")
    for video in videos:
        replies, _ = evaluate(
            lm, "clips", [{"q": "What?", "a": []}] * 2, text, lambda doc, video=video: [str(video)], right,
            {"max_new_tokens": 6},
        )  # fmt: skip
        (mosaic,) = Sampling.of(4, "2x2").images(video)
        shown, _ = evaluate(
            lm, "clips", [{"q": "What?", "a": []}], text, lambda doc, data=mosaic: [Image.open(io.BytesIO(data))],
            right, {"max_new_tokens": 6},
        )  # fmt: skip
        assert replies == shown * 2
    with pytest.raises(FileNotFoundError, match=r"clips/0: its doc_to_visual names .*gone\.mp4"):
        evaluate(lm, "clips", [{"q": "?", "a": []}], text, lambda doc: [str(tmp_path / "gone.mp4")], right, {})
    with pytest.raises(ValueError, match="frames: a number is needed, got 'all'"):
        harness.DSLight(recipe=str(run), frames="all")


def _clip(path):
    import av
    import numpy as np

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), i * 30, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


@pytest.mark.parametrize("batch_size", [1, 5])
def test_likelihoods_are_those_of_the_continuation_alone(harness, run, docs, batch_size):
    from lmms_eval.evaluator import evaluate, likelihoods

    lm = harness.DSLight(recipe=str(run), batch_size=batch_size)
    docs = docs[1:]  # the answer to the first begins with a token that is no text
    (greedy, *_), _ = evaluate(lm, "pages", docs[:1], text, pictures, right, {"max_new_tokens": 3})
    choices = [greedy, "3", "31 07"]
    found = likelihoods(lm, "pages", docs[:2], text, pictures, choices)
    assert found[0][1] is True
    assert any(not same for _, same in found)
    for i, (value, _) in enumerate(found):
        doc, choice = docs[i // 3], choices[i % 3]
        assert value == pytest.approx(_by_hand(lm, doc, choice), abs=1e-4)


def _by_hand(lm, doc, choice) -> float:
    """One token after the other, each predicted from all that is before it."""
    file = io.BytesIO()
    pictures(doc)[0].save(file, format="png")
    prompt = lm.processor.ask(doc["q"], file.getvalue())
    total = 0.0
    for token in lm.processor.rows.tokenizer(choice, add_special_tokens=False).input_ids:
        with torch.inference_mode():
            logits = lm.vlm(prompt)[0, -1]
        total += float(torch.log_softmax(logits.double(), dim=0)[token])
        one = torch.ones(1, 1, dtype=torch.int64)
        prompt.input_ids = torch.cat([prompt.input_ids, one * token], dim=1)
        prompt.attention_mask = torch.cat([prompt.attention_mask, one], dim=1)
        prompt.visual_mask = torch.cat([prompt.visual_mask, one < 1], dim=1)
        if prompt.segments is not None:
            prompt.segments = torch.cat([prompt.segments, prompt.segments[:, -1:]], dim=1)
    return total


def test_a_live_model_is_left_as_it_was(harness, run, docs, validated):
    from lmms_eval.evaluator import evaluate

    from dslight.run.evaluate import trained

    experiment = trained(compose(run / "recipe.yaml", []))
    model = experiment.model.train()
    model.vision_encoder.eval()
    before = {name: module.training for name, module in model.named_modules()}
    lm = harness.DSLight.live(model, experiment.data, batch_size=8)
    replies, _ = evaluate(lm, "pages", docs, text, pictures, right, {"max_new_tokens": 16})
    lm.clean()
    assert {name: module.training for name, module in model.named_modules()} == before
    assert lm.vlm is model
    assert replies == [validated[doc["id"]] for doc in docs]


def test_what_it_cannot_take_is_named(harness, run, docs):
    from lmms_eval.evaluator import evaluate

    with pytest.raises(ValueError, match="conv_template: dslight takes recipe, ckpt, batch_size"):
        harness.DSLight(recipe=str(run), conv_template="vicuna_v1")
    with pytest.raises(ValueError, match="--batch_size: a number of questions is needed, got 'auto'"):
        harness.DSLight(recipe=str(run), batch_size="auto")
    lm = harness.DSLight(recipe=str(run))
    with pytest.raises(TypeError, match="pages/0: its doc_to_visual gave a dict; dslight takes pictures and videos"):
        evaluate(lm, "pages", docs[:1], text, lambda doc: [{"audio": 1}], right, {})


def test_the_package_announces_itself(harness):
    (point,) = [p for p in importlib.metadata.entry_points(group="lmms_eval.models") if p.name == "dslight"]
    assert point.value == "dslight.harness.lmms_eval:manifest"
    made = harness.manifest()
    module, name = made.simple_class_path.rsplit(".", 1)
    assert getattr(importlib.import_module(module), name) is harness.DSLight
