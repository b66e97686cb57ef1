"""The cases: ways of computing the same requests, all of which have to come to the same numbers.

A case yields *misses*: how far an implementation was from what is expected, where. Each is about one thing, so that
what is red says what is wrong; requests of another kind than plain ones (several images, a video, an image at column 0)
are asked in their own cases only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from dslight.conformance.kit import Array, Batch, Family, Request
from dslight.conformance.protocol import NotOffered

BEAMS = 3


@dataclass(frozen=True)
class Miss:
    """One comparison.

    Attributes:
        size: the largest absolute difference of logits, slots or gradients; of ids, how many are wrong.
        limit: up to which it passes.
        where: in words.
    """

    size: float
    limit: float
    where: str

    @property
    def passed(self) -> bool:
        """Whether it is near enough; NaN is not."""
        return self.size <= self.limit


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: of the command line.
        says: what is computed, in a sentence.
        needs: the methods of a model that it cannot do without; of ``a|b``, one.
        run: the misses of a model of a family.
        dtype: of the weights.
    """

    name: str
    says: str
    needs: tuple[str, ...]
    run: Callable[[Any, Family], Iterator[Miss]]
    dtype: str = "float32"


CASES: dict[str, Case] = {}


def _case(name: str, says: str, *needs: str, dtype: str = "float32") -> Callable[[Any], Any]:
    def put(run: Any) -> Any:
        CASES[name] = Case(name, says, needs, run, dtype)
        return run

    return put


def compare(found: Array, batch: Batch, start: int, limit: float, where: str) -> Iterator[Miss]:
    """Logits ``[B, n, vocabulary]`` of the columns from ``start`` on, against those of each row alone; padding is not
    looked at, and NaN stands for what is not given.
    """
    end = start + found.shape[1]
    for row, request in enumerate(batch.requests):
        real = batch.real(row)
        first = max(start, real.start)
        if first >= end:
            continue
        mine, expected = found[row, first - start :], request.logits[first - real.start : end - real.start]
        given = np.logical_not(np.isnan(mine).any(axis=-1))
        size = float(np.abs(mine - expected)[given].max()) if bool(given[-1]) else float("nan")
        yield Miss(size, limit, f"{where}, row {request.name}" if len(batch.requests) > 1 else where)


def _alone(model: Any, family: Family, name: str, dtype: str = "float32") -> Iterator[Miss]:
    batch = family.batch(name)
    yield from compare(model.open(batch).feed(batch.length), batch, 0, family.tolerance(dtype), f"{name}, one pass")


def _cached(model: Any, family: Family, batch: Batch, where: str) -> Iterator[Miss]:
    """The prompts in a pass, then the answers token by token."""
    session = model.open(batch)
    yield from compare(session.feed(batch.prompt), batch, 0, family.tolerance(), f"{where}, prompt")
    for column in range(batch.prompt, batch.length):
        step = f"{where}, step {column - batch.prompt + 1}"
        yield from compare(session.feed(1), batch, column, family.tolerance(), step)


def _pieces(model: Any, family: Family, name: str, ends: list[int]) -> Iterator[Miss]:
    batch, start = family.batch(name), 0
    session = model.open(batch)
    for end in [*ends, batch.length]:
        where = f"{name} cut at {', '.join(map(str, ends))}" if len(ends) < 4 else f"{name} column by column"
        yield from compare(session.feed(end - start), batch, start, family.tolerance(), where)
        start = end


def _same_ids(found: Array, request: Request, expected: Array, where: str) -> Miss:
    found = np.asarray(found)[: len(expected)]
    wrong = int((found != expected[: len(found)]).sum()) + len(expected) - len(found)
    return Miss(float(wrong), 0.0, f"{where}: {found.tolist()} for {expected.tolist()}")


def _answers(model: Any, batch: Batch, where: str, beams: int = 1, chunk: int | None = None) -> Iterator[Miss]:
    new = len(batch.requests[0].answer)
    options = {name: value for name, value in (("beams", beams), ("chunk", chunk)) if value not in (1, None)}
    found = model.generate(batch, new, **options)
    for row, request in zip(found, batch.requests, strict=True):
        expected = request.answer if beams == 1 else request.beams
        yield _same_ids(row, request, expected, f"{where}, {request.name}")


def _has(family: Family, name: str) -> None:
    if name not in family.requests:
        raise NotOffered("the family has none")


@_case("vision", "the visual tokens of an image: base and every stack", "see")
def _vision(model: Any, family: Family) -> Iterator[Miss]:
    for name, request in family.requests.items():
        if request.pixels and name != "video":
            yield from _slots(model, request)


