"""``validate`` scores a checkpoint as ``fit`` did; ``predict`` answers as the validation loop does."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from said import messages

from dslight.checkpoints import load_checkpoint
from dslight.cli import main
from dslight.data.sample import parse_sample
from dslight.data.shards import ShardReader, ShardWriter
from dslight.metrics.functional.vqa import normalize_vqa_m4c
from dslight.recipe.build import build
from dslight.recipe.compose import compose


@pytest.fixture(scope="module")
def trained(fit, tmp_path_factory):
    """A run that has learnt enough to answer different questions differently."""
    return fit(tmp_path_factory.mktemp("trained") / "run", "trainer.max_steps=35", "trainer.limit_val_batches=1")


def answers(run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "questions" / "pages.jsonl").read_text().splitlines()]


def call(verb, run, *more: str) -> list[str]:
    return [verb, str(run.path / "recipe.yaml"), *more]


def test_validate_prints_and_writes_the_scores_of_the_fit(trained, capsys):
    """Of all questions, although the recipe validates on one batch while it trains."""
    right = [answer["prediction"] in answer["references"] for answer in answers(trained)]
    assert sum(right[:8]) / 8 != sum(right) / 24, "one batch would score the same: train for another number of steps"
    assert main(call("validate", trained)) == 0
    scores = trained.json("result.json")["scores"]
    written = trained.json("scores.json")
    assert written["scores"] == scores
    assert written["checkpoint"].endswith("step-00000035.ckpt")
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("val/"))
    assert printed == {name: f"{value:.4f}" for name, value in scores.items()}


def test_a_slice_replaces_the_answers_to_fewer_questions_alone(trained, capsys):
    whole = answers(trained)
    for limit in (5, 3):
        assert main(call("validate", trained, f"data.val.pages.limit={limit}")) == 0
        assert answers(trained) == whole
        assert trained.json("scores.json")["sources"]["pages"]["questions"] == limit
    limited = (trained.path / "questions" / "limited" / "pages.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in limited] == whole[:3]
    assert main(call("validate", trained)) == 0


def test_validate_takes_another_checkpoint(trained, fit, tmp_path):
    """The run of two more steps would score itself; it is asked about the other run's weights."""
    other = fit(tmp_path / "run", "trainer.max_steps=2")
    newest = trained.path / "checkpoints" / "step-00000035.ckpt"
    assert main(call("validate", other, "--ckpt", str(newest))) == 0
    assert other.json("scores.json")["scores"] == trained.json("result.json")["scores"]
    assert other.json("scores.json")["checkpoint"] == str(newest)


@pytest.fixture(scope="module")
def hidden(pages, tmp_path_factory):
    """The questions of the pages, the answers to every second one hidden, one with a prompt of its own."""
    root, reader = tmp_path_factory.mktemp("hidden"), ShardReader(pages / "val")
    with ShardWriter(root) as writer:
        for row in range(6):
            members = reader.read(row % len(reader))
            asked = json.loads(members["json"])["questions"][0]
            asked |= {"question_id": str(100 + row), "type": ""}
            asked |= {"answers": [], "hidden": True} if row % 2 else {}
            asked |= {"suffix": " C3"} if row == 2 else {}
            writer.write(f"h{row}", [members["png"]], {"questions": [asked]})
    return root


