"""Parquet files as the Hub has them: the questions of every set, and what right answers and silence score."""

import base64
import io
import json
import math

import numpy as np
import pytest
from hub_rows import HUB, PICTURE
from PIL import Image

from data_prep.eval.sets import SETS
from dslight.metrics.benchmarks import BENCHMARKS, SHORT

pyarrow = pytest.importorskip("pyarrow")
JUDGED = {"mmvet", "msvdqa", "charxiv", "llava_bench"}
SEVERAL = {"refcoco": 1, "charxiv": 4}
"""Questions more than rows: both phrases, the descriptive ones."""


def encoded(level: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((12, 18, 3), level, np.uint8)).save(out, "PNG")
    return out.getvalue()


def filled(value, level):
    """A row's value with real pictures."""
    if value == PICTURE:
        return {"bytes": encoded(level), "path": None}
    return [filled(one, level) for one in value] if isinstance(value, list) else value


@pytest.fixture
def parquet(tmp_path):
    """``parquet(rows)`` writes them as one file with a row group per row; ``same``: all rows have the same picture."""

    def write(rows, name="data/test-00000-of-00001.parquet", same=False):
        import pyarrow.parquet

        path = tmp_path / "annotations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{k: filled(v, 10 if same else 10 + 20 * i) for k, v in row.items()} for i, row in enumerate(rows)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1)
        return path

    return write


@pytest.fixture
def converted(parquet, save, convert):
    """The shards of a set's rows."""

    def run(name, *options):
        parquet(HUB[name])
        save("images/n1.jpg")
        for page in (1, 2, 12):
            save(f"pages/report_{page}.png")
        for video in ("5", "v_1QIUV7WYKXg"):
            save(f"{video}/1.jpg")
        return convert(name, *options)

    return run


def score(shards, benchmark, said):
    """The benchmark's numbers if ``said(question)`` is answered."""
    metric = BENCHMARKS[benchmark].build()
    questions = list(shards.questions.values())
    metric.update_questions([said(question) for question in questions], questions)
    return metric, {key: float(value) for key, value in metric.compute().items()}


def likeliest(question):
    return max(question.references, key=question.references.count)


def test_every_set_but_mvbench_has_rows_here():
    assert set(SETS) - set(HUB) == {"mvbench"}  # its files are json


@pytest.mark.parametrize("name", sorted(HUB))
def test_right_answers_score_in_full_and_silence_or_thoughts_alone_nothing(name, converted):
    shards = converted(name)
    benchmark = SETS[name].benchmark
    asked = len(HUB[name]) + SEVERAL.get(name, 0)
    assert len(shards.questions) == asked
    assert all(question.references for question in shards.questions.values())
    assert shards.quarantine == []
    metric, right = score(shards, benchmark, likeliest)
    _, silent = score(shards, benchmark, lambda question: "")
    if name in JUDGED:
        assert math.isnan(right[metric.headline])
        return
    assert right[metric.headline] == (200.0 if name == "mme" else 1.0)
    # to POPE's own script, silence is a yes
    assert (silent[metric.headline] > 0) == (name == "pope")
    _, late = score(shards, benchmark, lambda question: f"<think>No.\nOr A?</think>\n{likeliest(question)}")
    assert late[metric.headline] == right[metric.headline]  # thoughts cost nothing
    _, lost = score(shards, benchmark, lambda question: "<think>It is " + likeliest(question))
    assert lost[metric.headline] == 0.0


def test_vqav2_has_the_ids_types_and_answers_of_the_official_files(converted):
    shards = converted("vqav2")
    first = shards.questions["1"]
    assert (first.text, first.type, first.official_id) == ("Whose?", "other", 1)
    assert first.references == ("the man's",) * 10
    assert shards.facts["1"]["question_type"] == "whose"


def test_questions_of_one_picture_store_it_once_and_the_bytes_are_those_of_the_file(parquet, convert):
    parquet(HUB["vqav2"], same=True)
    shards = convert("vqav2")
    assert len(shards.samples) == 1
    assert shards.samples[0].images == (encoded(10),)


def test_pictures_of_other_row_groups_are_found(converted):
    shards = converted("pope")
    assert [shards.images[name] for name in ("random-1", "popular-2")] == [(encoded(10),), (encoded(50),)]


def test_gqa_joins_questions_with_the_pictures_of_another_file(parquet, convert):
    parquet(HUB["gqa"], "testdev_balanced_instructions/testdev-00000-of-00001.parquet")
    parquet([{"id": "n1", "image": PICTURE}], "testdev_balanced_images/testdev-00000-of-00001.parquet")
    shards = convert("gqa")
    assert shards.images["201"] == shards.images["202"] == (encoded(10),)
    assert (shards.questions["201"].type, shards.questions["202"].type) == ("binary", "open")


def test_pages_stand_in_their_order(parquet, convert):
    (row,) = HUB["multidocvqa"]
    parquet([row])
    assert len(convert("multidocvqa").images["24581"]) == 2


def test_options_without_a_line_of_their_own_are_found(converted):
    assert converted("mmstar").questions["0"].text == "Which?\nA. red\nB. blue\nC. green\nD. none"


