"""VLMEvalKit's TSVs: three general readers, pictures that another row has, options beyond D, circular evaluation."""

import base64
import json

import pytest

from data_prep.eval.tables import said, table
from dslight.metrics.benchmarks import BENCHMARKS


@pytest.fixture
def tsv(put, save):
    """``tsv(name, rows)`` writes a table; a row's ``image`` is a name of :func:`save`, or what it stands for."""

    def write(name, rows):
        head = list(dict.fromkeys(key for row in rows for key in row))
        lines = ["\t".join(head)]
        for row in rows:
            cells = {key: str(value) for key, value in row.items()}
            if cells.get("image", "").endswith(".png"):
                cells["image"] = base64.b64encode(save(cells["image"])).decode()
            lines.append("\t".join(cells.get(key, "") for key in head))
        return put(name, "\n".join(lines) + "\n")

    return write


def row(index, answer="A", image="a.png", **more):
    return {"index": index, "question": "Which?", "A": "x", "B": "y", "answer": answer, "image": image, **more}


def test_mmbench_takes_any_number_of_options(tsv, convert):
    tsv("mmbench_cc.tsv", [row(0, "E", C="z", D="w", E="v")])
    shards = convert("mmbench")
    assert shards.questions["0"].text == "Which?\nA. x\nB. y\nC. z\nD. w\nE. v"
    assert shards.questions["0"].references == ("E",)


def test_an_image_cell_may_name_a_later_row(tsv, convert):
    tsv("mmbench_dev.tsv", [row(5, image="7"), row(7), row(1000005, "B", image="5")])
    shards = convert("mmbench")
    assert len(set(shards.images.values())) == 1
    assert len(shards.samples) == 1


def test_an_image_cell_that_is_neither_is_named(tsv, convert):
    tsv("mmbench_dev.tsv", [row(5, image="9")])
    with pytest.raises(SystemExit, match=r"mmbench_dev\.tsv: index 5: its image is neither base64 nor .* '9'"):
        convert("mmbench")


def test_mmbench_rotations_count_whatever_their_index(tsv, convert):
    tsv("MMBench_TEST_EN_V11.tsv", [row(3_200_241 % 10**6, "A"), row(1_200_241, "B"), row(999_999, "A")])
    shards = convert("mmbench", "--split", "test")
    metric = BENCHMARKS["mmbench"].build()
    metric.update_questions(["A", "A", "A"], list(shards.questions.values()))
    assert float(metric.compute()["circular_accuracy"]) == 0.5
    assert not shards.report["changed"].get("answers hidden")  # the answers of its test set are public


def test_the_three_general_readers(tsv, convert):
    tsv("a.tsv", [row(1, "B", hint="Look.", category="c")])
    shards = convert("choice")
    assert shards.questions["1"].text == "Look.\nWhich?\nA. x\nB. y"
    assert shards.facts["1"]["category"] == "c"
    tsv("a.tsv", [{"index": "v_1", "question": "Is it?", "answer": "Yes", "image": "a.png"}])
    assert convert("yes_no").questions["v_1"].references == ("yes",)
    tsv("a.tsv", [{"index": 1, "question": "What?", "answer": "['a dog', 'dog']", "image": "a.png"}])
    assert convert("short").questions["1"].references == ("a dog", "dog")


@pytest.mark.parametrize("answer", ["B", "(B)", "b", "y", "B. y", "1"])
def test_a_reference_is_a_letter_whatever_says_it(tsv, convert, answer):
    tsv("a.tsv", [row(1, answer)])
    assert convert("choice").questions["1"].references == ("B",)


def test_a_reference_that_is_none_of_the_options_is_set_aside(tsv, convert):
    tsv("a.tsv", [row(1, "C"), row(2)])
    shards = convert("choice", "--max-bad", 0.9)
    assert (list(shards.questions), shards.report["bad"]) == (["2"], {"answer-missing": 1})


def test_circular_asks_all_rotations_and_counts_questions_that_are_right_in_all(tsv, convert):
    tsv("a.tsv", [row(1, "B", C="z"), row(2, "A")])
    shards = convert("choice", "--circular")
    assert {name: (q.text.split("\n")[1:], q.references) for name, q in shards.questions.items()} == {
        "1": (["A. x", "B. y", "C. z"], ("B",)),
        "1-1": (["A. y", "B. z", "C. x"], ("A",)),
        "1-2": (["A. z", "B. x", "C. y"], ("C",)),
        "2": (["A. x", "B. y"], ("A",)),
        "2-1": (["A. y", "B. x"], ("B",)),
    }
    metric = BENCHMARKS["circular"].build()
    metric.update_questions(["B", "A", "C", "A", "A"], list(shards.questions.values()))
    assert float(metric.compute()["circular_accuracy"]) == 0.5
    assert float(metric.compute()["accuracy"]) == 0.8


def test_pictures_by_name_lie_below_images(put, save, convert):
    picture = save("pages/a.jpg")
    put("questions.jsonl", json.dumps({"id": "q", "question": "What?", "answer": "dog", "image": "pages/a.jpg"}))
    assert convert("short").images["q"] == (picture,)


def test_several_pictures_stand_in_one_cell(put, save, convert):
    both = [save("a.png"), save("b.png")]
    cell = [base64.b64encode(one).decode() for one in both]
    put("a.tsv", f'index\tquestion\tanswer\timage\n1\tWhat?\tdog\t"{cell}"\n')
    assert convert("short").images["1"] == tuple(both)


def test_what_pandas_wrote_for_an_empty_cell_is_empty_and_none_is_a_word():
    assert [said(one) for one in ("nan", "NaN", None, " None ", 3)] == ["", "", "", "None", "3"]


def test_a_json_of_rows_is_read_with_and_without_its_frame(put):
    rows = [{"a": 1}]
    assert list(table(put("a.json", rows))) == list(table(put("b.json", {"data": rows}))) == rows


def test_mvbench_answers_by_the_text_of_an_option(put, save, convert):
    save("v/1.jpg")
    item = {"video": "v", "question": "What?", "candidates": ["run", "sit"], "answer": "sit"}
    put("action_sequence.json", [item])
    put("object_count.json", [item | {"start": 1.0, "end": 2.5}])
    shards = convert("mvbench")
    assert shards.questions["action_sequence-0"].references == ("B",)
    metric = BENCHMARKS["mvbench"].build()
    metric.update_questions(["B. sit", ""], list(shards.questions.values()))
    assert float(metric.compute()["accuracy"]) == 0.5
