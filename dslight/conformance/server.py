"""An OpenAI-compatible server under the kit's protocol: greedy answers, and nothing else can be asked of it.

It has to serve a family's folder as a model, for instance ``vllm serve`` or ``python -m mlx_vlm.server`` with the path
of ``dslight/conformance/kit/qwen3_vl``. A request is a chat of words and pictures: word n is the token n, and the
folder's template adds nothing.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np

from dslight.conformance.kit import Array, Batch, Family
from dslight.conformance.kit import Request as Asked
from dslight.conformance.protocol import NotOffered, UnreachableError

_LONGEST = 2**20
"""Bytes of a reply."""


class _Stays(HTTPRedirectHandler):
    """Follows no redirection: the key would go along, to a server that nobody named."""

    def redirect_request(self, *args: Any) -> None:
        return None


class Server:
    """Adapter of a server.

    Args:
        url: up to ``/v1``.
        model: its name on the server; default: the only one that it lists, or the first whose name ends in a family's.
        key_variable: of the environment, holds the key; not set: none is sent.
        timeout: seconds to wait for a reply.

    Raises:
        UnreachableError: for what is no address, or where nobody answers.
    """

    def __init__(
        self, url: str, model: str | None = None, key_variable: str = "OPENAI_API_KEY", timeout: float = 120.0
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not re.fullmatch(r"[!-~]+", url):
            raise UnreachableError(f"--of: {url!r}; an address such as http://127.0.0.1:8000/v1 is needed")
        self.url, self.timeout = url.rstrip("/"), timeout
        self.headers = {"Content-Type": "application/json"}
        if secret := os.environ.get(key_variable):
            self.headers["Authorization"] = f"Bearer {secret}"
        self.open = build_opener(_Stays).open
        listed = self.send("/models")
        try:
            self.models = [str(one["id"]) for one in listed["data"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UnreachableError(f"--of: {url}: no list of models at /models") from error
        self.model = model
        self.name = f"server {self.url}"

    def load(self, family: Family, dtype: str = "float32") -> ServerModel:
        """See :class:`~dslight.conformance.protocol.Adapter`."""
        if dtype != "float32":
            raise NotOffered("a server chooses its numbers itself")
        if not (family.folder / "preprocessor_config.json").is_file():
            raise NotOffered("the family has no image processor to be asked through")
        mine = [name for name in self.models if name.rstrip("/").endswith(family.name)]
        if self.model is None and not mine:
            raise NotOffered("the server has no such model")
        return ServerModel(self, self.model or mine[0], family)

    def send(self, path: str, body: Any = None) -> Any:
        """What the server says, parsed.

        Raises:
            UnreachableError: where nobody answers, or it refuses.
        """
        request = Request(self.url + path, None if body is None else json.dumps(body).encode(), self.headers)
        try:
            with self.open(request, timeout=self.timeout) as response:
                content = response.read(_LONGEST)
        except HTTPError as error:
            said = error.read(300).decode(errors="replace")
            if error.code in (401, 403, 404, 407) or body is None:
                raise UnreachableError(f"--of: {self.url}{path}: HTTP {error.code}: {said}") from error
            raise RuntimeError(f"HTTP {error.code}: {said}") from error
        except (URLError, TimeoutError, ConnectionError) as error:
            raise UnreachableError(f"--of: {self.url}{path}: {getattr(error, 'reason', error)}") from error
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UnreachableError(f"--of: {self.url}{path}: no JSON: {content[:100]!r}") from error


class ServerModel:
    """A family's folder, served."""

    def __init__(self, server: Server, model: str, family: Family) -> None:
        self.server, self.model, self.family = server, model, family
        tokenizer = json.loads((family.folder / "tokenizer.json").read_text(encoding="utf-8"))
        self.words = {index: word for word, index in tokenizer["model"]["vocab"].items()}

    def generate(self, batch: Batch, new: int, beams: int = 1, chunk: int | None = None) -> Array:
        """See :class:`~dslight.conformance.protocol.Model`."""
        if beams > 1 or chunk is not None:
            raise NotOffered("a server is asked for greedy answers; beams and pieces are its own matter")
        return np.array([self.answer(request, new) for request in batch.requests])

    def answer(self, request: Asked, new: int) -> list[int]:
        """Ids of an answer; -1 for a word that is none of the family's."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.content(request)}],
            "temperature": 0.0,
            "max_tokens": new,
        }
        reply = self.server.send("/chat/completions", body)
        text = reply["choices"][0]["message"]["content"] or ""
        index = {word: i for i, word in self.words.items()}
        found = [index.get(word, -1) for word in text.split()]
        return (found + [-1] * new)[:new]

    def content(self, request: Asked) -> list[dict[str, Any]]:
        """The prompt as words and pictures."""
        if len(request.pictures) != len(request.pixels):
            raise NotOffered("it has a video, which no server takes as a file")
        made: list[dict[str, Any]] = []
        pictures = iter(request.pictures)
        skip = {token for token, word in self.words.items() if word.startswith("<|vision")}
        inside = False
        for token, visual in zip(request.prompt.tolist(), request.visual.tolist(), strict=False):
            if visual and not inside:
                made.append({"type": "image_url", "image_url": {"url": as_url(next(pictures))}})
            elif not visual and token not in skip:
                made.append({"type": "text", "text": self.words[token]})
            inside = visual
        return made


def as_url(picture: Array) -> str:
    """A picture ``[H, W, 3]`` as a PNG in an address."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
