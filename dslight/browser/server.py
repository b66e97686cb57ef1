"""The page's server: three addresses beside the page itself, for this machine alone.

What it takes from a browser is bounded before it is read, and comes from its own page only: another page that is open
in the same browser cannot ask it (``Host``, ``Origin`` and the content type are looked at). Faults are sentences.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dslight.browser.examples import Examples
from dslight.browser.models import Switches, Talker
from dslight.browser.watching import watched
from dslight.errors import UserError
from dslight.limits import limit

HERE = Path(__file__).parent
FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
WATCH_FILES = {"/": "watch.html", "/page.css": "page.css", "/watch.js": "watch.js"}
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
IMAGES, QUESTION, LONGEST = 8, 4_000, 1_024
"""Pictures of a question, its characters, and tokens of an answer, at most."""
LOOPBACK = ("127.0.0.1", "localhost")


class RefusedError(UserError):
    """What a browser sent and is told of in a sentence."""


def application(
    talkers: Sequence[Talker],
    max_new_tokens: int = 64,
    hosts: Sequence[str] = (),
    examples: Examples | None = None,
) -> Starlette:
    """The page as an ASGI application.

    Args:
        talkers: one model, or two side by side.
        max_new_tokens: of an answer, where the page says nothing.
        hosts: names by which it may be called beside this machine's own.
        examples: what the page offers to begin with.
    """

    async def file(request: Request) -> Response:
        return FileResponse(HERE / FILES[request.url.path], headers=SAFE)

    async def state(request: Request) -> Response:
        most = {"bytes": limit("upload_bytes"), "images": IMAGES, "question": QUESTION, "tokens": LONGEST}
        facts = {"models": [each.facts() for each in talkers], "max_new_tokens": max_new_tokens, "most": most}
        facts["examples"] = 0 if examples is None else len(examples)
        return JSONResponse(facts, headers=SAFE)

    async def example(request: Request) -> Response:
        number = request.path_params["number"]
        try:
            if not examples:
                raise RefusedError("example: there is none")
            return JSONResponse(await run_in_threadpool(examples, number), headers=SAFE)
        except (ValueError, OSError) as error:
            return _refusal(error)

    async def ask(request: Request) -> Response:
        try:
            asked = _asked(await _body(request), len(talkers), max_new_tokens)
        except UserError as error:
            return _refusal(error)
        events = _events(request, talkers, asked)
        return StreamingResponse(events, media_type="application/x-ndjson", headers=SAFE)

    async def looked(request: Request) -> Response:
        try:
            body = await _body(request)
            asked = _asked(body, len(talkers), max_new_tokens)
            number = body.get("model", 0)
            if not isinstance(number, int) or not 0 <= number < len(talkers):
                raise RefusedError(f"model: {number!r}; there are {len(talkers)}, from 0")
            answer = body.get("answer")
            if answer is not None and (not isinstance(answer, str) or len(answer) > 20_000):
                raise RefusedError("answer: a text of at most 20,000 characters")
            see = partial(talkers[number].look, asked["question"], asked["images"], asked["switches"][number], answer)
            return JSONResponse(await run_in_threadpool(see), headers=SAFE)
        except ValueError as error:
            return _refusal(error)

    routes = [Route(path, file) for path in FILES]
    routes += [Route("/state", state), Route("/example/{number:int}", example)]
    routes += [Route("/ask", ask, methods=["POST"]), Route("/look", looked, methods=["POST"])]
    known = [*LOOPBACK, *hosts]
    only = Middleware(TrustedHostMiddleware, allowed_hosts=known, www_redirect=False)
    return Starlette(routes=routes, middleware=[only])


def watching(find: Callable[[], list[tuple[str, Path]]], hosts: Sequence[str] = ()) -> Starlette:
    """The page of ``dslight watch`` as an ASGI application.

    Args:
        find: names and folders of the runs, asked again with every look.
        hosts: names by which it may be called beside this machine's own.
    """

    async def file(request: Request) -> Response:
        return FileResponse(HERE / WATCH_FILES[request.url.path], headers=SAFE)

    async def runs(request: Request) -> Response:
        found = await run_in_threadpool(lambda: [watched(name, folder) for name, folder in find()])
        return JSONResponse({"runs": found}, headers=SAFE)

    only = Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, *hosts], www_redirect=False)
    return Starlette(routes=[*(Route(path, file) for path in WATCH_FILES), Route("/runs", runs)], middleware=[only])


def _refusal(error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400, headers=SAFE)


async def _body(request: Request) -> dict[str, Any]:
    """What the page sent, read no further than the limit."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RefusedError("content-type: application/json is what the page sends")
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise RefusedError(f"origin: {origin} is another page")
    most, read = limit("upload_bytes"), bytearray()
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > most:
        raise RefusedError(f"pictures: {int(said):,} bytes; at most {most:,} in all")
    async for chunk in request.stream():
        read += chunk
        if len(read) > most:
            raise RefusedError(f"pictures: more than {most:,} bytes in all")
    try:
        body = json.loads(bytes(read))
    except (ValueError, RecursionError):
        raise RefusedError("the request is no JSON") from None
    if not isinstance(body, dict):
        raise RefusedError("the request is no object")
    return body


