"""The runner: dslight passes its own kit; functions, servers and classes of transformers are asked; what cannot be is
said in a sentence.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import transformers

from dslight.cli import main
from dslight.conformance import NotOffered, families, run
from dslight.conformance.cases import CASES
from dslight.conformance.own import Dslight
from dslight.conformance.own_transformers import Transformers
from dslight.conformance.protocol import UnreachableError
from dslight.conformance.server import Server

FAMILIES = {family.name: family for family in families()}
QWEN = [FAMILIES["qwen3_vl"]]


@pytest.mark.parametrize("name", FAMILIES)
def test_dslight_passes_every_case_that_it_offers(name):
    report = run(Dslight(), among=[FAMILIES[name]])
    assert report.failed == []
    missing = {one.case for one in report.outcomes if one.verdict == "not offered"}
    assert missing <= {"vision", "image and video", "inputs", "gates", "one layer twice"}
    assert len(report.outcomes) == len(CASES)


@pytest.mark.parametrize("name", ["qwen3_vl", *(pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES)])
def test_the_familys_own_class_agrees_with_itself(name):
    made_with = FAMILIES[name].facts["made with"]["transformers"]
    if transformers.__version__ != made_with:
        pytest.skip(f"what transformers {made_with} misses is known, not what {transformers.__version__} does")
    failed = {one.case for one in run(Transformers(), among=[FAMILIES[name]]).failed}
    assert failed <= FAMILIES[name].facts["deviations"].keys()


def test_a_function_is_asked_for_logits_in_one_pass():
    seen = []

    def forward(family, batch):
        seen.append((family.name, batch.ids.shape))
        return np.stack([np.pad(r.logits, [(batch.length - len(r.ids), 0), (0, 0)]) for r in batch.requests])

    report = run(forward, ["prefill", "left padding", "chunks", "beams", "qwen3_vl"])
    verdicts = {one.case: one.verdict for one in report.outcomes}
    assert verdicts == {
        "prefill": "passed", "chunks": "not offered", "beams": "not offered", "left padding": "not offered",
    }  # fmt: skip
    assert {name for name, _ in seen} == {"qwen3_vl"}
    wrong = run(lambda family, batch: forward(family, batch) + 0.01, ["prefill", "qwen3_vl"])
    assert [round(one.size, 3) for one in wrong.failed] == [0.01]


def test_what_an_implementation_raises_fails_its_case_alone():
    class Breaks:
        name = "breaks"

        def load(self, family, dtype="float32"):
            if dtype == "bfloat16":
                raise NotOffered("no such numbers")
            raise KeyError("weights")

    report = run(Breaks(), ["prefill", "bfloat16", "qwen3_vl"])
    assert [(one.case, one.verdict, one.said) for one in report.outcomes] == [
        ("prefill", "raised", "KeyError: 'weights'"),
        ("bfloat16", "not offered", "no such numbers"),
    ]
    assert "| prefill | **raises** |" in report.to_text()


def test_a_logit_that_is_not_given_does_not_pass():
    report = run(lambda family, batch: np.full((1, batch.length, 64), np.nan), ["prefill", "qwen3_vl"])
    assert [one.verdict for one in report.outcomes] == ["missed"]


@pytest.mark.parametrize("name", ["prefil", "qwen"])
def test_a_name_of_no_case_and_no_family_is_refused(name, capsys):
    assert main(["conformance", "--only", name]) == 1
    assert f"--only: {name!r} is neither a case" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ("vllm", "module:callable is needed"),
        ("no.such.module:Adapter", "No module named"),
        ("dslight.conformance:Nothing", "no attribute 'Nothing'"),
        ("ftp://host/v1", "an address such as"),
        ("http://127.0.0.1:9/v1", "--of: http://127.0.0.1:9/v1/models"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(of, said, capsys):
    assert main(["conformance", "--of", of]) == 1
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err


def test_the_command_prints_a_table_and_writes_its_section_of_a_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- conformance of dslight -->\nold\n<!-- end -->\n\nthe rest\n")
    assert main(["conformance", "--only", "prefill", "--only", "qwen3_vl", "--out", str(page)]) == 0
    assert "| prefill | 0 |" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("# Page\n\n<!-- conformance of dslight -->\n\n20")
    assert "| prefill | 0 |" in text
    assert "old" not in text
    assert text.endswith("<!-- end -->\n\nthe rest\n")


def test_a_class_that_takes_anothers_numbers_has_a_column_of_its_own(capsys):
    assert main(["conformance", "--of", "transformers", "--only", "cosmos3_omni", "--only", "prefill"]) == 0
    shown = capsys.readouterr().out
    assert "| case | cosmos3_omni |" in shown
    assert "| prefill | 0 |" in shown


class Chat(BaseHTTPRequestHandler):
    """A server that answers right, or always what it answered first."""

    answers: dict[str, str] = {}  # noqa: RUF012
    frozen = False
    first = ""

    def do_GET(self):
        self.reply({"data": [{"id": "/models/qwen3_vl"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (asked["temperature"], asked["max_tokens"], asked["model"]) == (0.0, 8, "/models/qwen3_vl")
        text = self.answers[json.dumps(asked["messages"][0]["content"])]
        if self.frozen:
            type(self).first = text = self.first or text
        self.reply({"choices": [{"message": {"content": text}}]})

    def reply(self, body):
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("frozen", [False, True])
def test_a_server_is_asked_for_greedy_answers(frozen):
    from dslight.conformance.server import ServerModel

    served = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    asking = ServerModel(None, "", QWEN[0])
    for request in QWEN[0].requests.values():
        if len(request.pictures) == len(request.pixels):
            words = " ".join(f"w{i}" for i in request.answer)
            Chat.answers[json.dumps(asking.content(request))] = words
    Chat.frozen, Chat.first = frozen, ""
    try:
        report = run(Server(f"http://127.0.0.1:{served.server_port}/v1"))
    finally:
        served.shutdown()
        served.server_close()
    asked = {
        one.case: one.verdict for one in report.outcomes if one.family == "qwen3_vl" and one.verdict != "not offered"
    }
    assert asked.keys() == {
        "greedy", "left padding answered", "interleaved", "shared prefix", "several images", "text only", "column 0",
    }  # fmt: skip
    wrong = {"left padding answered", "interleaved", "shared prefix", "several images", "text only", "column 0"}
    assert {case for case, verdict in asked.items() if verdict == "missed"} == (wrong if frozen else set())
    assert {one.verdict for one in report.outcomes if one.family != "qwen3_vl"} == {"not offered"}


def test_a_server_that_goes_away_ends_the_run():
    served = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    thread = threading.Thread(target=served.handle_request, daemon=True)
    thread.start()
    server = Server(f"http://127.0.0.1:{served.server_port}/v1")
    thread.join()
    served.server_close()
    with pytest.raises(UnreachableError, match="/chat/completions"):
        run(server, among=QWEN)
