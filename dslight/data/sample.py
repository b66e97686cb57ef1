"""One record of a shard as a checked object, and the decoding of its images.

The record is LLaVA's (``conversations`` of ``from``/``value`` turns, ``<image>`` where an image stands), or, for
evaluation, one image with several ``questions``; the image and ``txt`` caption of img2dataset are understood too.
Decided here: everything that is wrong with a record is found in one place, and the message names its key. Decoding
follows what a viewer shows: EXIF orientation applied, transparency over white (LLaVA's own code ignores both: see
``exif`` and ``alpha``), 16-bit grey scaled (not clipped) to 8 bit, the first frame of an animation; and the pixel count
is checked before any pixel is decoded, since a few bytes of PNG can ask for gigabytes.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dslight.data.shards.foreign import IMAGE_ENDING
from dslight.data.views.frames import AS_USUAL, Clip, Frames, has_videos, marked
from dslight.errors import UserError
from dslight.limits import at_most, image_formats
from dslight.question import Question

try:
    import simplejpeg
except ImportError:  # see _decode_jpeg
    simplejpeg = None

IMAGE_TOKEN = "<image>"
"""Stands for an image in the text of a record, as in LLaVA's files."""

MAX_PIXELS = 64_000_000
"""Images above this are refused before they are decoded (64 megapixels: 192 MB of RGB)."""

