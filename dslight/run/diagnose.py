"""``diagnostics`` in a recipe: brings the data's questions and the run's folder to :mod:`dslight.diagnostics`.

    diagnostics.json              what was found
    diagnostics/questions.jsonl   a line per question of the slice, with its score in every arm
    diagnostics/SOURCE-N.png      heat maps

The questions are the first of each source, whatever the ranks. An *other image* is the next one in the shards that has
the same number of slots; it is found from the question's number alone, so every rank and every run takes the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dslight.data.collate import Item
from dslight.data.datamodule import RowMaker, rank_and_world
from dslight.data.loader import EvalLoader
from dslight.data.plan import eval_share, question_rows
from dslight.data.sample import Turn
from dslight.diagnostics.callback import Asked, Diagnose
from dslight.files.atomic import write_atomically
from dslight.recipe.experiment import Experiment
from dslight.run.deletion import OWN
from dslight.run.folder import RunFolder
from dslight.types import IGNORE, Batch

TRIES = 16  # images that are looked at for one of the same layout


def diagnose(experiment: Experiment, folder: RunFolder) -> list[Any]:
    """The callback that the recipe asks for, if it does."""
    settings = experiment.diagnostics
    if settings is None or not experiment.validates:
        return []
    return [Diagnose(settings, partial(_slices, experiment.data, settings.limit), partial(_write, folder))]


def _slices(data: Any, limit: int, trainer: Any) -> dict[str, Questions]:
    rank, world = rank_and_world(trainer)
    loaders = dict(zip(data.val_sources, trainer.val_dataloaders, strict=True))  # those of the validation itself
    counts = {name: min(limit, source.limit or limit) for name, source in data.val_sources.items()}
    return {
        name: Questions(loader, data.rows, counts[name], rank, world, data.val_batch_size)
        for name, loader in loaders.items()
        if not data.val_sources[name].loss
    }


class Questions:
    """The first questions of a source, one rank's share of them.

    Args:
        loader: knows how a question is read and how rows become a batch.
        rows: writes the reference answers.
        limit: how many questions.
        rank, world: of the processes that share them.
        batch: questions at once.
    """

    def __init__(self, loader: EvalLoader[Item], rows: RowMaker, limit: int, rank: int, world: int, batch: int) -> None:
        self.records: Any = loader.dataset
        collate: Any = loader.collate
        self.collate: Any = replace(collate, once=False)  # views are looked at row by row
        self.rows, self.rank, self.world, self.batch = rows, rank, world, batch
        self.count = min(limit, len(self.records))
        self.sample_of = question_rows(self.records.reader.index.questions)
        self.first_of = np.flatnonzero(np.diff(self.sample_of, prepend=-1))  # the first question of each sample

    def asked(self, others: bool) -> Iterator[Asked]:
        """See :class:`~dslight.diagnostics.callback.Slice`."""
        numbers, valid = eval_share(self.count, self.rank, self.world)
        share = list(zip(numbers.tolist(), valid.tolist(), strict=True))
        for start in range(0, len(share), self.batch):
            items = [self._item(*one) for one in share[start : start + self.batch]]
            if not others:
                yield Asked(self.collate(items), None, ())
                continue
            found = [self._other(number, item) for (number, _), item in zip(share[start:], items, strict=False)]
            rows = [item if other is None else other for item, other in zip(items, found, strict=True)]
            yield Asked(self.collate(items), self.collate(rows), tuple(other is None for other in found))

    def taught(self, count: int) -> Iterator[tuple[Batch, Batch]]:
        """See :class:`~dslight.diagnostics.callback.Slice`; spread evenly over the questions."""
        chosen = np.unique(np.linspace(0, self.count - 1, min(count, self.count)).round().astype(int))
        index, valid = eval_share(len(chosen), self.rank, self.world)
        whole = replace(self.collate, max_length=10**9)  # the answer may stand behind the longest question
        for number, counts in zip(chosen[index].tolist(), valid.tolist(), strict=True):
            item = self._item(number, counts)
            yield self.collate([item]), whole([self._with_answer(item)])

    def _item(self, number: int, valid: bool) -> Item:
        item = self.records[number, valid]
        answered = bool(item.pixels and item.question.references)
        return item if answered else replace(item, question=replace(item.question, valid=False))

    def _other(self, number: int, item: Item) -> Item | None:
        """The first question of the next sample whose images take as many slots."""
        own, samples = int(np.searchsorted(self.first_of, number, "right")) - 1, len(self.first_of)
        for step in range(1, min(samples, 1 + TRIES)):
            other = self.records[int(self.first_of[(own + step) % samples]), True]
            if self._layout(other) == self._layout(item):
                return other
        return None

    def _layout(self, item: Item) -> Sequence[tuple[int, int]]:
        """Of each image its slots and its views."""
        pieces = item.pieces or [(1, 1)] * len(item.grids)
        slots = (self.collate.slots(*each) for each in zip(item.grids, item.sizes, pieces, strict=True))
        return list(zip(slots, (len(views) for views in item.pixels), strict=True))

    def _with_answer(self, item: Item) -> Item:
        """As in training, with the reference that most people gave; labelled where training would learn it."""
        assert item.question is not None
        references = item.question.references or ("",)
        reference = Counter(references).most_common(1)[0][0]
        written = self.rows.template.encode([Turn("human", "?"), Turn("gpt", reference)], self.rows.tokenizer, 0)
        answer = [token for token, label in zip(written.ids, written.labels, strict=True) if label != IGNORE]
        labels = [IGNORE] * len(item.ids) + answer
        return replace(item, ids=[*item.ids, *answer], labels=labels, question=None)


def _write(folder: RunFolder, found: dict[str, Any], files: Mapping[str, bytes]) -> None:
    place = folder.path / "diagnostics"
    place.mkdir(parents=True, exist_ok=True)
    for old in place.glob("*.png"):
        if OWN.fullmatch(f"{place.name}/{old.name}"):
            old.unlink()
    for name, data in files.items():
        (place / name).write_bytes(data)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.pop("questions"))
    write_atomically(place / "questions.jsonl", lines)
    write_atomically(folder.path / "diagnostics.json", json.dumps(found, indent=2, ensure_ascii=False))
