"""A page that shows records as a recipe trains on them: picture, conversation, what is supervised, views and counts.

Run: ``python -m data_prep.inspect data/mine --recipe recipes/paper/table1/deepstack_l_7b.yaml --n 20 --out page.html``.
``key=value`` arguments override the recipe, as everywhere. Nothing is trained and no weight is read: of the language
model only the tokenizer, of the others their shapes. Without ``--recipe`` the page shows pictures and text only.

The rows are made by the code that training uses, so what the page shows is what the model gets. It is one file.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_prep.processes import program
from dslight.data.collate import Collate, Item
from dslight.data.conversation import IMAGE
from dslight.data.datamodule import ShardData
from dslight.data.records import read_sample
from dslight.data.rows import RowMaker
from dslight.data.sample import BadSample, Sample, decode_image
from dslight.data.shards import ShardError, ShardReader
from dslight.data.views.frames import AS_USUAL, Clip, Frames
from dslight.files.atomic import write_atomically
from dslight.recipe.build import check, connect, ready
from dslight.recipe.compose import compose
from dslight.recipe.errors import RecipeError
from dslight.recipe.schema import parse
from dslight.texts import printable
from dslight.types import IGNORE, Grid
from dslight.vlm import VLM

_PICTURE = 560  # pixels, the longer side of a picture on the page
_VIEW = 168  # and of a view


@dataclass(frozen=True)
class Run:
    """A stretch of a row: text, supervised or not, or the slots of an image (``slots`` above 0)."""

    text: str
    supervised: bool = False
    slots: int = 0


@dataclass(frozen=True)
class Picture:
    """An image of a record: data URLs of it and its views, and what is counted."""

    url: str
    size: Grid
    base: str = ""
    crops: tuple[str, ...] = ()
    grid: Grid = (0, 0)
    views: int = 0
    slots: int = 0
    tiny: bool = False


@dataclass(frozen=True)
class Card:
    """A record on the page."""

    key: str
    id: str
    shard: str
    turns: tuple[tuple[str, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    runs: tuple[Run, ...] = ()
    counts: dict[str, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Lens:
    """What a recipe makes of a record."""

    rows: RowMaker
    collate: Collate
    patches: int
    frames: Frames = AS_USUAL

    @classmethod
    def of(cls, recipe: dict[str, Any]) -> Lens:
        """The lens of a recipe, from its shapes and its tokenizer.

        Raises:
            RecipeError: naming the key that is wrong.
        """
        recipe = {**recipe, "weights": {}}  # not needed, so they need not be there yet
        parsed = parse(recipe)
        experiment, tokenizer = check(parsed), ready(parsed, None)
        data, model = experiment.data, experiment.model
        if not isinstance(model, VLM) or not isinstance(data, ShardData):
            raise RecipeError(
                "component: this recipe fits a component alone; inspect shows what a whole model trains on"
            )
        data.on_unusable = "error"
        connect(experiment, tokenizer)
        rows, columns = model.vision_encoder.grid
        return cls(data.rows, data.processor.collate, rows * columns, data.frames)

    def card(self, card: dict[str, Any], sample: Sample) -> Card:
        """The card of a record: ``card`` holds the fields that no recipe is needed for."""
        item = self.rows.train(sample) if sample.turns else self.rows.ask(sample, sample.questions[0], True)
        item, between = item.opened(), self.collate.between
        shapes = zip(item.grids, item.sizes, item.pieces or [(1, 1)] * len(item.grids), strict=True)
        each = [self.collate.slots(*shape) for shape in shapes]
        text = len(item.ids) - len(each)
        text += 0 if between is None else sum(len(ids) for grid in item.grids for ids in between(grid))
        height, width = self.rows.image_size
        pieces = sum(view.shape[-2] * view.shape[-1] for pixels in item.pixels for view in pixels) // (height * width)
        total, longest = text + sum(each), self.collate.max_length
        supervised = sum(label != IGNORE for label in item.labels or ())
        counts = {
            "positions": f"{total:,} of {longest:,}" + (" (cut)" if total > longest else ""),
            "of images": f"{sum(each):,}",
            "of text": f"{text:,}",
            "supervised": f"{supervised:,}",
            "tokens of all views": f"{pieces * self.patches:,}",
        }
        problem = ""
        try:
            self.collate([item])
        except BadSample as error:
            problem = str(error)
        pictures = [
            _with_views(picture, pixels, grid, slots)
            for picture, pixels, grid, slots in zip(card["pictures"], item.pixels, item.grids, each, strict=True)
        ]
        runs = tuple(_runs(item, each, self.rows.tokenizer))
        return Card(**{**card, "pictures": tuple(pictures)}, runs=runs, counts=counts, problem=problem)


def _runs(item: Item, slots: Sequence[int], tokenizer: Any) -> Iterator[Run]:
    """The row as stretches. Text is decoded up to each border, as a stretch alone would lose its first space."""
    labels = item.labels or [IGNORE] * len(item.ids)
    marks = iter(slots)
    at = 0
    for image, chunk in groupby(zip(item.ids, labels, strict=True), key=lambda pair: pair[0] == IMAGE):
        pairs = list(chunk)
        if image:
            yield from (Run("", slots=next(marks)) for _ in pairs)
            continue
        ids, at, done = [token for token, _ in pairs], 0, ""
        for supervised, part in groupby(pairs, key=lambda pair: pair[1] != IGNORE):
            at += len(list(part))
            text = tokenizer.decode(ids[:at], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            yield Run(text[len(done) :], supervised)
            done = text


def _with_views(picture: Picture, pixels: Tensor, grid: Grid, slots: int) -> Picture:
    tiles = 1 + grid[0] * grid[1]
    urls = [_url(_image(view), _VIEW) for view in pixels[:tiles]]
    return Picture(
        picture.url,
        picture.size,
        base=urls[0],
        crops=tuple(urls[1:]),
        grid=grid,
        views=len(pixels),
        slots=slots,
        tiny=picture.tiny,
    )


def _image(view: Tensor) -> Image.Image:
    first = view if view.ndim == 3 else view[0]  # of the frames of a temporal patch
    return Image.fromarray(first.permute(1, 2, 0).contiguous().numpy())


def _url(image: Image.Image, side: int) -> str:
    """A data URL of an image, made smaller if its longer side is above ``side``."""
    shown = image.copy()
    shown.thumbnail((side, side))
    out = io.BytesIO()
    kind = "PNG" if max(image.size) <= 64 else "JPEG"
    shown.save(out, kind, **({} if kind == "PNG" else {"quality": 82}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def card_of(reader: ShardReader, row: int, lens: Lens | None) -> Card:
    """The card of a record; what cannot be shown of it is its ``problem``."""
    shard, key = reader.locate(row)
    try:
        sample = read_sample(reader, row, frames=AS_USUAL if lens is None else lens.frames)
        pictures = []
        for data in _shown(sample):
            decode = decode_image if lens is None else lens.rows.decode
            image = Image.fromarray(data if isinstance(data, np.ndarray) else decode(data))
            pictures.append(Picture(_url(image, _PICTURE), (image.height, image.width), tiny=max(image.size) <= 64))
        turns = [(turn.role, turn.text) for turn in sample.turns]
        for question in sample.questions:
            turns += [("human", question.text), ("gpt", " / ".join(dict.fromkeys(question.references)))]
        plain = {"key": key, "id": sample.id, "shard": shard.name, "turns": tuple(turns), "pictures": tuple(pictures)}
    except (BadSample, ShardError) as error:
        return Card(key, "", shard.name, problem=str(error))
    if lens is None:
        return Card(**plain)
    try:
        return lens.card(plain, sample)
    except BadSample as error:
        return Card(**plain, problem=str(error))


def _shown(sample: Sample) -> Iterator[Any]:
    """Every image, and of every clip a frame for each temporal patch."""
    for image in sample.images:
        yield from image.frames[:: image.asked.depth] if isinstance(image, Clip) else (image,)


def page(root: Path, cards: Sequence[Card], total: int, recipe: str) -> str:
    """The HTML."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(Path(__file__).with_name("inspect.html").read_text(encoding="utf-8"))
    return printable(template.render(root=str(root), cards=cards, total=total, recipe=recipe))


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="dslight data inspect", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path, help="a folder of shards")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--n", type=int, default=20, help="how many records, drawn at random with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keys", nargs="+", help="these records instead")
    parser.add_argument("--out", type=Path, default=Path("inspect.html"), help="the page (default: inspect.html)")
    args = parser.parse_intermixed_args(argv)
    torch.set_num_threads(1)
    if args.n < 0:
        raise SystemExit(f"--n: {args.n}; 0 or more")
    try:
        reader = ShardReader(args.root)
        lens = None if args.recipe is None else Lens.of(compose(args.recipe, args.overrides))
    except (ShardError, RecipeError, OSError) as error:
        raise SystemExit(str(error)) from error
    if args.keys:
        known = {reader.index.key(row): row for row in range(len(reader))}
        missing = [key for key in args.keys if key not in known]
        if missing:
            raise SystemExit(f"--keys: {args.root} has no {missing[0]!r}; its first is {reader.index.key(0)!r}")
        rows = [known[key] for key in args.keys]
    else:
        rows = sorted(random.Random(args.seed).sample(range(len(reader)), min(args.n, len(reader))))
    cards = [card_of(reader, row, lens) for row in rows]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, page(args.root, cards, len(reader), str(args.recipe or "")))
    print(f"{args.out}: {len(cards)} of {len(reader):,} records")


if __name__ == "__main__":
    program(main)