def test_a_question_without_options_among_others_is_asked_for_a_word(converted):
    shards = converted("realworldqa")
    assert shards.questions["0"].text == "Which?\nA. red\nB. blue"
    assert (shards.questions["1"].text, shards.questions["1"].suffix) == ("How many?", SHORT)


def test_a_split_is_named_by_its_files_and_an_unknown_one_refused(parquet, convert):
    for split in ("validation", "test"):
        parquet(HUB["textvqa"], f"data/{split}-00000-of-00001.parquet")
    assert convert("textvqa").questions["34602"].references
    with pytest.raises(SystemExit, match="--split: 'train' is none of test, validation"):
        convert("textvqa", "--split", "train")


def test_the_split_that_is_reported_is_taken(parquet, convert):
    for split in ("train", "val", "test"):
        parquet([HUB["chartqa"][0] | {"answer": split}], f"data/{split}-00000-of-00001.parquet")
    (question,) = convert("chartqa").questions.values()
    assert question.references == ("test",)


def test_a_split_is_not_taken_for_one_whose_name_begins_alike(parquet, convert):
    for split in ("test", "testA"):
        parquet([HUB["refcoco"][0] | {"answer": [split]}], f"data/{split}-00000-of-00001.parquet")
    for options, word in (((), "test"), (("--split", "test"), "test"), (("--split", "testA"), "testA")):
        (question,) = convert("refcoco", *options).questions.values()
        assert question.text.endswith(f"{word}?")


def test_variants_in_folders_of_their_own_are_not_mixed(parquet, convert):
    for folder in ("DocVQA", "InfographicVQA"):
        parquet(HUB["docvqa"], f"{folder}/validation-00000-of-00001.parquet")
    with pytest.raises(SystemExit, match="several variants of docvqa: DocVQA, InfographicVQA; name one folder"):
        convert("docvqa")


def test_circular_needs_options(parquet, convert):
    parquet(HUB["short"])
    with pytest.raises(SystemExit, match="--circular: the questions of short have no options to rotate"):
        convert("short", "--circular")


def test_hallusionbench_counts_figures_and_questions(converted):
    shards = converted("hallusionbench")
    said = dict(zip(shards.questions, ("Yes", "Yes", "No"), strict=True))
    _, scores = score(shards, "hallusionbench", lambda question: said[question.question_id])
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["accuracy_figure"] == 0.5  # figure 0: one of two is wrong
    assert scores["accuracy_question"] == 0.5


def test_a_box_in_pixels_becomes_shares_of_the_picture(converted):
    (first, _) = converted("refcoco").questions.values()
    assert first.references == ("[0.055556, 0.083333, 0.333333, 0.416667]",)
    assert first.text == "Where in the picture is this: the left dog?"


def test_vision_questions_of_mmmu_pro_have_their_options_in_the_picture(parquet, convert):
    row = {"id": "test_Art_1", "options": "['red', 'blue']", "answer": "B", "subject": "Art", "image": PICTURE}
    parquet([row], "vision/test-00000-of-00001.parquet")
    shards = convert("mmmu_pro")
    assert "red" not in shards.questions["test_Art_1"].text
    _, scores = score(shards, "mmmu_pro", lambda question: "(B)")
    assert scores["accuracy"] == 1.0


def test_a_parquet_file_that_is_none_is_refused_by_name(put, convert):
    put("data/test-00000-of-00001.parquet", "no parquet")
    with pytest.raises(SystemExit, match=r"test-00000-of-00001\.parquet: cannot be read"):
        convert("pope")


@pytest.mark.parametrize("empty", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}])
def test_a_picture_that_is_empty_is_not_a_question_about_nothing(parquet, convert, empty):
    good, lost = HUB["docvqa"][0], HUB["docvqa"][0] | {"questionId": "2", "image": empty}
    parquet([good, lost])
    shards = convert("docvqa", "--max-bad", 0.9)
    assert list(shards.questions) == ["49153"]
    (bad,) = shards.quarantine
    assert bad["reason"] in ("image-missing", "image-empty")


@pytest.mark.parametrize("name", ["docvqa", "refcoco", "ocrbench"])
def test_a_picture_stands_in_a_list_of_one_or_as_base64(parquet, convert, name):
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 18, 3), dtype=np.uint8)).save(noise, "PNG")
    plain, *others = (
        {"bytes": noise.getvalue()},
        [{"bytes": noise.getvalue()}],
        base64.b64encode(noise.getvalue()).decode(),
    )
    found = []
    for n, picture in enumerate([plain, *others]):
        file = parquet([HUB[name][0] | {"image": picture}], f"data/test{n}-00000-of-00001.parquet")
        shards = convert(name, annotations=[file])
        found.append((shards.images, [question.references for question in shards.questions.values()]))
        file.unlink()
    assert set(next(iter(found[0][0].values()))) == {noise.getvalue()}
    assert [list(images.values()) for images, _ in found] == [list(found[0][0].values())] * 3
    assert [references for _, references in found] == [found[0][1]] * 3


def test_a_list_of_pictures_and_names_is_refused(put, convert):
    row = {"id": "q", "question": "What?", "answer": "dog", "images": ["a.jpg", base64.b64encode(b"0" * 300).decode()]}
    put("questions.jsonl", json.dumps(row))
    with pytest.raises(SystemExit, match=r"a list of pictures inside the file and of names, a\.jpg"):
        convert("short")
