"""``diagnostics`` in a recipe: measured behind a validation, logged, and kept in the run's folder."""

import io
import json
import shutil

import pytest
import torch
from PIL import Image
from said import messages

from dslight.cli import main
from dslight.data.conversation import template
from dslight.diagnostics.callback import Diagnose
from dslight.recipe.build import build
from dslight.recipe.compose import compose
from dslight.run.diagnose import Questions
from dslight.vlm import VLM

ALL = ["diagnostics.drop=true", "diagnostics.shuffle=true", "diagnostics.heat_maps=3", "diagnostics.limit=20"]
ARMS = ["all", "without_1", "without_2", "without_3", "without_4", "without_any", "permuted", "other_image"]
NORMS = {f"diagnostics/stack_{n}/{name}" for n in range(1, 5) for name in ("relative_norm", "cosine")}


@pytest.fixture(scope="module")
def looked(fit, tmp_path_factory):
    """A run that is diagnosed while it trains and at its end."""
    return fit(tmp_path_factory.mktemp("looked") / "run", *ALL)


def lines(run, name):
    return [json.loads(line) for line in (run.path / name).read_text().splitlines()]


def test_every_stack_has_its_norm(looked):
    found = looked.json("diagnostics.json")
    assert [(norm["number"], norm["part"], norm["layer"]) for norm in found["norms"]] == [
        (number, "language_model", number - 1) for number in (1, 2, 3, 4)
    ]
    assert all(norm["relative"] > 0 and norm["filled"] == 1 and -1 <= norm["cosine"] <= 1 for norm in found["norms"])
    assert found["step"] == 9


def test_training_is_not_changed_by_looking_at_it(looked, whole):
    ours, theirs = looked.weights(), whole.weights()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert looked.json("result.json")["scores"] == whole.json("result.json")["scores"]


def test_norms_are_logged_at_every_validation_and_comparisons_at_the_last(looked):
    validated = [row for row in looked.metrics() if row["val/pages/vqa_accuracy"]]
    assert len(validated) == 4
    assert all(all(row[name] for name in NORMS) for row in validated)
    assert [bool(row["diagnostics/pages/without_any"]) for row in validated] == [False, False, False, True]
    assert len({row["diagnostics/stack_1/relative_norm"] for row in validated}) == 3  # the last two: of the same step
    last = looked.json("diagnostics.json")["comparisons"]["pages"]
    assert {arm["name"]: float(validated[-1][f"diagnostics/pages/{arm['name']}"]) for arm in last} == pytest.approx(
        {arm["name"]: arm["score"] for arm in last}
    )


def test_the_model_as_it_is_answers_as_in_the_validation(looked):
    """To the same first questions, with the same scores; and the arms' means are those of their questions."""
    asked = {row["question_id"]: row for row in lines(looked, "questions/pages.jsonl")[:20]}
    rows = lines(looked, "diagnostics/questions.jsonl")
    assert [row["question_id"] for row in rows] == list(asked)
    for row in rows:
        assert row["answers"]["all"] == asked[row["question_id"]]["prediction"]
        assert row["scores"]["all"] == asked[row["question_id"]]["score"]
    found = looked.json("diagnostics.json")["comparisons"]["pages"]
    assert [arm["name"] for arm in found] == ARMS
    for arm in found:
        assert arm["score"] == pytest.approx(sum(row["scores"][arm["name"]] for row in rows) / 20)


def test_heat_maps_are_pictures_of_questions_spread_over_the_slice(looked):
    found = looked.json("diagnostics.json")["heat_maps"]
    asked = {row["question_id"]: row for row in lines(looked, "questions/pages.jsonl")}
    assert [row["number"] for row in found] == [0, 10, 19]
    for row in found:
        assert row["answer"] == asked[row["question_id"]]["prediction"]
        assert row["references"] == asked[row["question_id"]]["references"]
        assert row["log_likelihood"] < 0
        assert [each["stack"] for each in row["totals"]] == [0, 1, 2, 3, 4]
        picture = Image.open(io.BytesIO((looked.path / "diagnostics" / row["file"]).read_bytes()))
        assert picture.format == "PNG"
        assert picture.size == (638, 2 * 189 + 10)  # the image and five panels, in two lines


def test_validate_looks_at_a_model_that_was_trained_without_diagnostics(whole, tmp_path, capsys):
    shutil.copytree(whole.path, tmp_path / "run")
    call = ["validate", str(whole.path / "recipe.yaml"), f"run_dir={tmp_path / 'run'}"]
    assert main([*call, "diagnostics.drop=true", "diagnostics.norms=false", "diagnostics.limit=4"]) == 0
    found = json.loads((tmp_path / "run" / "diagnostics.json").read_text())
    assert [arm["name"] for arm in found["comparisons"]["pages"]] == ARMS[:6]
    assert {arm["questions"] for arm in found["comparisons"]["pages"]} == {4}
    assert "norms" not in found
    said = [line for line in capsys.readouterr().out.splitlines() if "diagnostics" in line]
    assert said == [f"diagnostics: {tmp_path / 'run' / 'diagnostics.json'}"]  # and none of its numbers as a score
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]
    assert scores == whole.json("result.json")["scores"]


