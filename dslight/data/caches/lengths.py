"""How many positions every record takes in the sequence: known before the first step, so that rows can be packed and
batches grouped by length.

Lengths depend on the tokenizer, the template and, where an image's slots depend on its shape, on slots and views. They
are counted once per folder of shards and kept beside them as ``lengths.<hash of all that>.npy``: int32, negative for a
record without images (LLaVA's convention), 0 for one that cannot be read.

Decided here, and why:

* The file ends with a digest of the manifest and of its own bytes: a file of other shards, or a damaged one, is counted
  again. It is put in place by rename, by one of the processes that want it (``kept``).
* Only the head of an image is read: its size decides, not its pixels.
* Lengths are those of whole records; what a limit cuts is the plan's business, so one file serves every limit.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from dslight.data.caches.made_once import made_once
from dslight.data.conversation import IMAGE, Template, made_of
from dslight.data.native import AnySizeViews
from dslight.data.plan import question_rows
from dslight.data.records import OnBad
from dslight.data.sample import MAX_PIXELS, BadSample, Exif, Sample, parse_sample
from dslight.data.shards import ShardError, ShardReader
from dslight.data.templates.tile_marks import Between
from dslight.data.transport.workers import Workers, read_batches
from dslight.data.views.frames import AS_USUAL, Clip, Frames
from dslight.data.views.policy import ViewPolicy
from dslight.files.atomic import write_atomically
from dslight.files.digest import sha256
from dslight.layout import SlotLayout
from dslight.limits import image_formats
from dslight.types import Grid, Question

log = logging.getLogger(__name__)

_VERSION = 2
HEAD = 32 << 10
"""Bytes of an image that hold its size; where they do not (a large preview in front), the whole is read."""
CHUNK = 256
Through = Callable[[ShardReader, Callable[[ShardReader, int], Any], str], Iterator[list[Any]]]
"""Goes through the records of a folder: what a function finds in each, in their order, some at a time; with a title."""
_FEW = 2000
"""Records that are counted without helpers: starting those takes longer."""


@dataclass(frozen=True)
class Measure:
    """Counts the positions of a record. Travels to the counting processes.

    Attributes:
        template, name: how a conversation is written, and what that is called in a recipe.
        tokenizer: of the language model.
        views: how many crops an image has.
        image_size: (height, width) of a view.
        slots: how many positions an image takes.
        exif: whether an image is turned as its EXIF orientation says, which exchanges its sides.
        frames: that videos become.
        between: what stands between the tiles of an image.
    """

    template: Template
    name: str
    tokenizer: PreTrainedTokenizerBase
    views: ViewPolicy
    image_size: Grid
    slots: SlotLayout
    exif: Exif = "apply"
    frames: Frames = AS_USUAL
    between: Between | None = None

    @cached_property
    def parts(self) -> dict[str, str]:
        """What lengths depend on, by the keys of a recipe; short hashes and names."""
        image = str(self.constant) if self.constant else f"{_described(self.slots)} {_described(self.views)}"
        image += "" if self.constant or self.exif == "apply" else f" exif {self.exif}"
        image += "" if self.frames == AS_USUAL else f" {self.frames}"
        return {
            "model.language_model (tokenizer)": sha256(self._tokenizer_text.encode())[:8],
            "data.template": f"{self.name} {sha256(_described(self.template).encode())[:8]}",
            "slots of an image (data.views, model)": image if self.constant else sha256(image.encode())[:8],
        }

    @cached_property
    def _tokenizer_text(self) -> str:
        facts = [self.tokenizer.bos_token_id, self.tokenizer.eos_token, self.name == "tokenizer" and self.chat_template]
        return self.tokenizer.backend_tokenizer.to_str() + repr(facts)  # type: ignore[attr-defined]

    @property
    def text_hash(self) -> str:
        """Of all that the ids of a text depend on, 16 hex digits."""
        frames = () if self.frames == AS_USUAL else (str(self.frames),)  # as many marks stand in the text
        return sha256(repr((_VERSION, self._tokenizer_text, _described(self.template), *frames)).encode())[:16]

    @property
    def chat_template(self) -> Any:
        """The tokenizer's own, if it has one."""
        return getattr(self.tokenizer, "chat_template", None)

    @property
    def hash(self) -> str:
        """Of all that lengths depend on, 16 hex digits."""
        return sha256(repr((_VERSION, self.parts)).encode())[:16]

    @cached_property
    def constant(self) -> int:
        """The slots of an image where all have equally many, whatever their shape; otherwise 0."""
        if self.slots.unpad or self.slots.native:
            return 0
        counts = {self.slots(grid) + self._texts(grid) for grid in self.views.grids()}
        return counts.pop() if len(counts) == 1 else 0

    def __call__(self, reader: ShardReader, row: int) -> int:
        """Positions of a record, negative without images.

        Raises:
            BadSample, ShardError: naming shard and key.
        """
        shard, key = reader.locate(row)
        try:
            try:
                return self._count(self.parsed(key, reader.read(row, head=0 if self.constant else HEAD)))
            except BadSample:  # perhaps the head was too short
                return self._count(self.parsed(key, reader.read(row)))
        except BadSample as error:
            raise BadSample(f"{reader.root / shard.name}: {error}") from error

    def parsed(self, key: str, members: Mapping[str, bytes]) -> Sample:
        """A record, of which pictures have only to be whole as far as their size is said."""
        return parse_sample(key, members, frames=self.frames.undecoded)

    def _count(self, sample: Sample) -> int:
        ids = self.template.encode(sample.turns, self.tokenizer, len(sample.images)).ids
        marks = list(ids).count(IMAGE)
        if marks != len(sample.images):
            raise BadSample(f"{sample.key}: its text has places for {marks} images, it has {len(sample.images)}")
        if not sample.images:
            return -len(ids)
        return len(ids) - len(sample.images) + self._slots(sample)

    def prompt(self, sample: Sample, question: Question, suffix: str) -> int:
        """Positions of a question's prompt, which ends with ``suffix`` unless the question has its own."""
        end = suffix if question.suffix is None else question.suffix
        ids = self.template.prompt(sample.about(question.text + end), len(sample.images), self.tokenizer)
        return len(ids) - len(sample.images) + self._slots(sample)

    def _slots(self, sample: Sample) -> int:
        """Of all images of a sample."""
        if self.constant:
            return self.constant * len(sample.images)
        views, count = self.views.among(len(sample.images)), 0
        for image in sample.images:
            try:
                seen = shapes(image, views, self.image_size, self.exif)
            except BadSample as error:
                raise BadSample(f"{sample.key}: {error}") from error
            count += sum(self.slots(*each) + self._texts(each[0]) for each in seen)
        return count

    def _texts(self, grid: Grid) -> int:
        return 0 if self.between is None else sum(map(len, self.between(grid)))


