"""LongVideoBench, MLVU and MMLongBench-Doc in their authors' files."""

import pytest

from dslight.metrics.benchmarks import BENCHMARKS


def judged(shards, benchmark, said):
    metric = BENCHMARKS[benchmark].build()
    questions = list(shards.questions.values())
    metric.update_questions([said(question) for question in questions], questions)
    return {key: float(value) for key, value in metric.compute().items()}


def lvb(number, right, options=("run", "sit", "eat")):
    return {
        "id": f"v_{number}",
        "video_id": "v",
        "video_path": "v.mp4",
        "question": f"q{number}?",
        "candidates": list(options),
        "duration_group": 15 if number % 2 else 3600,
        "question_category": "S2E",
        "topic_category": "x",
        **({} if right is None else {"correct_choice": right}),
    }


def test_longvideobench_is_reported_by_the_length_of_the_videos(put, save, convert):
    put("lvb_val.json", [lvb(0, 0), lvb(1, 2), lvb(2, 1)])
    put("lvb_test_wo_gt.json", [lvb(3, None)])
    save("v/1.jpg")
    shards = convert("longvideobench")
    assert shards.questions["v_1"].text == "q1?\nA. run\nB. sit\nC. eat"
    assert len(shards.samples) == 1  # the video is stored once
    scores = judged(shards, "longvideobench", lambda question: "The best option is A")
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert (scores["accuracy/3600"], scores["accuracy/15"]) == (0.5, 0.0)
    hidden = convert("longvideobench", "--split", "test")
    assert hidden.report["changed"]["answers hidden"] == 1


def test_mlvu_is_the_mean_of_its_kinds_and_an_answer_that_is_no_option_is_never_given(put, save, convert):
    def item(answer, kind, options=("run", "sit")):
        return {"video": "v.mp4", "question": "?", "candidates": list(options), "answer": answer, "question_type": kind}

    put("1_plotQA.json", [item("run", "plotQA"), item("sit", "plotQA")])
    put("2_needle.json", [item("a kind of run", "findNeedle")])
    put("8_sub_scene.json", [{"video": "w.mp4", "question": "Tell.", "answer": "x", "question_type": "subPlot"}])
    save("1_plotQA/v/1.jpg")
    save("2_needle/v/1.jpg")
    shards = convert("mlvu")
    assert list(shards.questions) == ["1_plotQA-0", "1_plotQA-1", "2_needle-2"]
    assert len(set(shards.images.values())) == 2  # of two videos that are called alike
    scores = judged(shards, "mlvu", lambda question: "(A) run")
    assert (scores["m_avg"], scores["accuracy"]) == (0.25, pytest.approx(1 / 3))
    assert scores["accuracy/needle"] == 0.0


def sample(answer, form, pages="[2]"):
    return {
        "doc_id": "a.pdf",
        "doc_type": "Guidebook",
        "question": "?",
        "answer": answer,
        "evidence_pages": pages,
        "evidence_sources": "['Table']",
        "answer_format": form,
    }


@pytest.mark.parametrize("name", ["a_{}.png", "a-{:02}.jpg"])
def test_a_document_is_shown_page_by_page_or_by_the_pages_that_have_the_answer(put, save, convert, name):
    put("samples.json", [sample("8", "Int"), sample("Not answerable", "None", "[]")])
    pages = [save(f"pages/{name.format(n)}") for n in (1, 10, 2)]
    whole = convert("mmlongbench_doc")
    assert set(whole.images.values()) == {(pages[0], pages[2], pages[1])}
    evidence = convert("mmlongbench_doc_evidence")
    assert evidence.images == {"0": (pages[2],), "1": ()}
    assert evidence.facts["0"]["evidence_pages"] == [2]


def test_a_document_without_pictures_is_named(put, convert):
    put("samples.json", [sample("8", "Int")])
    with pytest.raises(SystemExit, match=r"1 of 1|quarantin"):
        convert("mmlongbench_doc")


def test_f1_counts_what_was_answered_and_what_has_an_answer(put, save, convert):
    put("samples.json", [sample("8", "Int"), sample("red", "Str"), sample("Not answerable", "None", "[]")])
    save("a_1.png")
    save("a_2.png")
    shards = convert("mmlongbench_doc")
    said = {"0": "8", "1": "Not answerable", "2": "blue"}
    scores = judged(shards, "mmlongbench_doc", lambda question: said[question.question_id])
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["f1"] == 0.5  # 1 of 2 that have an answer, 1 of 2 that were answered
