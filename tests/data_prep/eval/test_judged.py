"""CharXiv and LLaVA-Bench in their authors' files."""

import json

import pytest

from dslight.metrics.submission import submission


def figures(put, place, kind=1, answers=("60", "a, b", "Yes", "Not Applicable")):
    hidden = None if answers is None else list(answers)
    described = {"figure_id": 3, "num_subplots": 2, "subplot_loc": place, "qids": [7, 13, 11, 18], "answers": hidden}
    asked = {"figure_id": 3, "query": "How much?", "inst_category": kind, "qa_source": 1}
    put("descriptive_val.json", {"3": described})
    put("reasoning_val.json", {"3": asked | {"answer": None if answers is None else "0.25"}})


def test_charxiv_asks_four_questions_and_one_about_a_figure(put, save, convert):
    figures(put, [1, 2], kind=4)
    save("images/3.jpg")
    shards = convert("charxiv")
    assert len(shards.samples) == 1
    assert [question.type for question in shards.questions.values()] == ["descriptive"] * 4 + ["reasoning"]
    first, *_, fourth, reasoned = shards.questions.values()
    assert first.text.startswith("In the subplot of row 1 and column 2, which tick label of the y-axis is highest?")
    assert first.references == ("60",)
    assert "row 1" not in fourth.text  # of the layout of all of them
    assert reasoned.text == "How much?\nAnswer with a number of 2 decimals."
    assert shards.facts["3"]["inst_category"] == 4


def test_charxiv_is_asked_in_the_words_of_its_constants_which_are_not_run(put, save, convert):
    figures(put, "the left part")
    save("images/3.jpg")
    texts = {n: f"{{}}official {n}?" for n in range(1, 20)}
    asked = {n: "{} official reasoning" + (" {}" if n == 4 else "") for n in range(1, 5)}
    put(
        "constants.py",
        f"import missing\nraise RuntimeError\nDESCRIPTIVE_RESP_INST = {texts}\nREASONING_RESP_INST = {asked}\n",
    )
    shards = convert("charxiv")
    assert shards.questions["3_0"].text == "In the left part, official 7?"
    assert shards.questions["3"].text == "How much? official reasoning"
    put("constants.py", "DESCRIPTIVE_RESP_INST = {1: 'x'}\n")
    with pytest.raises(SystemExit, match=r"constants\.py: not CharXiv's constants\.py: it lacks DESCRIPTIVE_RESP_INST"):
        convert("charxiv")


def test_what_charxivs_own_program_reads(put, save, convert):
    from dslight.metrics.base import Answer, Verdict

    figures(put, [0, 0])
    save("images/3.jpg")
    answers = [Answer(question, "60", Verdict()) for question in convert("charxiv").questions.values()]
    files = submission("charxiv", answers)
    assert json.loads(files["gen-dslight-reasoning.json"]) == {"3": {"response": "60", "raw_question": "How much?"}}
    assert list(json.loads(files["gen-dslight-descriptive.json"])) == ["3_0", "3_1", "3_2", "3_3"]


def test_llava_bench_is_joined_out_of_three_files(put, save, convert):
    def lines(*rows):
        return "\n".join(json.dumps(row) for row in rows)

    put("questions.jsonl", lines({"question_id": 0, "image": "001.jpg", "text": "What?", "category": "conv"}))
    put("answers_gpt4.jsonl", lines({"question_id": 0, "text": "A dog.", "answer_id": "x"}))
    put("context.jsonl", lines({"id": "1", "image": "001.jpg", "caption": "A dog at the sea."}))
    picture = save("images/001.jpg")
    shards = convert("llava_bench")
    (question,) = shards.questions.values()
    assert (question.text, question.references, question.type) == ("What?", ("A dog.",), "conv")
    assert question.extra["context"] == "A dog at the sea."
    assert shards.images == {"0": (picture,)}