Role = Literal["system", "human", "gpt"]
_ROLES: dict[str, Role] = {"system": "system", "human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


Exif = Literal["apply", "ignore"]
"""Whether an image is turned as its EXIF orientation says. LLaVA's code ignores it."""

Alpha = Literal["white", "drop"]
"""Transparency is laid over white, or left out, which shows the (often black) colour below it, as in LLaVA's code."""


Pixels = Literal["fast", "pillow"]
"""How images are decoded and resized: ``pillow``, whose pixels are those of the authors' code; ``fast``, JPEG by
simplejpeg (the same pixels) and views by torch (at most 2 levels of 255 away, see :mod:`dslight.data.views.pixels`)."""


class BadSample(UserError):  # noqa: N818 - it is the sample that is in error
    """A record that cannot be trained on or asked about; the message says why.

    Args:
        message: what is wrong.
        reason: the class of the fault, by which a report counts.
    """

    def __init__(self, message: str, reason: str = "record") -> None:
        super().__init__(message)
        self.reason = reason


class Turn(NamedTuple):
    """One message of a conversation; a system text stands first. ``weight``: of the loss of an answer; 0: it is not
    learnt."""

    role: Role
    text: str
    weight: float = 1

    @property
    def learnt(self) -> bool:
        """Whether it carries a loss."""
        return self.weight > 0


@dataclass(frozen=True)
class Sample:
    """A record after checking.

    Attributes:
        key: its key in the shard.
        id: the id of its source data set.
        images: encoded bytes, or clips of a video, in the order of the ``<image>`` marks.
        turns: human and gpt in turn, perhaps behind a system text; empty for an evaluation record.
        questions: of an evaluation record.
        labels_grid: int64 ``[rows, cols]``, a dense label map over the (only) image, or ``None``.
        marks: what stands in the text for each picture and video of the record; empty: one ``<image>`` for each.
    """

    key: str
    id: str
    images: tuple[bytes | Clip, ...]
    turns: tuple[Turn, ...] = ()
    questions: tuple[Question, ...] = ()
    labels_grid: np.ndarray | None = None
    marks: tuple[str, ...] = ()

    @property
    def pictures(self) -> list[Any]:
        """Every image, and every frame of its clips, as :attr:`images` and :class:`Clip` hold them."""
        return [one for image in self.images for one in (image.frames if isinstance(image, Clip) else (image,))]

    def about(self, text: str) -> str:
        """A question with the marks of what it is about, where these are not one ``<image>`` each: put first, or where
        the text has them."""
        if not self.marks:
            return text
        first = "" if IMAGE_TOKEN in text else f"{IMAGE_TOKEN}\n" * len(self.marks)
        return marked(first + text if text else first.strip(), self.marks)


def parse_sample(key: str, members: Mapping[str, bytes], text: bool = True, frames: Frames = AS_USUAL) -> Sample:
    """Check the members of a record and give them as a :class:`Sample`; without ``text``, the turns of its conversation
    are left out. Of its videos, ``frames`` become its images.

    Raises:
        BadSample: naming the key and what is wrong.
    """
    found = members.get("json", b"{}")
    at_most("json_bytes", len(found), f"{key}: its json has {len(found):,} bytes", BadSample)
    try:
        record = json.loads(found)
        if b"\\ud" in found.lower():  # halves of characters; two of them are one
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadSample(f"{key}: its json does not parse ({error})") from error
    return parse_record(key, members, record, text, frames)


def parse_record(
    key: str, members: Mapping[str, bytes], record: Any, text: bool = True, frames: Frames = AS_USUAL
) -> Sample:
    """As :func:`parse_sample`, of a record whose json is read already.

    Raises:
        BadSample: naming the key and what is wrong.
    """
    marks: tuple[str, ...] = ()
    try:
        if has_videos(record, frames):
            members, record, marks = frames.in_place_of_videos(members, record)
        return _parse(key, members, record, text, marks)
    except BadSample as error:
        raise BadSample(f"{key}: {error}", error.reason) from None
    except UnicodeDecodeError as error:
        raise BadSample(f"{key}: its caption is not UTF-8 ({error})", "no-text") from error
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise BadSample(f"{key}: its json is not a record: {type(error).__name__}: {error}") from error


def _parse(
    key: str, members: Mapping[str, bytes], record: dict[str, Any], text: bool, marks: tuple[str, ...]
) -> Sample:
    names = record.get("images")
    foreign = names is None  # not written by dslight: its images are known by their endings
    if foreign:
        names = image_members(members)
    missing = [name for name in names if name not in members]
    if missing:
        raise BadSample(f"its json names the image {missing[0]!r}, the shard has {sorted(members)}", "image-missing")
    images = tuple(members[name] for name in names)
    questions = tuple(_question(key, i, fields) for i, fields in enumerate(record.get("questions", ())))
    turns: tuple[Turn, ...] = ()
    if not text:
        pass
    elif "conversations" in record:
        turns = parse_turns(record["conversations"], len(images))
        if foreign and not images and any(IMAGE_TOKEN in turn.text for turn in turns if turn.role == "human"):
            raise BadSample(f"{IMAGE_TOKEN} marks, and no image among {', '.join(sorted(members))}", "image-missing")
    elif not questions:
        caption = record.get("caption") or members.get("txt", b"").decode()
        caption = caption.removeprefix("\ufeff")
        if not caption.strip():
            raise BadSample("has neither conversations, questions nor a caption", "no-text")
        if foreign and not images:
            raise BadSample(f"has a caption and no image, only {', '.join(sorted(members))}", "image-missing")
        turns = (Turn("human", "".join(marks) or IMAGE_TOKEN * len(images)), Turn("gpt", caption))
    grid = record.get("labels_grid")
    return Sample(
        key=key,
        id=str(record.get("id", key)),
        images=images,
        turns=turns,
        questions=questions,
        labels_grid=None if grid is None else np.array(grid, dtype=np.int64),
        marks=marks,
    )


def image_members(names: Iterable[str]) -> list[str]:
    """Which members of a record of another tool are its images, by their ending; ``0.jpg`` before ``10.jpg``. What is
    called a mask, a depth map or the like (``seg.png``) is none of them."""
    images = [name for name in names if IMAGE_ENDING.fullmatch(name.rpartition(".")[2]) and not is_beside(name)]
    parts = {name: re.findall(r"\d+|\D+", name) for name in images}
    return sorted(images, key=lambda name: [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts[name]])


_BESIDE = re.compile(
    r"seg|segm|segmentation|masks?|depth|labels?|annotations?|panoptic|instances?|semantic|normals?|edges?|canny|thumb|"
    r"thumbnail|preview|alpha|matte|heatmap|saliency"
)


def is_beside(name: str) -> bool:
    """Whether a member of a record of another tool (``seg.png``) is called what stands beside a picture."""
    first, dot, _ = name.partition(".")
    return bool(dot) and bool(_BESIDE.fullmatch(first))


_OF_A_QUESTION = ("question_id", "question", "answers", "hidden", "type", "suffix")


def _question(key: str, number: int, fields: Mapping[str, Any]) -> Question:
    answers = fields["answers"]
    if isinstance(answers, str) or bool(answers) == bool(fields.get("hidden")):
        rule = "must be none, as they are hidden" if fields.get("hidden") else "must be a list of one or more"
        raise BadSample(f"question {number}: answers {rule}, not {answers!r}")
    for name in ("question_id", "question", "answers"):
        for value in answers if name == "answers" else [fields[name]]:
            if not isinstance(value, str | int | float):
                raise BadSample(f"question {number}: {name} holds {value!r}, where a text belongs")
    suffix = fields.get("suffix")
    return Question(
        question_id=str(fields["question_id"]),
        text=str(fields["question"]),
        references=tuple(str(answer) for answer in answers),
        type=str(fields.get("type", "")),
        key=key,
        suffix=None if suffix is None else str(suffix),
        extra={name: value for name, value in fields.items() if name not in _OF_A_QUESTION},
    )


WEIGHT_KEYS = ("weight", "loss", "train")
"""Of a message that says how much its loss counts: OpenAI's, ms-swift's and axolotl's. The last two say whether."""


def weight_of(turn: Mapping[str, Any]) -> float:
    """How much the loss of a message counts, as it says by any of :data:`WEIGHT_KEYS`: 1 where it says nothing.

    Raises:
        BadSample: it is no number from 0 on, or neither 0 nor 1 where that is asked.
    """
    weight: float = 1
    for name in WEIGHT_KEYS:
        value = turn.get(name)
        if value is None:
            continue
        if name != "weight" and value not in (0, 1):
            raise BadSample(f"{name} of a message: {str(value)[:40]}; 0 (not learnt) or 1", "weights")
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise BadSample(f"{name} of a message: {str(value)[:40]}; a number from 0 (not learnt) on", "weights")
        weight *= value
    return weight


def parse_turns(conversations: list[Mapping[str, str]], num_images: int) -> tuple[Turn, ...]:
    """Check LLaVA ``conversations``: known roles in turn, something to learn, one ``<image>`` mark per image.

    A system text may come first. A leading gpt turn is dropped, as LLaVA does: it answers nothing.

    Raises:
        BadSample: saying which turn is wrong.
    """
    for i, turn in enumerate(conversations):
        if turn["from"] not in _ROLES:
            raise BadSample(f"turn {i}: role {turn['from']!r} is none of {sorted(_ROLES)}", "roles")
        if not isinstance(turn["value"], str):
            raise BadSample(f"turn {i}: its value is no text but {turn['value']!r}")
    turns = tuple(Turn(_ROLES[turn["from"]], turn["value"], weight_of(turn)) for turn in conversations)
    system = turns[:1] if turns and turns[0].role == "system" else ()
    turns = turns[len(system) :]
    if system and not turns:
        raise BadSample("turn 0: role 'system', with nothing behind it", "roles")
    if turns and turns[0].role == "gpt":
        turns = turns[1:]
    for i, turn in enumerate(turns):
        if turn.role == "system":
            raise BadSample(f"turn {i + len(system)}: a system text stands first or nowhere", "roles")
        if turn.role != ("human", "gpt")[i % 2]:
            raise BadSample(f"turn {i}: two {turn.role} turns in a row", "roles")
    if not any(turn.role == "gpt" and turn.text and turn.learnt for turn in turns):
        raise BadSample("no answer, so nothing to learn", "no-answer")
    marks = sum(turn.text.count(IMAGE_TOKEN) for turn in turns if turn.role == "human")
    if num_images and marks != num_images:
        raise BadSample(f"{marks} {IMAGE_TOKEN} marks in the human turns for {num_images} images", "marks")
    return system + turns


def decode_image(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    exif: Exif = "apply",
    alpha: Alpha = "white",
    pixels: Pixels = "pillow",
) -> np.ndarray:
    """Encoded image to uint8 RGB ``[H, W, 3]``.

    Raises:
        BadSample: not an image, cut, or above ``max_pixels``.
    """
    if pixels == "fast" and (array := _decode_jpeg(data, max_pixels, exif)) is not None:
        return array
    with _opened(data, max_pixels) as image:
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image) if exif == "apply" else image, alpha))


