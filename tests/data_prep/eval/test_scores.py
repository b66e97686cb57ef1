"""From the authors' files to a score: hand-made predictions get what the official rule gives them."""

import csv
import io
import json

import pytest
from PIL import Image

from data_prep.eval.sets import SETS
from dslight.metrics.benchmarks import BENCHMARKS


def score(shards, benchmark, predictions):
    """Of ``{question id: prediction}``, in the order of the shards and split over two batches."""
    metric = BENCHMARKS[benchmark].build()
    questions = list(shards.questions.values())
    assert sorted(question.question_id for question in questions) == sorted(predictions)
    for batch in (questions[:1], questions[1:]):
        metric.update_questions([predictions[question.question_id] for question in batch], batch)
    return {key: float(value) for key, value in metric.compute().items()}


def test_every_set_names_a_benchmark():
    assert {name: row.benchmark for name, row in SETS.items() if row.benchmark not in BENCHMARKS} == {}


def test_vqav2(put, save, convert):
    """Of n equal answers among ten, min(1, 0.3 n) of the score (the mean over annotators left out in turn)."""
    references = {"1": ["red"] * 2 + ["blue"] * 8, "2": ["yes"] * 9 + ["no"], "3": ["two", "2", "2"] + ["3"] * 7}
    kinds = {"1": "other", "2": "yes/no", "3": "number"}
    asked = [{"image_id": 7, "question": f"q{key}?", "question_id": int(key)} for key in references]
    answered = [
        {
            "question_id": int(key),
            "image_id": 7,
            "answer_type": kinds[key],
            "question_type": "what",
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(answers, 1)
            ],
        }
        for key, answers in references.items()
    ]
    put("v2_OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": asked})
    put("v2_mscoco_val2014_annotations.json", {"annotations": answered})
    save("COCO_val2014_000000000007.jpg")
    scores = score(convert("vqav2"), "vqav2", {"1": "red.", "2": "Yes", "3": "two"})
    assert scores["vqa_accuracy/other"] == pytest.approx(0.6, abs=1e-6)
    assert scores["vqa_accuracy/yes_no"] == pytest.approx(1.0)
    assert scores["vqa_accuracy/number"] == pytest.approx(0.9, abs=1e-6)  # "two" and "2" are one answer
    assert scores["vqa_accuracy"] == pytest.approx(2.5 / 3, abs=1e-6)


def test_docvqa(put, save, convert):
    item = {"question": "?", "image": "documents/a.png", "docId": 1}
    rows = [
        item | {"questionId": 1, "answers": ["1975", "the year 1975"]},
        item | {"questionId": 2, "answers": ["cat"]},
        item | {"questionId": 3, "answers": ["Chicago"]},
    ]
    put("val_v1.0.json", {"data": rows})
    save("documents/a.png")
    scores = score(convert("docvqa"), "docvqa", {"1": "1975", "2": "cut", "3": "Boston"})
    assert scores["anls"] == pytest.approx((1 + 2 / 3 + 0) / 3, abs=1e-6)


def test_chartqa(put, save, convert):
    labels = {"human": ["100", "Blue"], "augmented": ["50", "2010"]}
    for kind, answers in labels.items():
        put(f"test_{kind}.json", [{"imgname": "a.png", "query": "?", "label": answer} for answer in answers])
    save("png/a.png")
    predictions = {"human-0": "104.9", "human-1": "blue", "augmented-0": "53", "augmented-1": "2011"}
    scores = score(convert("chartqa"), "chartqa", predictions)
    assert scores["relaxed_accuracy/human"] == 1.0
    assert scores["relaxed_accuracy/augmented"] == 0.5  # 6 % off; a year one off is within 5 %
    assert scores["relaxed_accuracy"] == 0.75


def test_pope(put, save, convert):
    """F1 is averaged over the three files."""
    labels = {"random": "yes yes no no", "popular": "yes no", "adversarial": "no yes"}
    for subset, words in labels.items():
        lines = [
            {"question_id": i, "image": "a.jpg", "text": f"{i}?", "label": label}
            for i, label in enumerate(words.split(), 1)
        ]
        put(f"coco_pope_{subset}.json", "\n".join(json.dumps(line) for line in lines))
    save("a.jpg")
    predictions = {
        "random-1": "Yes",
        "random-2": "No, there is none.",
        "random-3": "Yes, two.",
        "random-4": "no",
        "popular-1": "Yes.",
        "popular-2": "No",
        "adversarial-1": "Yes",
        "adversarial-2": "yes",
    }
    scores = score(convert("pope"), "pope", predictions)
    assert scores["f1/random"] == pytest.approx(0.5)
    assert scores["f1/popular"] == 1.0
    assert scores["f1/adversarial"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx((0.5 + 1 + 2 / 3) / 3)


def test_gqa(put, save, convert):
    def item(answer, structural):
        return {"question": "?", "imageId": "1", "answer": answer, "types": {"structural": structural}}

    put(
        "testdev_balanced_questions.json",
        {"1": item("yes", "verify"), "2": item("left", "choose"), "3": item("dog", "query")},
    )
    save("images/1.jpg")
    scores = score(convert("gqa"), "gqa", {"1": "Yes.", "2": "right", "3": "Dog"})
    assert (scores["exact_match/binary"], scores["exact_match/open"]) == (0.5, 1.0)
    assert scores["exact_match"] == pytest.approx(2 / 3)


def test_mmmu_mixes_letters_and_open_answers(put, save, convert):
    def item(key, options, answer, kind):
        row = {"id": key, "question": "See <image 1>", "options": str(options), "answer": answer, "question_type": kind}
        return row | {"image_1": "a.png"}

    rows = [
        item("validation_Math_1", [], "['2.5', '5/2']", "open"),
        item("validation_Math_2", ["red", "a big dog"], "B", "multiple-choice"),
        item("validation_Music_3", ["Bach", "Brahms"], "A", "multiple-choice"),
    ]
    path = put("mmmu.json", rows)
    save("a.png")
    scores = score(
        convert("mmmu", annotations=[path]),
        "mmmu",
        {
            "validation_Math_1": "So the answer is 2.50",
            "validation_Math_2": "I think that it is a big dog",
            "validation_Music_3": "(B)",
        },
    )
    assert (scores["accuracy/Science"], scores["accuracy/Art_and_Design"]) == (1.0, 0.0)
    assert scores["accuracy"] == pytest.approx(2 / 3)


def test_nextqa(put, convert, tmp_path):
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(
        ["video", "frame_count", "width", "height", "question", "answer", "qid", "type", *(f"a{i}" for i in range(5))]
    )
    for qid, answer, kind in ((0, 1, "CW"), (1, 4, "TN"), (2, 0, "DL")):
        writer.writerow([5, 9, 8, 8, "what", answer, qid, kind, "run", "sit", "eat", "cry", "fall"])
    put("test.csv", out.getvalue())
    frames = tmp_path / "images" / "5"
    frames.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(frames / "1.jpg")
    scores = score(convert("nextqa"), "nextqa", {"5_0": "B", "5_1": "E. fall", "5_2": "B."})
    assert (scores["accuracy/causal"], scores["accuracy/temporal"], scores["accuracy/descriptive"]) == (1, 1, 0)
    assert scores["accuracy"] == pytest.approx(2 / 3)
