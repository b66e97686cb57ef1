"""MME, MMBench, AI2D, OCRBench, VizWiz and MultiDocVQA: what stands in the authors' files stands in the shards, and the
benchmark's metric reads it."""

import base64

import pytest

from dslight.metrics.benchmarks import build


def score(shards, benchmark: str, answers: dict[str, str]) -> dict[str, float]:
    metric, questions = build(benchmark), shards.questions
    metric.update_questions([answers[key] for key in questions], list(questions.values()))
    return {key: float(value) for key, value in metric.compute().items()}


def test_mme_asks_two_questions_about_each_image_of_a_task(put, save, convert, tmp_path):
    """Both layouts of MME_Benchmark_release_version; its own example results lie beside them."""
    text = (
        "Is there a {} in this image? Please answer yes or no.\tYes\nIs there a {} here? Please answer yes or no.\tNo"
    )
    release = tmp_path / "images"
    for name in ("existence/000000006040.jpg", "existence/000000007795.jpg"):
        save(name)
        (release / name).with_suffix(".txt").write_text(text.format("dog", "cat"))
    poster = save("posters/images/tt0048028.png")
    (release / "posters" / "questions_answers_YN").mkdir()
    (release / "posters" / "questions_answers_YN" / "tt0048028.txt").write_text(text.format("man", "horse"))
    (release / "eval_tool" / "Your_Results").mkdir(parents=True)
    (release / "eval_tool" / "Your_Results" / "existence.txt").write_text("000000006040.jpg\tQ\tYes\tyes\n")
    shards = convert("mme", annotations=[release])
    assert list(shards.questions) == [
        *(f"{image}/{which}/existence" for image in (0, 1) for which in (0, 1)), "0/0/posters", "0/1/posters",
    ]  # fmt: skip
    asked = shards.questions["1/1/existence"]
    assert (asked.text, asked.references, asked.type) == ("Is there a cat here?", ("No",), "existence")
    assert asked.extra["image"] == "000000007795.jpg"
    assert shards.images["0/1/posters"] == (poster,)
    assert len(shards.samples) == 3  # an image is stored once
    right = {key: "Yes" if key.split("/")[1] == "0" else "No" for key in shards.questions}
    scores = score(shards, "mme", right | {"1/1/existence": "Yes"})
    assert (scores["existence"], scores["posters"]) == (75 + 50, 200)  # 3 of 4 answers, 1 of 2 images


def test_mmbench_keeps_the_rotations_of_a_question_apart(put, save, convert):
    """The columns of mmbench_dev_20230712.tsv; a rotation may name the row that has the image."""
    first, second = save("elsewhere/1.jpg"), save("elsewhere/2.jpg")
    image = {1: base64.b64encode(first).decode(), 2: base64.b64encode(second).decode()}
    lines = [
        "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit",
        f"1\tWhich?\tRead.\tred\tblue\tnan\t\tB\tattribute\t{image[1]}\tx\ty\t\tdev",
        "1000001\tWhich?\tRead.\tblue\tred\t\t\tA\tattribute\t1\tx\ty\t\tdev",
        f"2\tHow many?\tnan\tone\ttwo\tthree\tfour\tC\tcounting\t{image[2]}\tx\ty\t\tdev",
    ]
    path = put("mmbench_dev_20230712.tsv", "\n".join(lines) + "\n")
    shards = convert("mmbench")
    asked = shards.questions["1000001"]
    assert (asked.text, asked.references, asked.type) == ("Read.\nWhich?\nA. blue\nB. red", ("A",), "attribute")
    assert (asked.official_id, asked.extra["options"]) == (1000001, ["blue", "red"])
    assert shards.images == {"1": (first,), "1000001": (first,), "2": (second,)}
    scores = score(shards, "mmbench", {"1": "B", "1000001": "B", "2": "C"})
    assert (scores["circular_accuracy"], scores["accuracy"]) == (0.5, pytest.approx(2 / 3))
    path.write_text(path.read_text().replace("\tB\tattribute", "\t\tattribute"))
    with pytest.raises(SystemExit, match="answer-missing"):
        convert("mmbench")
    hidden = convert("mmbench", "--split", "test", annotations=[path]).questions["1"]
    assert hidden.references == ()


def test_ai2d_numbers_its_questions(put, save, convert):
    picture = save("0.png")
    rows = [{"question": "Which is it?", "options": ["egg", "adult"], "answer": "1", "image": "0.png"}] * 2
    shards = convert("ai2d", annotations=[put("test.json", rows)])
    assert {key: (q.text, q.references) for key, q in shards.questions.items()} == {
        f"test-{n}": ("Which is it?\nA. egg\nB. adult", ("B",)) for n in (0, 1)
    }
    assert shards.images["test-1"] == (picture,)
    assert score(shards, "ai2d", {"test-0": "B", "test-1": "A. egg"})["accuracy"] == 0.5


def test_ocrbench_has_a_type_that_its_metric_knows(put, save, convert):
    save("IIIT5K/1.png")
    row = {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "question": "what is written in the image?"}
    put("OCRBench.json", [row | {"answers": "CENTRE", "image_path": "IIIT5K/1.png"}] * 2)
    shards = convert("ocrbench")
    assert shards.questions["1"].references == ("CENTRE",)
    scores = score(shards, "ocrbench", {"0": "It says Centre.", "1": "center"})
    assert scores["accuracy/Regular_Text_Recognition"] == 0.5


def test_vizwiz_asks_once_about_each_image(put, save, convert):
    """The fields of vizwiz.org's Annotations.zip."""
    name = "VizWiz_val_00000000.jpg"
    picture = save(f"val/{name}")
    answers = [{"answer_confidence": "yes", "answer": "basil leaves"}] * 4
    answers += [{"answer_confidence": "maybe", "answer": "unanswerable"}] * 6
    row = {"image": name, "question": "Can you tell me what is in the can?", "answerable": 1, "answer_type": "other"}
    put("val.json", [row | {"answers": answers}])
    put("train.json", [])
    shards = convert("vizwiz")
    asked = shards.questions[name]
    assert (len(asked.references), asked.type, asked.extra) == (10, "other", {"image": name})
    assert shards.images[name] == (picture,)
    assert score(shards, "vizwiz", {name: "basil leaves"})["vqa_accuracy"] == 1.0
    save("test/VizWiz_test_00000000.jpg")
    put("test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What is it?"}])
    assert convert("vizwiz", "--split", "test").questions["VizWiz_test_00000000.jpg"].references == ()


def test_multidocvqa_shows_all_pages_in_their_order(put, save, convert):
    pages = tuple(save(f"images/nkbl0226_p{i}.jpg") for i in (10, 2, 3))
    row = {"questionId": 24581, "question": "What is the date?", "doc_id": "nkbl0226", "data_split": "val"}
    row |= {"page_ids": [f"nkbl0226_p{i}" for i in (10, 2, 3)], "answers": ["March 1966"], "answer_page_idx": 1}
    put("val.json", {"dataset_name": "MP-DocVQA", "data": [row]})
    shards = convert("multidocvqa")
    assert shards.images["24581"] == pages
    assert (shards.questions["24581"].official_id, shards.facts["24581"]["doc_id"]) == (24581, "nkbl0226")
    assert score(shards, "multidocvqa", {"24581": "march 1966"})["anls"] == 1.0
