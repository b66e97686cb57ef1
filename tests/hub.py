"""A Hub on loopback: of huggingface_hub's protocol what uploads and downloads of a model ask, by LFS."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    """What the Hub holds of one."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)


class Hub:
    """Repositories by name; ``asked`` is every request, as ``METHOD path``."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.address = ""


@contextmanager
def serving() -> Iterator[Hub]:
    """The Hub while it runs, at ``hub.address``."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, code: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps({} if content is None else content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            self.hub.stored[parts[1]] = body
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self.answer(200)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif path == "/api/validate-yaml":
            self.answer(200)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        else:
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
            there = self.hub.repositories.get(name)
            if there is None:
                self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            elif parts[0] == "api":
                self.api(name, there, parts[4:], body)
            elif parts[2] == "info":
                asked = json.loads(body)["objects"]
                objects = [
                    {**one, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}} for one in asked
                ]
                self.answer(200, {"transfer": "basic", "objects": objects})
            else:
                self.resolve(there, "/".join(parts[4:]))

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 - the names that http.server calls

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"})
            return
        if asked["organization"] != "me":
            self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            return
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        self.answer(200, {"url": f"{self.hub.address}/{name}", "name": name})

    def api(self, name: str, there: Repository, what: list[str], body: bytes) -> None:
        if what[:1] == ["preupload"]:
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif what[:1] == ["commit"]:
            self.commit(there, [json.loads(line) for line in body.splitlines()])
            self.answer(
                200, {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.hub.address}/{name}/commit/1"}
            )
        elif what[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in there.files.items()
            ]
            self.answer(200, entries)
        else:
            siblings = [{"rfilename": file} for file in there.files]
            about = {"id": name, "sha": "1" * 40, "private": there.private, "siblings": siblings}
            self.answer(200, about | {"tags": [], "downloads": 0, "likes": 0})

    def commit(self, there: Repository, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                there.messages.append(value["summary"])
            elif line["key"] == "file":
                there.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                there.files[value["path"]] = self.hub.stored[value["oid"]]
                there.lfs.add(value["path"])
            else:
                assert line["key"] == "deletedFile", line
                del there.files[value["path"]]

    def resolve(self, there: Repository, name: str) -> None:
        if name not in there.files:
            self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit="1" * 40)
            return
        content = there.files[name]
        etag = hashlib.sha256(content).hexdigest()
        self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit="1" * 40)
