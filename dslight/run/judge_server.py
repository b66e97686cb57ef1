"""A language model behind an OpenAI-compatible server (``/chat/completions``): OpenAI, vLLM, SGLang, llama.cpp, ...

Nothing is sent to anybody who was not named. The key is read from a variable of the environment and goes into the
header of the requests alone. What is answered once is kept on disk, by server, model and prompt, so that a second run
or an interrupted one asks only what is missing.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from dslight.errors import UserError
from dslight.files.typed import FileError, parse_json

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
_LONGEST = 2**20
"""Bytes of a reply."""
_PRINTED = re.compile(r"[!-~]*")
"""What stands in an address or in a key."""


class JudgeError(UserError):
    """The server cannot be asked, or answers with an error."""


class _Stays(HTTPRedirectHandler):
    """Follows no redirection: the key would go along, to a server that nobody named."""

    def redirect_request(self, *args: Any) -> None:
        return None


_open = build_opener(_Stays).open


@dataclass(frozen=True)
class _Kept:
    """What is read of a line of the cache."""

    key: str
    reply: str


@dataclass
class JudgeServer:
    """Asks, retries and remembers.

    Attributes:
        url: up to ``/v1``.
        model: its name on the server.
        cache: a file of JSON lines.
        key_variable: the variable of the environment that holds the key; not set: none is sent.
        concurrency: requests at a time.
        retries: of a request that was told to come again (429, 5xx) or found no connection, and of a reply that is of
            no use.
        timeout: seconds to wait for a reply.
        wait: seconds before the first retry; doubled every time.
        max_tokens: of a reply.
        tokens: of the prompts and of the replies, as the server counted them; what the cache gave costs nothing.
        asked: requests that were answered.
    """

    url: str
    model: str
    cache: Path
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    retries: int = 5
    timeout: float = 120.0
    wait: float = 1.0
    max_tokens: int = 256
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    asked: int = 0
    _cut: bool = field(default=False, repr=False)
    _known: dict[str, str] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            named = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
        except ValueError:
            named = False
        if not named or not _PRINTED.fullmatch(self.url):
            raise JudgeError(f"--server: {self.url!r}; an address such as http://127.0.0.1:8000/v1 is needed")
        if not _PRINTED.fullmatch(os.environ.get(self.key_variable, "")):
            raise JudgeError(f"{self.key_variable}: holds characters that are of no key, such as a line break")
        if self.concurrency < 1:
            raise JudgeError(f"--concurrency: {self.concurrency}; 1 or more")
        if linked := next((one for one in (self.cache.parent, self.cache) if one.is_symlink()), None):
            raise JudgeError(f"{linked}: is a symbolic link, through which nothing is written; remove it")
        if self.cache.exists():
            content = self.cache.read_bytes()
            self._cut = not content.endswith(b"\n") and content != b""
            for line in content.splitlines():
                try:
                    row = parse_json(line, _Kept, self.cache)
                    self._known[row.key] = row.reply
                except FileError:
                    continue  # a line that was cut when a run was stopped

    def replies(self, prompts: Sequence[str], usable: Callable[[str], bool]) -> list[str]:
        """The reply to each prompt, in order. One that is not ``usable`` is asked for again, up to ``retries`` times,
        with a little temperature, and is not kept.

        Raises:
            JudgeError: the server refuses, or cannot be reached.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = {prompt: pool.submit(self._reply, prompt, usable) for prompt in dict.fromkeys(prompts)}
            try:
                return [futures[prompt].result() for prompt in prompts]
            except BaseException:
                for future in futures.values():
                    future.cancel()
                raise

    def _reply(self, prompt: str, usable: Callable[[str], bool]) -> str:
        key = sha256(json.dumps([self.url, self.model, prompt, self.max_tokens]).encode()).hexdigest()
        with self._lock:
            if key in self._known:
                return self._known[key]
        reply = ""
        for attempt in range(self.retries + 1):
            reply = self._request(prompt, temperature=0.0 if attempt == 0 else 0.5)
            if usable(reply):
                break
        else:
            return reply
        with self._lock:
            self._known[key] = reply
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with self.cache.open("a", encoding="utf-8") as file:
                file.write("\n" * self._cut)  # behind a line that was cut
                self._cut = False
                file.write(json.dumps({"key": key, "model": self.model, "reply": reply}) + "\n")
        return reply

    def _request(self, prompt: str, temperature: float) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {secret}"
        address = self.url.rstrip("/") + "/chat/completions"
        request = Request(address, json.dumps(body).encode(), headers)
        for attempt in range(self.retries + 1):
            try:
                with _open(request, timeout=self.timeout) as response:
                    return self._read(response.read(_LONGEST))
            except HTTPError as error:
                said = error.read(300).decode(errors="replace")
                if error.code not in _AGAIN or attempt == self.retries:
                    raise JudgeError(f"--server {address}: HTTP {error.code}: {said}") from error
            except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
                if attempt == self.retries:
                    said = getattr(error, "reason", error)
                    raise JudgeError(f"--server {address}: {type(error).__name__}: {said}") from error
            time.sleep(self.wait * 2**attempt * (1 + random.random() / 4))
        raise AssertionError("unreachable")

    def _read(self, content: bytes) -> str:
        try:
            found: dict[str, Any] = json.loads(content)
            reply = found["choices"][0]["message"]["content"] or ""
            usage = found.get("usage") or {}
            tokens = [int(usage.get(f"{what}_tokens") or 0) for what in ("prompt", "completion")]
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise JudgeError(f"--server {self.url}: not a chat completion: {content[:200]!r}") from error
        with self._lock:
            self.asked += 1
            self.tokens = [had + more for had, more in zip(self.tokens, tokens, strict=True)]
        return str(reply)
