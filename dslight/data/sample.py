"""One record of a shard as a checked object, and the decoding of its images.

The record is LLaVA's (``conversations`` of ``from``/``value`` turns, ``<image>`` where an image stands), or, for
evaluation, one image with several ``questions``; the image and ``txt`` caption of img2dataset are understood too.
Decided here: everything that is wrong with a record is found in one place, and the message names its key. Decoding
follows what a viewer shows: EXIF orientation applied, transparency over white, 16-bit grey scaled (not clipped) to 8
bit, and the pixel count is checked before any pixel is decoded, since a few bytes of PNG can ask for gigabytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dslight.types import Question

IMAGE_TOKEN = "<image>"
"""Stands for an image in the text of a record, as in LLaVA's files."""

MAX_PIXELS = 64_000_000
"""Images above this are refused before they are decoded (64 megapixels: 192 MB of RGB)."""

_ROLES: dict[str, Literal["human", "gpt"]] = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


class BadSample(ValueError):  # noqa: N818 - it is the sample that is in error
    """A record that cannot be trained on or asked about; the message says why."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: Literal["human", "gpt"]
    text: str


@dataclass(frozen=True)
class Sample:
    """A record after checking.

    Attributes:
        key: its key in the shard.
        id: the id of its source data set.
        images: encoded bytes, in the order of the ``<image>`` marks.
        turns: human and gpt in turn; empty for an evaluation record.
        questions: of an evaluation record.
        labels_grid: int64 ``[rows, cols]``, a dense label map over the (only) image, or ``None``.
    """

    key: str
    id: str
    images: tuple[bytes, ...]
    turns: tuple[Turn, ...] = ()
    questions: tuple[Question, ...] = ()
    labels_grid: np.ndarray | None = None


def parse_sample(key: str, members: Mapping[str, bytes]) -> Sample:
    """Check the members of a record and give them as a :class:`Sample`.

    Raises:
        BadSample: naming the key and what is wrong.
    """
    try:
        record = json.loads(members.get("json", b"{}"))
    except ValueError as error:
        raise BadSample(f"{key}: its json does not parse ({error})") from error
    try:
        return _parse(key, members, record)
    except BadSample as error:
        raise BadSample(f"{key}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise BadSample(f"{key}: its json is not a record: {type(error).__name__}: {error}") from error


def _parse(key: str, members: Mapping[str, bytes], record: dict[str, Any]) -> Sample:
    names = record.get("images")
    if names is None:  # not written by dslight: every member that is no text is the image
        names = sorted(name for name in members if name in ("jpg", "jpeg", "png", "webp"))
    missing = [name for name in names if name not in members]
    if missing:
        raise BadSample(f"its json names the image {missing[0]!r}, the shard has {sorted(members)}")
    images = tuple(members[name] for name in names)
    questions = tuple(_question(key, i, fields) for i, fields in enumerate(record.get("questions", ())))
    turns: tuple[Turn, ...] = ()
    if "conversations" in record:
        turns = parse_turns(record["conversations"], len(images))
    elif not questions:
        caption = record.get("caption") or members.get("txt", b"").decode()
        if not caption.strip():
            raise BadSample("has neither conversations, questions nor a caption")
        turns = (Turn("human", IMAGE_TOKEN * len(images)), Turn("gpt", caption))
    grid = record.get("labels_grid")
    return Sample(
        key=key,
        id=str(record.get("id", key)),
        images=images,
        turns=turns,
        questions=questions,
        labels_grid=None if grid is None else np.array(grid, dtype=np.int64),
    )


def _question(key: str, number: int, fields: Mapping[str, Any]) -> Question:
    answers = fields["answers"]
    if not answers or isinstance(answers, str):
        raise BadSample(f"question {number}: answers must be a list of one or more, not {answers!r}")
    return Question(
        question_id=str(fields["question_id"]),
        text=str(fields["question"]),
        references=tuple(str(answer) for answer in answers),
        type=str(fields.get("type", "")),
        key=key,
    )


def parse_turns(conversations: list[Mapping[str, str]], num_images: int) -> tuple[Turn, ...]:
    """Check LLaVA ``conversations``: known roles in turn, something to learn, one ``<image>`` mark per image.

    A leading gpt turn is dropped, as LLaVA does: it answers nothing.

    Raises:
        BadSample: saying which turn is wrong.
    """
    for i, turn in enumerate(conversations):
        if turn["from"] not in _ROLES:
            raise BadSample(f"turn {i}: role {turn['from']!r} is none of {sorted(_ROLES)}")
        if not isinstance(turn["value"], str):
            raise BadSample(f"turn {i}: its value is no text but {turn['value']!r}")
    turns = tuple(Turn(_ROLES[turn["from"]], turn["value"]) for turn in conversations)
    if turns and turns[0].role == "gpt":
        turns = turns[1:]
    for i, turn in enumerate(turns):
        if turn.role != ("human", "gpt")[i % 2]:
            raise BadSample(f"turn {i}: two {turn.role} turns in a row")
    if not any(turn.role == "gpt" and turn.text for turn in turns):
        raise BadSample("no answer, so nothing to learn")
    marks = sum(turn.text.count(IMAGE_TOKEN) for turn in turns if turn.role == "human")
    if num_images and marks != num_images:
        raise BadSample(f"{marks} {IMAGE_TOKEN} marks in the human turns for {num_images} images")
    return turns


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Encoded image to uint8 RGB ``[H, W, 3]``.

    Raises:
        BadSample: not an image, cut, or above ``max_pixels``.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise BadSample(f"image of {image.width}x{image.height} pixels is above the cap of {max_pixels}")
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except BadSample:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSample(f"image of {len(data)} bytes does not decode: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):  # convert() would clip everything above 255 to white
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