def _asked(body: Mapping[str, Any], models: int, max_new_tokens: int) -> dict[str, Any]:
    question, images, switches = body.get("question"), body.get("images", []), body.get("switches", [])
    if not isinstance(question, str) or not question.strip():
        raise RefusedError("question: ask something")
    if len(question) > QUESTION:
        raise RefusedError(f"question: {len(question):,} characters; at most {QUESTION:,}")
    if not isinstance(images, list) or len(images) > IMAGES:
        raise RefusedError(f"pictures: at most {IMAGES} at a time")
    longest = body.get("max_new_tokens", max_new_tokens)
    if not isinstance(longest, int) or isinstance(longest, bool) or not 1 <= longest <= LONGEST:
        raise RefusedError(f"max_new_tokens: {longest!r}; a whole number from 1 to {LONGEST:,}")
    if not isinstance(switches, list) or len(switches) > models:
        raise RefusedError(f"switches: one for each of the {models} models")
    made = [_switches(each) for each in switches] + [Switches()] * (models - len(switches))
    return {
        "question": question, "images": [_picture(i, each) for i, each in enumerate(images)], "switches": made,
        "longest": longest,
    }  # fmt: skip


def _switches(said: Any) -> Switches:
    off = said.get("off", []) if isinstance(said, dict) else None
    if not isinstance(off, list) or not all(isinstance(one, int) for one in off):
        raise RefusedError("switches: {off: [numbers of stacks], swapped: true or false}")
    return Switches(tuple(off), bool(said.get("swapped")))


def _picture(number: int, address: Any) -> bytes:
    if not isinstance(address, str) or not address.startswith("data:"):
        raise RefusedError(f"picture {number + 1}: is none")
    try:
        return base64.b64decode(address.partition(",")[2], validate=True)
    except binascii.Error:
        raise RefusedError(f"picture {number + 1}: its base64 cannot be read") from None


async def _events(request: Request, talkers: Sequence[Talker], asked: Mapping[str, Any]) -> AsyncIterator[str]:
    """A line of JSON for every piece of every model's answer, as it comes; ends where the browser goes."""
    queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def tell(event: dict[str, Any] | None) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, event)

    def run(number: int, talker: Talker) -> None:
        try:
            given = (asked["question"], asked["images"], asked["switches"][number], asked["longest"], stop)
            for event in _pieces(talker, given):
                tell({"model": number, **event})
        finally:
            tell(None)

    for number, talker in enumerate(talkers):
        threading.Thread(target=run, args=(number, talker), daemon=True).start()
    left = len(talkers)
    try:
        while left:
            event = await queue.get()
            if event is None:
                left -= 1
            else:
                yield json.dumps(event) + "\n"
    finally:
        stop.set()


def _pieces(talker: Talker, given: Sequence[Any]) -> Iterator[dict[str, Any]]:
    try:
        yield from talker.answer(*given)
    except (ValueError, OSError) as error:  # a picture that is none, a question that is too long
        yield {"error": str(error)}
    except Exception as error:  # a fault of the model's: it is said where one looks, and the page lives on
        yield {"error": f"the model failed: {type(error).__name__}: {error}"}
