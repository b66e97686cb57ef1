"""Judging by a language model: against a server that answers as OpenAI's does, started here."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dslight.cli import main
from dslight.metrics.functional.judged import PROMPTS, Judgement, filled, parse_judgement
from dslight.run.judge import judge
from dslight.run.judge_server import JudgeError, JudgeServer

SECRET = "not-a-real-key"


class Server(ThreadingHTTPServer):
    """Says that an answer is right if it equals the reference; as often as asked, it fails first."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.failures, self.status = [], 0, 503
        self.says = None
        self.guard = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            self.server.requests.append((self.path, self.headers.get("Authorization"), body))
            fails, self.server.failures = self.server.failures > 0, self.server.failures - 1
        if fails:
            self.send_response(self.server.status)
            self.end_headers()
            self.wfile.write(b'{"error": "busy"}')
            return
        reply = self.server.says or verdict(body["messages"][0]["content"])
        answer = {"choices": [{"message": {"content": reply}}], "usage": {"prompt_tokens": 10, "completion_tokens": 2}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args):
        pass


def verdict(prompt):
    reference, answer = re.search(r"Reference: (.*)\nAnswer: (.*)", prompt).groups()
    if "Grade:" in prompt:
        return "0.8" if reference == answer else "0.0"
    return f"{{'pred': '{'yes' if reference == answer else 'no'}', 'score': {4 if reference == answer else 1}}}"


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def run(tmp_path):
    """A run's folder with answers."""
    rows = {
        "mmvet": [("1", "-1", "-1"), ("2", "a dog", "<think>a cat</think>a dog"), ("3", "red", "blue")],
        "clips": [("1", "run", "run"), ("2", "sit", "eat")],
        "textvqa": [("1", "stop", "stop")],
    }
    for source, answers in rows.items():
        lines = [
            {"question_id": key, "benchmark": {"clips": "msvdqa"}.get(source, source), "question": f"What {key}?",
             "references": [reference], "prediction": said}
            for key, reference, said in answers
        ]  # fmt: skip
        path = tmp_path / "run" / "questions" / f"{source}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "run"


def asks(server, run, **more):
    return JudgeServer(server.url, "tiny-judge", run / "judged" / "replies.jsonl", wait=0.01, **more)