def test_several_sources_are_scored_at_once_with_how_they_were_asked(trained, hidden, pages, capsys):
    """Half of one's answers are hidden: its score is of the other half, its submission of all."""
    plain = {answer["question"]: answer["prediction"] for answer in answers(trained)}
    more = {"few": {"root": str(hidden), "benchmark": "vqav2"}, "left_out": {"root": "/nowhere"}}
    assert main(call("validate", trained, f"data.val={json.dumps(more)}", "data.val=[few,pages]")) == 0
    written = trained.json("scores.json")
    assert list(written["sources"]) == ["few", "pages"]
    facts = written["sources"]["few"]
    assert facts["suffix"] == "\nAnswer the question using a single word or phrase."
    assert (facts["benchmark"], facts["protocol"], facts["max_new_tokens"]) == ("vqav2", "lmms_eval", 16)
    assert (facts["questions"], facts["scored"]) == (6, 3)
    assert facts["questions_per_second"] == pytest.approx(6 / facts["seconds"])
    said = capsys.readouterr().out
    assert "few: 6 questions, vqav2 by the protocol lmms_eval, 3 not scored, " in said

    lines = [json.loads(line) for line in (trained.path / "questions" / "few.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == [str(100 + row) for row in range(6)]
    assert [line["score"] is None for line in lines] == [False, True] * 3
    mean = sum(line["score"] for line in lines[::2]) / 3
    assert mean == pytest.approx(written["scores"]["val/few/vqa_accuracy"])
    ends = [line["prompt"].removeprefix(line["question"]) for line in lines]
    assert ends == [facts["suffix"]] * 2 + [" C3"] + [facts["suffix"]] * 3
    assert set(lines[0]) == {
        "question_id", "source", "benchmark", "type", "question", "prompt", "prediction", "references", "score",
        "unresolved", "unfinished", "key",
    }  # fmt: skip
    (file,) = facts["submission"]
    submitted = json.loads((trained.path / file).read_text())
    said = [normalize_vqa_m4c(line["prediction"]) for line in lines]
    assert submitted == [{"question_id": 100 + row, "answer": said[row]} for row in range(6)]
    assert {answer["question"]: answer["prediction"] for answer in answers(trained)} == plain


def test_a_source_says_itself_how_it_is_asked_and_judged(trained, hidden, tmp_path, monkeypatch):
    """Protocol, suffix and limit in place of its benchmark's; and a metric of somebody else's."""
    (tmp_path / "my_metric.py").write_text(
        "from dslight.metrics import ExactMatch\n\nclass Length(ExactMatch):\n"
        "    def score(self, prediction, references, question_type='', options=None):\n"
        "        return float(len(prediction) < self.longest)\n\n"
        "    def __init__(self, longest: int, **kwargs):\n        super().__init__(**kwargs)\n"
        "        self.longest = longest\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    root = str(hidden)
    val = {
        "few": {"root": root, "benchmark": "vqav2", "protocol": "m4c", "suffix": " C3", "max_new_tokens": 1},
        "exact": {"root": root, "metric": {"ExactMatch": {"protocol": "llava"}}},
        "own": {"root": root, "metric": {"my_metric.Length": {"longest": 1}}},
    }
    assert main(call("validate", trained, f"data.val={json.dumps(val)}", "data.val=[few,exact,own]")) == 0
    written = trained.json("scores.json")
    few, exact, own = (written["sources"][name] for name in val)
    assert (few["protocol"], few["suffix"], few["max_new_tokens"], few["questions"]) == ("m4c", " C3", 1, 6)
    assert (exact["protocol"], exact["headline"]) == ("llava", "val/exact/exact_match")
    assert (own["metric"], own["headline"]) == ("Length", "val/own/exact_match")
    lines = [json.loads(line) for line in (trained.path / "questions" / "own.jsonl").read_text().splitlines()]
    scored = [line for line in lines if line["score"] is not None]
    assert [line["score"] for line in scored] == [float(len(line["prediction"]) < 1) for line in scored]


def test_the_loss_on_conversations_stands_beside_the_scores(trained, pages, capsys):
    """A mean over the supervised tokens, the same for any batch size, and on any number of processes, whose last
    batches are filled up.
    """
    talk = {"root": str(pages / "train"), "loss": True, "limit": 7}
    said = []
    for size in (3, 7):
        more = [f"data.val.talk={json.dumps(talk)}", f"data.val_batch_size={size}"]
        assert main(call("validate", trained, *more)) == 0
        said.append(trained.json("scores.json")["scores"])
    assert list(said[0]) == [*trained.json("result.json")["scores"], "val/talk/loss"]
    assert said[0]["val/talk/loss"] == pytest.approx(said[1]["val/talk/loss"], rel=1e-5)
    assert list(trained.json("scores.json")["sources"]) == ["pages"]

    experiment = build(compose(trained.path / "recipe.yaml", [f"data.val={{talk: {json.dumps(talk)}}}"]))
    experiment.data.setup("validate")
    model, data = experiment.model, experiment.data
    load_checkpoint(model, trained.path / "checkpoints" / "step-00000035.ckpt")
    sums = torch.zeros(2, dtype=torch.float64)
    for rank in (0, 1):
        data.trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": 2})
        with torch.inference_mode():
            for batch in data.val_dataloader()[-1]:
                sums += torch.stack([part.double() for part in model.eval().loss(batch)])
    assert said[0]["val/talk/loss"] == pytest.approx(float(sums[0] / sums[1]), rel=1e-5)


def test_a_source_whose_answers_are_all_hidden_has_a_submission_and_no_score(trained, pages, tmp_path, capsys):
    reader = ShardReader(pages / "val")
    with ShardWriter(tmp_path / "test") as writer:
        asked = {"question_id": "7", "question": "B3", "answers": [], "hidden": True, "type": ""}
        writer.write("one", [reader.read(0)["png"]], {"questions": [asked]})
    val = {"test": {"root": str(tmp_path / "test"), "benchmark": "docvqa"}}
    assert main(call("validate", trained, f"data.val={json.dumps(val)}", "data.val=[test]")) == 0
    written = trained.json("scores.json")
    assert written["scores"] == {}
    assert "1 questions, docvqa by the protocol rrc, 1 not scored" in capsys.readouterr().out
    (row,) = json.loads((trained.path / written["sources"]["test"]["submission"][0]).read_text())
    assert row["questionId"] == 7


def test_predict_answers_as_the_validation_loop_did(trained, pages, tmp_path, capsys):
    expected = {(answer["key"], answer["question"]): answer["prediction"] for answer in answers(trained)}
    assert len(set(expected.values())) > 1
    reader = ShardReader(pages / "val")
    for row in range(len(reader)):
        key = reader.locate(row)[1]
        sample = parse_sample(key, reader.read(row))
        (tmp_path / "page.png").write_bytes(sample.images[0])
        question = sample.questions[row].text
        capsys.readouterr()
        asked = ["--image", str(tmp_path / "page.png"), "--question", question, "--max-new-tokens", "16"]
        assert main(call("predict", trained, *asked)) == 0
        assert capsys.readouterr().out.rstrip("\n") == expected[key, question]


def test_predict_reads_no_shards(trained, pages, tmp_path, capsys):
    recipe = (trained.path / "recipe.yaml").read_text().replace(str(pages / "train"), "/no/pages")
    shutil.copy(trained.path / "checkpoints" / "step-00000035.ckpt", tmp_path / "model.ckpt")
    (tmp_path / "recipe.yaml").write_text(recipe)
    asked = ["--question", "B3", "--max-new-tokens", "2"]
    assert main(["predict", str(tmp_path / "recipe.yaml"), *asked, "--ckpt", str(tmp_path / "model.ckpt")]) == 0
    said = capsys.readouterr().out
    assert main(["predict", str(trained.path), *asked]) == 0  # the folder says all the same
    assert capsys.readouterr().out == said


def test_a_picture_that_is_not_there_or_is_none_is_refused(trained, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    for name, said in (("gone.png", "there is no file"), ("text.png", "does not decode")):
        capsys.readouterr()
        assert main(call("predict", trained, "--image", str(tmp_path / name), "--question", "B3")) == 1
        message = messages(capsys.readouterr().err)
        assert message.startswith("dslight: --image")
        assert said in message
        assert name in message


def test_a_question_that_is_too_long_is_refused(trained, capsys):
    assert main(call("predict", trained, "--question", "A1 " * 3000)) == 1
    assert "data.max_length 2048" in capsys.readouterr().err


def test_a_recipe_without_validation_sources_cannot_be_validated(trained, capsys):
    assert main(call("validate", trained, "data.val=null")) == 1
    assert messages(capsys.readouterr().err).startswith("dslight: data.val: names no source")


def test_validate_needs_neither_the_training_data_nor_the_weights_that_training_began_with(trained, tmp_path, capsys):
    away = ["data.train=[nowhere]", f"weights.vision_encoder={tmp_path / 'gone.safetensors'}"]
    assert main(["validate", str(trained.path / "recipe.yaml"), f"run_dir={trained.path}", *away]) == 0
    assert "val/pages/vqa_accuracy" in capsys.readouterr().out