def check_image(data: bytes, max_pixels: int = MAX_PIXELS) -> None:
    """See that an encoded image decodes, as :func:`decode_image` would say it.

    Of a JPEG, all of its bits are read and an eighth of its pixels made, which is where the time goes: what is damaged
    shows in the bits. Whatever simplejpeg does not take whole goes to Pillow, for the verdict.

    Raises:
        BadSample: not an image, cut, or above ``max_pixels``.
    """
    if (size := _plain_jpeg(data)) and size[0] * size[1] <= max_pixels and simplejpeg is not None:
        try:
            simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
            return
        except ValueError:
            pass
    decode_image(data, max_pixels)


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG of three channels, as its header says; ``None`` of all else."""
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (int(height), int(width)) if colors in ("YCbCr", "RGB") else None


def to_rgb(image: Any, exif: Exif = "apply", alpha: Alpha = "white") -> np.ndarray:
    """A picture of PIL, or an array (numpy's or torch's, channels last or first), as uint8 RGB ``[H, W, 3]``.

    Raises:
        ValueError: for anything else, and for an array that is not uint8.
    """
    if isinstance(image, Image.Image):
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image) if exif == "apply" else image, alpha))
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        raise ValueError(f"a {type(image).__name__} is no image; give a picture of PIL, a file, or a uint8 array")
    if str(image.dtype) not in ("uint8", "torch.uint8"):
        raise ValueError(f"an array of {image.dtype}; give uint8, from 0 to 255")
    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"an array of shape {array.shape}; give [height, width, 3]")
    array = np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    return np.asarray(_to_rgb(Image.fromarray(array), alpha))


def _decode_jpeg(data: bytes, max_pixels: int, exif: Exif) -> np.ndarray | None:
    """An upright JPEG of three channels; ``None`` leaves it to Pillow, and with it the verdict on what is damaged.

    Without simplejpeg all are left to Pillow: the pixels are the same.
    """
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        plain = colors in ("YCbCr", "RGB") and int(height) * int(width) <= max_pixels
        return simplejpeg.decode_jpeg(data, "RGB") if plain and (exif == "ignore" or _upright(data)) else None
    except ValueError:  # it is strict, also where Pillow shows what there is
        return None


def _upright(data: bytes) -> bool:
    """Whether a JPEG needs no turning."""
    if not _has_segment(data, 0xE1):  # EXIF would be there; asking Pillow takes longer
        return True
    try:
        with Image.open(io.BytesIO(data), formats=image_formats()) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9)
    except Exception:
        return False


def _has_segment(data: bytes, marker: int) -> bool:
    """Whether a JPEG has a segment of this marker before its pixels."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        if data[at + 1] in (marker, 0xDA):  # 0xDA: the pixels begin
            return data[at + 1] == marker
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return bytes((0xFF, marker)) in data  # its segments do not follow one another: whoever parses it decides