def test_scores_are_the_means_of_verdicts_and_are_called_after_the_judge(server, run):
    found = judge(run, asks(server, run))
    assert found["mmvet"]["scores"] == {"val/mmvet/score_by_tiny-judge": pytest.approx(1.6 / 3)}
    assert found["clips"]["scores"] == {
        "val/clips/score_by_tiny-judge": 0.5,
        "val/clips/quality_by_tiny-judge": 2.5,
    }
    assert set(found) == {"mmvet", "clips"}
    lines = (run / "judged" / "clips.tiny-judge.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == [1.0, 0.0]
    assert json.loads((run / "judged" / "mmvet.tiny-judge.json").read_text()) == found["mmvet"]
    assert (found["mmvet"]["asked"], found["mmvet"]["prompt_tokens"]) == (3, 30)


def test_what_was_answered_once_is_not_asked_again(server, run):
    first = judge(run, asks(server, run))
    count = len(server.requests)
    with (run / "judged" / "replies.jsonl").open("a") as file:
        file.write('{"key": "cut')
    again = judge(run, asks(server, run))
    assert len(server.requests) == count
    assert again["mmvet"]["scores"] == first["mmvet"]["scores"]
    assert again["mmvet"]["asked"] == 0


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not(server, run):
    server.failures = 2
    assert judge(run, asks(server, run, concurrency=1), ["clips"])["clips"]["asked"] == 2
    server.failures, server.status = 1, 401
    with pytest.raises(JudgeError, match=r"chat/completions: HTTP 401: \{\"error\": \"busy\"\}"):
        judge(run, asks(server, run, concurrency=1), ["mmvet"])


def test_a_verdict_that_says_nothing_is_asked_for_again_and_not_kept(server, run):
    server.says = "I would rather not."
    found = judge(run, asks(server, run, retries=2), ["clips"])
    assert (found["clips"]["unread"], found["clips"]["asked"]) == (2, 6)
    assert found["clips"]["scores"]["val/clips/score_by_tiny-judge"] == 0.0
    server.says = None
    assert judge(run, asks(server, run), ["clips"])["clips"]["unread"] == 0


def test_the_key_goes_into_the_header_and_nowhere_else(server, run, monkeypatch):
    judge(run, asks(server, run), ["clips"])
    assert {sent for _, sent, _ in server.requests} == {None}
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    judge(run, asks(server, run, key_variable="JUDGE_KEY"), ["mmvet"])
    assert server.requests[-1][1] == f"Bearer {SECRET}"
    assert not any(SECRET in path.read_text() for path in (run / "judged").iterdir())


def test_a_prompt_of_ones_own_and_thoughts_that_are_not_judged(server, run):
    prompt = "Reference: {reference}\nAnswer: {prediction}\nGrade: (to {question})"
    found = judge(run, asks(server, run), ["mmvet"], prompt)
    assert found["mmvet"]["prompt"] == "a file's"
    asked = [body["messages"][0]["content"] for _, _, body in server.requests]
    assert any("(to What 2?)" in text for text in asked)
    assert not any("a cat" in text for text in asked)
    with pytest.raises(JudgeError, match=r"--prompt: \{prediction\} does not stand in it"):
        judge(run, asks(server, run), ["mmvet"], "Grade {reference}")


def test_what_cannot_be_judged_is_named(server, run, tmp_path):
    with pytest.raises(JudgeError, match="has no answers of gone, but of clips, mmvet, textvqa"):
        judge(run, asks(server, run), ["gone"])
    with pytest.raises(JudgeError, match="textvqa: its benchmark is none of mmvet, msvdqa, activitynetqa"):
        judge(run, asks(server, run), ["textvqa"])
    with pytest.raises(JudgeError, match=r"has no answers to mmvet, msvdqa, .*, llava_bench; dslight validate writes"):
        judge(tmp_path / "empty", asks(server, run))
    with pytest.raises(JudgeError, match="--server: 'file:///etc'; an address such as"):
        JudgeServer("file:///etc", "m", tmp_path / "c")
    gone = JudgeServer("http://127.0.0.1:9/v1", "m", tmp_path / "c", retries=0)
    with pytest.raises(JudgeError, match=r"127\.0\.0\.1:9"):
        judge(run, gone, ["clips"])


def test_the_verb(server, run, capsys):
    assert main(["judge", str(run), "--server", server.url, "--model", "org/judge", "--source", "clips"]) == 0
    said = capsys.readouterr().out
    assert "val/clips/score_by_org_judge: 0.5000" in said
    assert "clips: 2 questions judged by org/judge (2 requests, 20 + 4 tokens)" in said
    assert (run / "judged" / "clips.org_judge.json").exists()


@pytest.mark.parametrize(
    ("kind", "reply", "expected"),
    [
        ("grade", "Grade: 0.7", Judgement(0.7)),
        ("grade", "1", Judgement(1.0)),
        ("grade", "0.0", Judgement(0.0)),
        ("grade", "7", None),
        ("grade", "", None),
        ("match", '{"pred": "no", "score": 2}', Judgement(0.0, 2.0)),
        ("match", "{'pred': 'Yes', 'score': 4.8}", Judgement(1.0, 4.8)),
        ("match", "{'pred': 'yes', 'score': 9}", None),
        ("match", "yes", None),
    ],
)
def test_what_a_reply_says(kind, reply, expected):
    assert parse_judgement(kind, reply) == expected


def test_braces_in_an_answer_stay():
    for prompt in PROMPTS.values():
        assert "{reference}" in filled(prompt, "q", "r", "say {reference}")


def asked(server, tmp_path, *prompts):
    return JudgeServer(server.url, "m", tmp_path / "cache.jsonl", wait=0.0).replies(prompts, usable=bool)


def test_a_line_that_was_cut_costs_no_reply_but_its_own(server, tmp_path):
    server.says = "yes"
    asked(server, tmp_path, "one", "two")
    cache = tmp_path / "cache.jsonl"
    cache.write_bytes(cache.read_bytes()[:-9])
    asked(server, tmp_path, "one", "two", "three")
    assert len(server.requests) == 4
    asked(server, tmp_path, "one", "two", "three")
    assert len(server.requests) == 4


def test_a_prompt_that_stands_twice_is_asked_once(server, tmp_path):
    server.says = "yes"
    assert asked(server, tmp_path, "one", "one", "two") == ["yes"] * 3
    assert len(server.requests) == 2


def test_another_server_of_the_same_model_name_is_asked_itself(server, tmp_path):
    server.says = "yes"
    asked(server, tmp_path, "one")
    other = JudgeServer(server.url + "/", "m", tmp_path / "cache.jsonl", wait=0.0)
    assert other.replies(["one"], usable=bool) == ["yes"]
    assert len(server.requests) == 2


def answered(run, source, rows):
    lines = [
        {"question_id": str(i), "benchmark": source, "question": "?", "references": ["r"], "prediction": said,
         "type": kind, "context": "a dog at the sea"}
        for i, (kind, said) in enumerate(rows)
    ]  # fmt: skip
    (run / "questions" / f"{source}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_charxiv_is_scored_by_kinds_of_questions(server, run):
    answered(run, "charxiv", [("reasoning", "a"), ("descriptive", "b"), ("descriptive", "c")])
    server.says = '{"extracted_answer": "a", "score": 1}'
    assert judge(run, asks(server, run), ["charxiv"])["charxiv"]["scores"] == {
        "val/charxiv/score_by_tiny-judge": 1.0,
        "val/charxiv/score_by_tiny-judge/descriptive": 1.0,
        "val/charxiv/score_by_tiny-judge/reasoning": 1.0,
    }


def test_llava_bench_is_the_ratio_of_what_both_answers_are_worth(server, run):
    answered(run, "llava_bench", [("conv", "a"), ("detail", "b")])
    server.says = "8 6\nThe second is shorter."
    scores = judge(run, asks(server, run), ["llava_bench"])["llava_bench"]["scores"]
    assert scores["val/llava_bench/score_by_tiny-judge"] == pytest.approx(0.75)
    assert scores["val/llava_bench/score_by_tiny-judge/conv"] == pytest.approx(0.75)
    assert "Description: a dog at the sea" in server.requests[-1][2]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("kind", "reply", "found"),
    [
        ("right", '{"score": 0}', Judgement(0.0)),
        ("right", "score: 1", Judgement(1.0)),
        ("right", '{"score": 0.5}', None),
        ("compare", "7, 9", Judgement(0.9, against=0.7)),
        ("compare", "I prefer\n7 9", None),
        ("compare", "0 9", None),
    ],
)
def test_what_other_verdicts_say(kind, reply, found):
    assert parse_judgement(kind, reply) == found