def test_pictures_are_encoded_once_for_all_arms(whole, tmp_path, monkeypatch):
    shutil.copytree(whole.path, tmp_path / "run")
    calls, before, see, look = [], [], VLM.see, Diagnose.on_validation_epoch_end
    monkeypatch.setattr(VLM, "see", lambda *args: calls.append(1) or see(*args))
    monkeypatch.setattr(Diagnose, "on_validation_epoch_end", lambda *args: before.append(len(calls)) or look(*args))
    call = ["validate", str(whole.path / "recipe.yaml"), f"run_dir={tmp_path / 'run'}"]
    assert main([*call, "diagnostics.drop=true", "diagnostics.shuffle=true", "diagnostics.limit=4"]) == 0
    assert len(calls) - before[-1] == 2  # those of the questions, and the others that stand for them


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("diagnostics.limit: at least 1 question, got 0", ["diagnostics.limit=0"]),
        (
            "diagnostics.heat_maps: 0 to 4 (diagnostics.limit), got 5",
            ["diagnostics.limit=4", "diagnostics.heat_maps=5"],
        ),
        ("diagnostics.heat: ", ["diagnostics.heat=colour"]),
        ("diagnostics.heat: attention, but sdpa gives no weights", ["diagnostics={heat: attention, heat_maps: 1}"]),
        ("diagnostics.drop", ["diagnostics.drop=some"]),
        ("diagnostics.norm:", ["diagnostics.norm=true"]),
        ("diagnostics: ask questions, and data.val names none", ["diagnostics.norms=true", "data.val=null"]),
    ],
)
def test_what_cannot_be_looked_at_is_refused_by_its_key(recipe, tmp_path, capsys, said, arguments):
    assert main(["plan", str(recipe), *arguments]) == 1
    assert messages(capsys.readouterr().err).startswith(f"dslight: {said}")


def test_a_part_that_is_fitted_alone_has_no_stacks(capsys):
    assert main(["plan", "recipes/quickstart/encoder.yaml", "diagnostics.norms=true"]) == 1
    assert "diagnostics: are of the stacks of a `model`" in capsys.readouterr().err


@pytest.fixture(scope="module")
def questions(recipe):
    """Of the 24 questions about 3 pages, 8 about each."""
    experiment = build(compose(recipe), opens="validate")
    experiment.data.setup("validate")

    def make(rank=0, world=1, batch=5, limit=20):
        (loader,) = experiment.data.val_dataloader()
        return Questions(loader, experiment.data.rows, limit, rank, world, batch)

    return make


def test_the_slice_is_the_first_questions_whatever_the_ranks(questions):
    def numbers(**share):
        return [
            question.number
            for asked in questions(**share).asked(others=False)
            for question in asked.batch.questions
            if question.valid
        ]

    assert numbers() == list(range(20))
    assert numbers(rank=0, world=3) + numbers(rank=1, world=3) + numbers(rank=2, world=3) == list(range(20))
    lengths = {len(list(questions(rank=rank, world=3).asked(others=False))) for rank in range(3)}
    assert len(lengths) == 1


def test_the_other_image_is_that_of_the_next_page(questions):
    """Not that of the next question, which is about the same page."""
    seen = {}
    for asked in questions(limit=24).asked(others=True):
        assert asked.alone == (False,) * len(asked.batch.questions)
        own, other = asked.batch.views.pixels.unflatten(0, (-1, 5)), asked.others.views.pixels.unflatten(0, (-1, 5))
        for i, question in enumerate(asked.batch.questions):
            seen[question.number] = (own[i], other[i])
    pages = [seen[8 * page][0] for page in range(3)]
    for number, (own, other) in seen.items():
        assert torch.equal(own, pages[number // 8])
        assert torch.equal(other, pages[(number // 8 + 1) % 3])


def test_an_answer_is_taught_as_training_writes_it(questions):
    from dslight.data.sample import Turn
    from dslight.types import IGNORE

    made = questions()
    for asked, taught in made.taught(4):
        (question,), tokenizer = asked.questions, made.rows.tokenizer
        length = asked.input_ids.shape[1]
        assert torch.equal(taught.input_ids[:, :length], asked.input_ids)
        assert torch.equal(taught.visual_mask[:, :length], asked.visual_mask)
        turns = [Turn("human", f"<image>\n{question.text}"), Turn("gpt", question.references[0])]
        written = template("bare").encode(turns, tokenizer, 1)
        learnt = [label for label in written.labels if label != IGNORE]
        assert taught.labels[taught.labels != IGNORE].tolist() == learnt
        assert taught.input_ids[0, length:].tolist() == learnt
        assert len(learnt) >= 1
