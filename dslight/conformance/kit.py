"""The kit's files, read: families, their requests, and batches of requests. NumPy and safetensors only, so that an
engine without torch can be asked too.

A *request* is one row: a prompt in which visual positions are expanded, its images, and what is true of it however it
is computed: the logits of every position of prompt and answer, and the answer. A *batch* is some requests left-padded,
so that all prompts end at one column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).parent / "kit"
"""The families that come with the package, a folder each."""
FORMAT = 1
"""Of the files; read by programs that know it."""

Array = np.ndarray


@dataclass(frozen=True)
class Request:
    """One row, and what is true of it.

    Attributes:
        name: within its family.
        prompt: int64 ``[P]``, token ids, one per position; at visual positions the family's placeholder.
        answer: int64 ``[A]``, its greedy continuation.
        beams: int64 ``[A]``, the best of three beams.
        visual: bool ``[P + A]``, where visual tokens stand.
        positions: int64 ``[axes, P + A]``, for rotary embeddings: one axis, or time, row and column.
        slots: float32 ``[S + 1, N, D]``, the visual tokens: slot 0 for the positions themselves, slot s for the stack
            that is added at layer ``sites[s - 1]``.
        logits: float32 ``[P + A, vocabulary]``.
        pixels: the images and videos one after another, as the family's class takes them, each a mapping of names to
            arrays.
        pictures: uint8 ``[H, W, 3]`` each, RGB, where the images can be sent as files.
        loss: mean cross entropy of the answer behind the prompt.
        sites: the layers at whose inputs its stacks are added; "after layer i" is i + 1.
        gates: what each stack is multiplied with; ``None``: nothing.
        gradient: of the loss with respect to ``slots``; empty where none is kept, NaN where the family has no slot.
    """

    name: str
    prompt: Array
    answer: Array
    beams: Array
    visual: Array
    positions: Array
    slots: Array
    logits: Array
    pixels: Sequence[Mapping[str, Array]]
    pictures: Sequence[Array]
    loss: float
    gradient: Array
    sites: tuple[int, ...]
    gates: tuple[float, ...] | None = None

    @property
    def streamed(self) -> bool:
        """Whether it is given as slots alone: visual tokens that belong to no image."""
        return bool(self.visual.any()) and not self.pixels

    @property
    def ids(self) -> Array:
        """Prompt and answer, int64 ``[P + A]``."""
        return np.concatenate([self.prompt, self.answer])


@dataclass(frozen=True)
class Batch:
    """Requests as rows; what stands behind the prompts is the answers, which a cached decoding is fed with.

    Attributes:
        requests: the B rows.
    """

    requests: tuple[Request, ...]

    @property
    def prompt(self) -> int:
        """The columns of the longest prompt."""
        return max(len(request.prompt) for request in self.requests)

    @property
    def length(self) -> int:
        """T, the columns of prompts and answers."""
        return self.prompt + len(self.requests[0].answer)

    @property
    def ids(self) -> Array:
        """int64 ``[B, T]``, left-padded with 0."""
        return self._rows(lambda request: request.ids)

    @property
    def attention(self) -> Array:
        """int64 ``[B, T]``: 1 for real positions."""
        return self._rows(lambda request: np.ones_like(request.ids))

    @property
    def visual(self) -> Array:
        """bool ``[B, T]``."""
        return self._rows(lambda request: request.visual).astype(bool)

    @property
    def positions(self) -> Array:
        """int64 ``[axes, B, T]``."""
        axes = len(self.requests[0].positions)
        return np.stack([self._rows(lambda request, i=i: request.positions[i]) for i in range(axes)])

    @property
    def slots(self) -> Array:
        """float32 ``[S + 1, N, D]``, packed in row-major order of :attr:`visual`."""
        return np.concatenate([request.slots for request in self.requests], axis=1)

    @property
    def pixels(self) -> list[Mapping[str, Array]]:
        """All images and videos, in the order of the rows."""
        return [one for request in self.requests for one in request.pixels]

    def real(self, row: int) -> slice:
        """The columns of a row that are not padding."""
        return slice(self.length - len(self.requests[row].ids), self.length)

    def _rows(self, read: Any) -> Array:
        made = np.zeros((len(self.requests), self.length), dtype=np.int64)
        for row, request in enumerate(self.requests):
            made[row, self.real(row)] = read(request)
        return made


@dataclass(frozen=True)
class Family:
    """A tiny checkpoint with its requests.

    Attributes:
        folder: the checkpoint, as transformers writes it, and nothing else: engines read whatever lies there. The kit's
            own files lie beside it, ``NAME.json`` and ``NAME.safetensors``.
        facts: of ``NAME.json``.
    """

    folder: Path
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def model(self) -> str:
        """The class in transformers whose numbers these are."""
        return self.facts["model"]

    @property
    def sites(self) -> tuple[int, ...]:
        """The layers at whose inputs the stacks are added; "after layer i" is i + 1."""
        return tuple(self.facts["sites"])

    def tolerance(self, dtype: str = "float32") -> float:
        """How far from the expected numbers the right ones may be: of logits, in their own unit."""
        return float(self.facts["tolerance"][dtype])

    @cached_property
    def requests(self) -> Mapping[str, Request]:
        """By name."""
        tensors = dict(load_file(self.folder.with_suffix(".safetensors")))
        shared = self.folder.parent / "pixels.safetensors"
        tensors |= load_file(shared)
        made = {}
        for name, facts in self.facts["requests"].items():
            own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
            prompt, answer, beams = (np.asarray(facts[key], dtype=np.int64) for key in ("prompt", "answer", "beams"))
            visual = np.isin(np.concatenate([prompt, answer]), self.facts["placeholders"])
            visual[len(prompt) :] = False
            pixels = [_under(tensors, f"{self.facts['pixels']}/{image}.") for image in facts["images"]]
            pictures = [tensors[key] for image in facts["images"] if (key := f"picture/{image}") in tensors]
            made[name] = Request(
                name=name,
                prompt=prompt,
                answer=answer,
                beams=beams,
                visual=visual,
                positions=own["positions"].astype(np.int64),
                slots=own["slots"],
                logits=own["logits"],
                pixels=pixels,
                pictures=pictures if len(pictures) == len(pixels) else (),
                loss=facts["loss"],
                gradient=own.get("gradient", np.zeros(0, dtype=np.float32)),
                sites=tuple(facts.get("sites", self.sites)),
                gates=tuple(facts["gates"]) if "gates" in facts else None,
            )
        return made

    def batch(self, *names: str) -> Batch:
        """These requests as rows."""
        return Batch(tuple(self.requests[name] for name in names))


def families(root: Path = ROOT) -> Iterator[Family]:
    """All of a kit.

    Raises:
        ValueError: for files of another format.
    """
    for file in sorted(root.glob("*.json")):
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts.get("format") != FORMAT:
            raise ValueError(f"{file}: format {facts.get('format')!r}, this version reads {FORMAT}")
        yield Family(file.with_suffix(""), facts)


def _under(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