def _slots(model: Any, request: Request) -> Iterator[Miss]:
    found = np.asarray(model.see(request))
    if found.shape != request.slots.shape:
        yield Miss(float("nan"), 0.0, f"{request.name}: slots {found.shape} for {request.slots.shape}")
        return
    for level, (mine, expected) in enumerate(zip(found, request.slots, strict=True)):
        yield Miss(float(np.abs(mine - expected).max()), 1e-4, f"{request.name}, slot {level}")


@_case("prefill", "a prompt with an image, in one pass", "open")
def _prefill(model: Any, family: Family) -> Iterator[Miss]:
    yield from _alone(model, family, "one")


@_case("chunks", "the prompt in two passes with a cache, cut at every column; and column by column", "open")
def _chunks(model: Any, family: Family) -> Iterator[Miss]:
    length = len(family.requests["one"].prompt)
    for end in range(1, length):
        yield from _pieces(model, family, "one", [end])
    yield from _pieces(model, family, "one", list(range(1, length)))


@_case("cached decoding", "the answer token by token, with a cache", "open")
def _decoding(model: Any, family: Family) -> Iterator[Miss]:
    yield from _cached(model, family, family.batch("one"), "one")


@_case("greedy", "the answer, generated", "generate")
def _greedy(model: Any, family: Family) -> Iterator[Miss]:
    yield from _answers(model, family.batch("one"), "greedy")


@_case("greedy in pieces", "the answer, generated behind a prompt in pieces of 2, 3 and 5 columns", "generate")
def _greedy_chunks(model: Any, family: Family) -> Iterator[Miss]:
    for chunk in (2, 3, 5):
        yield from _answers(model, family.batch("one"), f"pieces of {chunk}", chunk=chunk)


@_case("beams", f"the best of {BEAMS} beams", "generate")
def _beams(model: Any, family: Family) -> Iterator[Miss]:
    yield from _answers(model, family.batch("one"), "beams", BEAMS)


@_case("left padding", "a batch of prompts of unequal length, in one pass and token by token", "open")
def _padding(model: Any, family: Family) -> Iterator[Miss]:
    batch = family.batch("one", "branch")
    yield from compare(model.open(batch).feed(batch.length), batch, 0, family.tolerance(), "one pass")
    yield from _cached(model, family, batch, "cached")


@_case("left padding answered", "a batch of prompts of unequal length, answered", "generate")
def _padding_greedy(model: Any, family: Family) -> Iterator[Miss]:
    yield from _answers(model, family.batch("one", "branch"), "a batch")


@_case("left padding with beams", f"a batch of prompts of unequal length, {BEAMS} beams each", "generate")
def _padding_beams(model: Any, family: Family) -> Iterator[Miss]:
    yield from _answers(model, family.batch("one", "branch"), "a batch", BEAMS)


@_case("interleaved", "two requests served by one model in turns", "open|generate")
def _interleaved(model: Any, family: Family) -> Iterator[Miss]:
    batches = [family.batch(name) for name in ("one", "first")]
    if not hasattr(model, "open"):
        yield from _at_once(model, batches)
        return
    sessions = [model.open(batch) for batch in batches]
    done = [0, 0]
    for turn in range(max(batch.length for batch in batches)):
        for i, (batch, session) in enumerate(zip(batches, sessions, strict=True)):
            count = batch.prompt if turn == 0 else 1
            if done[i] < batch.length:
                where = f"{batch.requests[0].name}, turn {turn + 1}"
                yield from compare(session.feed(count), batch, done[i], family.tolerance(), where)
                done[i] += count


def _at_once(model: Any, batches: Sequence[Batch]) -> Iterator[Miss]:
    """Of an implementation that only answers: several requests at a time."""
    with ThreadPoolExecutor(len(batches)) as pool:
        for misses in pool.map(lambda batch: list(_answers(model, batch, "at once")), list(batches) * 2):
            yield from misses


@_case("shared prefix", "two requests with one image and one beginning, computed once", "open|generate")
def _prefix(model: Any, family: Family) -> Iterator[Miss]:
    one, branch = family.batch("one"), family.batch("branch")
    if not hasattr(model, "open"):
        for batch in (one, branch, one):
            yield from _answers(model, batch, "one after the other")
        return
    same = int((one.ids[0, : one.prompt] == branch.ids[0, : one.prompt]).argmin())
    for shared in (same, same - 3):  # behind the image, and within it
        first = model.open(one)
        yield from compare(first.feed(shared), one, 0, family.tolerance(), f"the first {shared}")
        second = model.open(branch, after=first)
        rest = second.feed(branch.length - shared)
        yield from compare(rest, branch, shared, family.tolerance(), f"the second behind {shared}")
        rest = first.feed(one.length - shared)
        yield from compare(rest, one, shared, family.tolerance(), f"the first goes on behind {shared}")


