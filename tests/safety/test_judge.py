"""What a judge's server, the answers it judges and the files beside them may hold: a sentence, or it still works."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dslight.cli import main
from dslight.errors import UserError
from dslight.run.judge import judge
from dslight.run.judge_server import JudgeServer
from dslight.texts import LONGEST

ROW = {"question_id": "q", "benchmark": "mmvet", "question": "What?", "prediction": "a", "references": ["a"]}
REPLY: dict[str, Any] = {"choices": [{"message": {"content": "0.5"}}]}


class Answers(ThreadingHTTPServer):
    """Sends these bytes for every request, and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says = b""
        self.heard: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.heard.append((self.path, self.headers.get("Authorization")))
        self.wfile.write(self.server.says)
        self.close_connection = True

    do_GET = do_POST  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


def http(body: bytes, head: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def server() -> Iterator[Answers]:
    made = Answers()
    made.says = http(json.dumps(REPLY).encode())
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    file = tmp_path / "run" / "questions" / "mmvet.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(ROW) + "\n")
    return tmp_path / "run"


def asked(server: Answers, run: Path, url: str | None = None) -> dict[str, Any]:
    made = JudgeServer(url or server.url, "m", run / "judged" / "replies.jsonl", retries=1, wait=0.001)
    return judge(run, made)


@pytest.mark.promise("a wrong type in a file is a sentence", "replies of a judge's server")
@pytest.mark.parametrize(
    "says",
    [
        http(b"[" * 100_000),
        http(json.dumps(REPLY | {"usage": {"prompt_tokens": "many"}}).encode()),
        http(json.dumps(REPLY | {"usage": [1]}).encode()),
        http(json.dumps(REPLY | {"usage": {"prompt_tokens": 1}}).replace("1}", "1e400}").encode()),
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}",
    ],
    ids=["nested", "a text for tokens", "a list for usage", "infinitely many tokens", "no http", "cut"],
)
def test_replies_that_are_none(says, server, run, outcome):
    server.says = says
    with pytest.raises(UserError, match="--server") as refused:
        asked(server, run)
    assert max(map(len, str(refused.value).splitlines())) <= LONGEST
    outcome(refused)


@pytest.mark.promise("nothing is sent to anybody who was not named", "a judge's server that sends to another one")
def test_the_key_stays_with_the_server_that_was_named(server, run, monkeypatch, outcome):
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
    other = Answers()
    other.says = server.says
    threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
    server.says = http(b"", f"302 Found\r\nLocation: {other.url}")
    with pytest.raises(UserError, match="--server") as refused:
        asked(server, run)
    other.shutdown()
    other.server_close()
    assert other.heard == []
    outcome(refused)


@pytest.mark.promise("a wrong type in a file is a sentence", "addresses of a judge's server that are none")
@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/v1", "http://[/v1", "http://127.0.0.1/a b", "http:///v1"])
def test_addresses_that_are_none(url, server, run):
    with pytest.raises(UserError, match="--server"):
        asked(server, run, url)


@pytest.mark.promise("a wrong type in a file is a sentence", "a key that fits in no header")
@pytest.mark.parametrize("key", ["two\nlines", "schlüssel€"])
def test_a_key_that_fits_in_no_header(key, server, run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY") as refused:
        asked(server, run)
    assert key not in str(refused.value)


@pytest.mark.promise("a wrong type in a file is a sentence", "answers that are to be judged")
@pytest.mark.parametrize(
    "text",
    [
        b'{"question_id": "q", "ben', b"[1]\n", b"\xff\xfe\n", b"7",
        *(json.dumps(ROW | change).encode() for change in ({"references": 7}, {"prediction": None}, {"question": []})),
        json.dumps({key: value for key, value in ROW.items() if key != "references"}).encode(),
    ],
)  # fmt: skip
def test_answers_that_are_none(text, server, run):
    (run / "questions" / "mmvet.jsonl").write_bytes(text)
    with pytest.raises(UserError, match=r"mmvet\.jsonl:1"):
        asked(server, run)


@pytest.mark.promise("a wrong type in a file is a sentence", "a judge's cache and prompt that are none")
def test_files_beside(server, run, tmp_path, capsys):
    cache = run / "judged" / "replies.jsonl"
    cache.parent.mkdir()
    cache.write_bytes(b'\xff\xfe\n{"key": "a", "reply": 7}\n' + b"[" * 100_000)
    assert asked(server, run)["mmvet"]["asked"] == 1
    (tmp_path / "binary").write_bytes(b"\xff{prediction}")
    for name in ("missing", "binary"):
        prompt = tmp_path / name
        assert main(["judge", str(run), "--server", server.url, "--model", "m", "--prompt", str(prompt)]) == 1
        assert f"--prompt: {prompt}" in capsys.readouterr().err


@pytest.mark.promise("nothing is written elsewhere", "a run whose judged folder, or cache, is a link")
@pytest.mark.parametrize("name", ["judged", "judged/replies.jsonl"])
def test_nothing_is_written_through_a_link(name, server, run, tmp_path, outcome):
    target = tmp_path / "mine"
    if name == "judged":
        target.mkdir()
    else:
        target.write_text("")
        (run / "judged").mkdir()
    (run / name).symlink_to(target)
    with pytest.raises(UserError, match="symbolic link") as refused:
        asked(server, run)
    assert not any(target.iterdir()) if target.is_dir() else target.read_text() == ""
    outcome(refused)
