"""A question of an evaluation set, and how questions become the entries that the ingest engine makes shards of.

Decided here:

* Questions about one image stand in one record, so an image is stored once (VQAv2 asks five about each).
* A question's text is the one of the file, its options below it as lines "A. ...", as LLaVA-1.5 asks them and as
  ``dslight.metrics`` reads them back. What a benchmark puts behind every question is ``dslight.metrics.benchmarks``'.
* A question whose answers its authors keep has none and is marked ``hidden``: it is answered, never scored. They are
  counted.
* What a server reads beside the answer (an id that is a number, the options, the image) stays with the question.
* A question that has no answer where the split has answers is quarantined alone, not with the others of its image.
"""

from __future__ import annotations

import base64
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from data_prep.check import Entry
from data_prep.entries import Entries, RawEntry
from data_prep.eval.tables import Cell
from data_prep.images import Images
from data_prep.videos import Videos
from dslight.data.sample import IMAGE_TOKEN, BadSample
from dslight.data.video import Sampling
from dslight.metrics.functional.multiple_choice import parse_options


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        question_id: unique in its set.
        text: as in the file, without the options.
        answers: the references (a letter, if there are options); empty if the split hides them.
        type: key of the benchmark's breakdown.
        options: texts of the choices, in the order of their letters.
        images: paths below ``--images``.
        inline: encoded images that stand in the file itself, or where they stand there.
        video: path of a video below ``--images``; its ending may be missing.
        segment: of the video, in seconds.
        facts: kept beside the question: what its authors say about it.
        official_id: as the file has the id, where that is no text or not unique.
        suffix: what the prompt ends with instead of the benchmark's words, in a set of several kinds of questions.
        problem: why it cannot be asked.
    """

    question_id: str
    text: str
    answers: Sequence[str] = ()
    type: str = ""
    options: Sequence[str] = ()
    images: Sequence[str] = ()
    inline: Sequence[bytes | Cell] = ()
    video: str = ""
    segment: tuple[float, float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    official_id: Any = None
    suffix: str | None = None
    problem: str = ""

    def with_answers(self, answers: Sequence[str], hidden: bool, file: str) -> Asked:
        """The same with its references; without any it is a problem, unless the split hides them."""
        problem = "" if answers or hidden else f"question {self.question_id}: no answer in {file} (is it --split test?)"
        return replace(self, answers=tuple(answers), problem=problem)


def letter(index: int) -> str:
    """The letter of an option."""
    return string.ascii_uppercase[index]


def with_options(text: str, options: Sequence[str]) -> str:
    """A question with its options below it, each on one line."""
    lines = [f"{letter(i)}. {' '.join(option.split())}" for i, option in enumerate(options)]
    return "\n".join([text, *lines])


@dataclass(frozen=True)
class Questions(Entries):
    """The entries of an evaluation set, which fits into memory (VQAv2's validation set takes 0.4 GB).

    Attributes:
        rows: one per record.
    """

    rows: Sequence[RawEntry] = ()

    def __iter__(self) -> Iterator[RawEntry]:
        return iter(self.rows)

    @property
    def asked(self) -> int:
        """Questions in all."""
        return sum(len(row["questions"]) for row in self.rows)


def grouped(questions: Iterable[Asked], limit: int | None = None) -> list[RawEntry]:
    """Questions as entries, those about the same images or the same video together, in the order of the first.

    Raises:
        SystemExit: an id stands twice.
    """
    rows: dict[Any, RawEntry] = {}
    ids: set[str] = set()
    for asked in islice(questions, limit):
        if asked.question_id in ids:
            raise SystemExit(f"question {asked.question_id!r}: stands twice in the files")
        ids.add(asked.question_id)
        own = asked.problem or IMAGE_TOKEN in asked.text or not (asked.images or asked.video or asked.inline)
        inline = [asked.question_id if own else _digest(one) for one in asked.inline]
        media = asked.question_id if own else (tuple(asked.images), asked.video, asked.segment, *inline)
        if media not in rows:
            name = asked.question_id if own or asked.inline else [*asked.images, asked.video][0]
            rows[media] = {"id": name, "image": list(asked.images), "questions": []}
            rows[media] |= {"video": asked.video, "segment": asked.segment} if asked.video else {}
            rows[media] |= {"problem": asked.problem} if asked.problem else {}
            rows[media] |= {"inline": [_written(one) for one in asked.inline]} if asked.inline else {}
        rows[media]["questions"].append(
            {
                "question_id": asked.question_id,
                "question": with_options(asked.text, asked.options) if asked.options else asked.text,
                "answers": list(asked.answers),
                "type": asked.type,
                "options": list(asked.options),
                **({} if asked.suffix is None else {"suffix": asked.suffix}),
                **({} if asked.official_id in (None, asked.question_id) else {"official_id": asked.official_id}),
                **asked.facts,
            }
        )
    return list(rows.values())


def _digest(image: bytes | Cell) -> Any:
    """What two pictures that are the same have in common; a cell is that of the first."""
    return sha256(image).digest() if isinstance(image, bytes) else image


def _written(image: bytes | Cell) -> str | list[Any]:
    """A picture, or where it stands, in a raw entry."""
    return base64.b64encode(image).decode() if isinstance(image, bytes) else list(image)


def _read(inline: str | list[Any]) -> bytes:
    return base64.b64decode(inline) if isinstance(inline, str) else Cell(*inline).read()


@dataclass(frozen=True)
class Converter:
    """An entry of :func:`grouped` as the engine wants it.

    Attributes:
        images: where images lie. A file is also found without the first folders of its path.
        videos: where videos and folders of frames lie.
        sampling: what is made of a video.
        blind: whether a question without a picture is one, and not one that has lost it.
    """

    images: Images
    videos: Videos
    sampling: Sampling
    blind: bool = True

    def __call__(self, raw: RawEntry) -> Entry:
        """See :data:`data_prep.check.Convert`."""
        if "problem" in raw:
            raise BadSample(raw["problem"], "answer-missing")
        images: list[str | bytes] = [_read(data) for data in raw.get("inline", ())]
        images += [self.found(name) for name in raw["image"]] if self.takes_images(raw) else []
        if "video" in raw and not self.takes_images(raw):
            images += self.sampling.images(self.videos.find(raw["video"]), raw["segment"])
        if not (images or self.blind):
            name = raw["questions"][0]["question_id"]
            raise BadSample(f"question {name}: has no picture, as all questions of this set have", "image-missing")
        changes = set()
        for question in raw["questions"]:
            changes |= {"answers hidden"} if not question["answers"] else set()
            options = {letter(i): " ".join(text.split()) for i, text in enumerate(question["options"])}
            # of use to the protocols that read texts; a line of the question looks like an option
            changes |= (
                {"options read otherwise"} if options and parse_options(question["question"]) != options else set()
            )
            marks = question["question"].count(IMAGE_TOKEN)
            if marks not in (0, len(images)):
                name = question["question_id"]
                raise BadSample(f"question {name}: {marks} {IMAGE_TOKEN} marks for {len(images)} images", "marks")
        questions = [
            {key: value for key, value in question.items() if value != [] or key == "answers"}
            | ({} if question["answers"] else {"hidden": True})
            for question in raw["questions"]
        ]
        return Entry({"id": raw["id"], "questions": questions}, images, sorted(changes))

    def found(self, name: str) -> str:
        """The path under which an image is there; ``name`` itself if it is not."""
        parts = PurePosixPath(name).parts
        paths = ["/".join(parts[i:]) for i in range(len(parts))]
        return next((path for path in paths if self.images.size(path)), name)

    def takes_images(self, raw: RawEntry) -> bool:
        """Whether the images that an entry names are used, and not its video."""
        return "video" not in raw or (bool(raw["image"]) and all(self.images.size(self.found(n)) for n in raw["image"]))

    def decodes_video(self, raw: RawEntry) -> bool:
        """Whether an entry needs a video file decoded."""
        if "video" not in raw or self.takes_images(raw):
            return False
        try:
            return self.videos.find(raw["video"]).is_file()
        except BadSample:
            return False