def image_facts(data: bytes, max_pixels: int = MAX_PIXELS) -> dict[str, Any]:
    """What the head of an encoded image says: ``width``, ``height`` (as stored) and ``mode``; ``orientation`` (EXIF)
    if it is not upright, ``animated`` if it is.

    Raises:
        BadSample: not an image, or above ``max_pixels``.
    """
    if (size := _plain_jpeg(data)) and size[0] * size[1] <= max_pixels and not _has_segment(data, 0xE1):
        return {"width": size[1], "height": size[0], "mode": "RGB"}
    with _opened(data, max_pixels) as image:
        facts: dict[str, Any] = {"width": image.width, "height": image.height, "mode": image.mode}
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation in range(2, 9):
            facts["orientation"] = orientation
        if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a JPEG with its previews
            facts["animated"] = True
        return facts


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=image_formats()) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height}"
                raise BadSample(f"image of {size} pixels is above the cap of {max_pixels}", "image-too-large")
            yield image
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample(f"image of {len(data)} bytes does not decode: {error}", "image-too-large") from error
    except Exception as error:  # whatever the parser of a format stumbles over: struct.error, KeyError, ...
        what = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error))
        raise BadSample(f"image of {len(data)} bytes does not decode: {what}", "image-damaged") from error


def _to_rgb(image: Image.Image, alpha: Alpha) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):  # convert() would clip everything above 255 to white
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if alpha == "white" and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