def shapes(image: bytes | Clip, views: ViewPolicy, size: Grid, exif: Exif = "apply") -> list[tuple[Grid, Grid, Grid]]:
    """Of an image, the grid of its crops, its own size, and the pieces of its base view; of a clip, those of each
    temporal patch. Their heads are enough.

    Raises:
        BadSample: as :func:`image_size`.
    """
    own = image_size(image.frames[0] if isinstance(image, Clip) else image, exif)
    if isinstance(image, Clip) and isinstance(views, AnySizeViews):
        return [(views.choose(own, size), own, views.clip_pieces(own, size, image))] * image.patches
    return [(views.choose(own, size), own, views.pieces(own, size))]


def image_size(data: bytes, exif: Exif = "apply") -> Grid:
    """(height, width) of an encoded image as it is shown, or as it is stored; its head is enough.

    Raises:
        BadSample: not an image, or one that is refused.
    """
    try:
        with Image.open(io.BytesIO(data), formats=image_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadSample(f"image of {image.width}x{image.height} pixels is above the cap of {MAX_PIXELS}")
            turned = exif == "apply" and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except BadSample:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSample(f"image of {len(data)} bytes does not decode: {error}") from error


def lengths_of(
    reader: ShardReader,
    measure: Measure,
    folder: Path | None = None,
    on_bad: OnBad = "raise",
    progress: bool = True,
    through: Through | None = None,
) -> np.ndarray:
    """The lengths of all records of a folder, int32 ``[records]``, from its file; counted first if there is none.

    Args:
        reader: of the shards.
        measure: counts one.
        folder: where the file lies; default: beside the shards.
        on_bad: whether a record that cannot be read is an error or counts 0.
        progress: show a bar while counting.
        through: goes through the records; default: processes of this machine (:func:`by_helpers`).

    Raises:
        BadSample, ShardError: naming shard and key.
        PermissionError: naming the folder, if it cannot be written.
    """
    path = (folder or reader.root) / f"lengths.{measure.hash}.npy"
    return made_once(
        path,
        "lengths",
        load=lambda: _load(path, reader),
        make=lambda: write_atomically(path, _file(_count_all(reader, measure, on_bad, progress, through), reader)),
    )


def question_lengths(reader: ShardReader, measure: Measure, suffix: str, numbers: Sequence[int]) -> list[int]:
    """Positions of the prompts of questions, given by their numbers in a folder of shards; to order them by.

    0 for one that cannot be read: whoever asks it will say so.
    """
    rows = question_rows(reader.index.questions)
    first = np.cumsum(reader.index.questions) - reader.index.questions
    at, sample, lengths = -1, None, []
    for number in numbers:
        try:
            row = int(rows[number])
            if row != at or sample is None:  # the questions of a record are neighbours
                members = reader.read(row, head=0 if measure.constant else HEAD)
                at, sample = row, measure.parsed(reader.locate(row)[1], members)
            lengths.append(measure.prompt(sample, sample.questions[number - int(first[row])], suffix))
        except (BadSample, ShardError):
            lengths.append(0)
    return lengths


def _file(lengths: np.ndarray, reader: ShardReader) -> bytes:
    out = io.BytesIO()
    np.save(out, lengths)
    return out.getvalue() + _seal(out.getvalue(), reader)


def _seal(data: bytes, reader: ShardReader) -> bytes:
    return hashlib.sha256(reader.manifest.digest.encode() + data).digest()


def _load(path: Path, reader: ShardReader) -> np.ndarray | None:
    """The lengths in a file; ``None`` if it is missing, damaged, or of other shards."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if data[-32:] != _seal(data[:-32], reader):
        log.warning("%s: of other shards, or damaged; counting again", path)
        return None
    return np.load(io.BytesIO(data))


def _count_all(
    reader: ShardReader, measure: Measure, on_bad: OnBad, progress: bool, through: Through | None
) -> np.ndarray:
    counted = (through or by_helpers(progress))(reader, Count(measure, on_bad), f"lengths of {reader.root}")
    return np.concatenate([np.asarray(chunk, dtype=np.int32) for chunk in counted])


def by_helpers(progress: bool = True) -> Through:
    """Processes of this machine, or none for a few records."""

    def through(reader: ShardReader, of: Callable[[ShardReader, int], Any], title: str) -> Iterator[list[Any]]:
        workers = helpers(len(reader))
        chunks = [range(i, min(i + CHUNK, len(reader))) for i in range(0, len(reader), CHUNK)]
        found = read_batches(_OfRecords(reader, of), chunks, list, workers)
        yield from tqdm(found, title, disable=not progress or not workers.count, unit_scale=CHUNK)

    return through


def helpers(records: int) -> Workers:
    """The processes that go through ``records`` records: all cores, or none."""
    return Workers(0 if records < _FEW else len(os.sched_getaffinity(0)))


class _OfRecords(Dataset[Any]):
    def __init__(self, reader: ShardReader, of: Callable[[ShardReader, int], Any]) -> None:
        self.reader, self.of = reader, of

    def __getitem__(self, row: int) -> Any:
        return self.of(self.reader, row)


@dataclass(frozen=True)
class Count:
    """The length of a record, 0 of a bad one that is to be replaced."""

    measure: Measure
    on_bad: OnBad

    def __call__(self, reader: ShardReader, row: int) -> int:
        """See the class."""
        try:
            return self.measure(reader, row)
        except (BadSample, ShardError) as error:
            if self.on_bad == "raise":
                raise
            log.warning("a bad sample has no length: %s", error)
            return 0


def _described(thing: Any) -> str:
    """What an object is made of, the same in every process."""
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    said = made_of(thing) if isinstance(thing, Template) else sorted(vars(thing).items())
    return re.sub(r" at 0x[0-9a-f]+", "", f"{name} {said!r}")