@_case("several images", "a request with three images of unequal size", "open|generate")
def _several(model: Any, family: Family) -> Iterator[Miss]:
    yield from _asked(model, family, "several", cached=False)


@_case("image and video", "an image and a video in one request", "open|generate")
def _video(model: Any, family: Family) -> Iterator[Miss]:
    _has(family, "video")
    if hasattr(model, "see"):
        with suppress(NotOffered):  # its slots are the kit's
            yield from _slots(model, family.requests["video"])
    yield from _asked(model, family, "video", cached=False)


@_case("text only", "a request without images, alone and in a batch beside one with an image", "open|generate")
def _text(model: Any, family: Family) -> Iterator[Miss]:
    yield from _asked(model, family, "text", cached=False)
    batch = family.batch("text", "one")
    if hasattr(model, "open"):
        with suppress(NotOffered):  # batches are: the cases of left padding say so
            found = model.open(batch).feed(batch.length)
            yield from compare(found, batch, 0, family.tolerance(), "beside an image")


@_case("column 0", "an image at the very beginning, in one pass, in two, and token by token", "open|generate")
def _column_0(model: Any, family: Family) -> Iterator[Miss]:
    yield from _asked(model, family, "first", cached=True)
    if hasattr(model, "open"):
        yield from _pieces(model, family, "first", [3])


def _asked(model: Any, family: Family, name: str, cached: bool) -> Iterator[Miss]:
    """One request: logits in one pass, with a cache if asked for, and the answer; whatever of these is offered."""
    if hasattr(model, "open"):
        yield from _alone(model, family, name)
        if cached:
            yield from _cached(model, family, family.batch(name), name)
    if hasattr(model, "generate"):
        yield from _answers(model, family.batch(name), "answered")


@_case("bfloat16", "the prompt in one pass, weights in bfloat16", "open", dtype="bfloat16")
def _bfloat16(model: Any, family: Family) -> Iterator[Miss]:
    yield from _alone(model, family, "one", "bfloat16")


@_case("gradients", "the loss of an answer, and its gradient at the slots", "gradients")
def _gradients(model: Any, family: Family) -> Iterator[Miss]:
    yield from _training(model, family, checkpointing=False)


@_case("checkpointing", "the same with gradient checkpointing", "gradients")
def _checkpointing(model: Any, family: Family) -> Iterator[Miss]:
    yield from _training(model, family, checkpointing=True)


def _training(model: Any, family: Family, checkpointing: bool) -> Iterator[Miss]:
    request = family.requests["one"]
    loss, gradient = model.gradients(request, checkpointing)
    yield Miss(abs(loss - request.loss), 1e-4, "loss")
    for level, (found, expected) in enumerate(zip(gradient, request.gradient, strict=True)):
        if not np.isnan(expected).any():
            size = float(np.abs(found - expected).max()) / float(np.abs(expected).max())
            yield Miss(size, 1e-3, f"slot {level}, of the largest entry")


@_case("packing", "two requests as documents of one row", "packed")
def _packing(model: Any, family: Family) -> Iterator[Miss]:
    requests = [family.requests[name] for name in ("one", "first")]
    for found, request in zip(model.packed(requests), requests, strict=True):
        yield from compare(found[None], Batch((request,)), 0, family.tolerance(), request.name)


@_case(
    "inputs", "slots of our own: a base and stacks at the inputs of layers 1, 2, 3, as DeepStack-L adds them", "open"
)
def _inputs(model: Any, family: Family) -> Iterator[Miss]:
    yield from _stream(model, family, "inputs")


@_case("gates", "slots of our own: a number in front of each stack", "open")
def _gates(model: Any, family: Family) -> Iterator[Miss]:
    yield from _stream(model, family, "gated")


@_case("one layer twice", "slots of our own: two stacks at one layer add up", "open")
def _same_site(model: Any, family: Family) -> Iterator[Miss]:
    yield from _stream(model, family, "same_site")


def _stream(model: Any, family: Family, name: str) -> Iterator[Miss]:
    _has(family, name)
    yield from _alone(model, family, name)
