"""Which record every rank reads at every step, known before the first step: a function of data, mix, seed and epoch.

Terms: an *item* is one row: one occurrence of a record in an epoch or, where rows are packed, several. Items are cut
into global batches of ``G``; with ``W`` ranks and micro-batches of ``m``, global batch ``g`` is read as ``A = G / (W
m)`` rounds, and rank ``r`` of round ``a`` reads items ``g G + a W m + r m`` up to ``+ m``. So the set of records of an
optimizer step depends neither on ``W`` nor on ``m``, the position is one number, and all ranks take equally many steps
because an epoch is whole global batches.

Decided here, and why:

* Mixing is by repetition, not by coin flips: a source of weight 2.5 appears twice in full and once by a fresh random
  half per epoch. What is left out to make whole batches is shared by the sources, so the realised shares are those that
  were asked for, to within one record, in every epoch.
* Every epoch has the same number of steps, since a learning-rate schedule is laid over it. The number of packs is that
  of the first epoch, rounded up to whole batches; a later epoch that packs better splits some, one that packs worse
  leaves a few records out, of each source its share.
* Grouping is LLaVA's: batches of one modality, lengths sorted within mega-batches of 50 batches, batches in random
  order. Only the batch that is made of what is left over may mix images and text.
* With ``window``, reading stays near to where it was: records of ``window`` shards at a time, and neither packing nor
  grouping carries them far. That is for disks and remote stores where a shard is pulled as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from dslight.data.packing import Packs, pack, singles
from dslight.limits import at_most

MEGA_BATCH = 50
"""Global batches among which lengths are sorted."""


@dataclass(frozen=True)
class Order:
    """How an epoch is ordered and cut into rows.

    Attributes:
        window: shards that are shuffled together; default: all.
        group_by: ``modality``: a global batch is all images or all text; ``length``: of rows of like length.
        pack: several conversations share a row of ``max_length``, each on its own; ``global_batch_size`` then counts
            rows.
        pack_window: conversations that may share rows.

    Example:
        >>> dslight.Data(train=["data/mine"], order=dslight.Order(group_by=["modality", "length"])).order.measures
        True
    """

    window: int | None = None
    group_by: list[Literal["modality", "length"]] = field(default_factory=list)
    pack: bool = False
    pack_window: int = 8192

    def __post_init__(self) -> None:
        for name in ("window", "pack_window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.order.{name}: must be at least 1, got {value}")
        unknown = [name for name in self.group_by if name not in ("modality", "length")]
        if unknown:
            raise ValueError(f"data.order.group_by: {unknown[0]!r} is neither modality nor length")
        if self.pack and "length" in self.group_by:
            raise ValueError("data.order.group_by: length has no use with pack, whose rows are all about max_length")

    @property
    def measures(self) -> bool:
        """Whether the lengths of the records must be known."""
        return self.pack or bool(self.group_by)


@dataclass(frozen=True)
class PlanSource:
    """A source as the plan knows it.

    Attributes:
        digest: of its manifest.
        records: how many it has.
        weight: how often an epoch shows it; 1.0: once.
        shards: int64 ``[shards]``, the records of each; ``None``: one shard.
        lengths: int ``[records]``, positions of each record, negative where it has no image, 0 where it cannot be read
            (as in a lengths file); ``None``: not known.
    """

    digest: str
    records: int
    weight: float = 1.0
    shards: np.ndarray | None = field(default=None, compare=False, repr=False)
    lengths: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of a rank, one after the other: lists of record numbers, or of tuples of them (packs).

    Attributes:
        packs: the items of the epoch.
        items: int64 ``[batches, micro]``, item numbers.
        packed: whether an item is several records.
    """

    packs: Packs
    items: np.ndarray
    packed: bool

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, batch: int) -> np.ndarray:
        """The records of a batch, int64, those of packs one after the other."""
        return self.packs.take(self.items[batch]).records

    def __iter__(self) -> Iterator[list[Any]]:
        for items in self.items:  # made when they are asked for: a million Python numbers are never there at once
            if self.packed:
                yield [tuple(self.packs[item].tolist()) for item in items]
            else:
                yield self.packs.records[items].tolist()


@dataclass(frozen=True, eq=False)
class TrainPlan:
    """The order of training.

    Records are numbered through all sources in order: record ``i`` of source ``s`` is ``starts[s] + i``.

    Attributes:
        sources: what is read.
        seed: of every random choice.
        global_batch: G.
        order: see :class:`Order`.
        max_length: positions of a row; longer records count as this long, since they are cut.
        text: what the ids and the lengths of records depend on, name to hash; part of the plan's own hash.
    """

    sources: tuple[PlanSource, ...]
    seed: int
    global_batch: int
    order: Order = field(default_factory=Order)
    max_length: int = 0
    text: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, source in enumerate(self.sources):
            if source.weight <= 0:
                raise ValueError(
                    f"data.train[{i}].weight: {source.weight}; must be above 0 (leave the source out instead)"
                )
            if self.order.measures and source.lengths is None:
                raise ValueError(
                    f"data.train[{i}]: the lengths of its records are not known, and data.order needs them"
                )
            if source.lengths is not None and len(source.lengths) != source.records:
                raise ValueError(f"data.train[{i}]: {len(source.lengths)} lengths for {source.records} records")
            shown = source.records * source.weight
            at_most("epoch_records", shown, f"data.train[{i}].weight: {source.weight}, {shown:,.0f} records an epoch")
        if sum(self._counts) < self.global_batch:
            raise ValueError(
                f"data.global_batch_size: {self.global_batch} is more than the {sum(self._counts)} items of an epoch; "
                "lower it or raise a weight"
            )

    @property
    def _shares(self) -> np.ndarray:
        """How many records of each source an epoch should show, not rounded."""
        return np.array([source.records * source.weight for source in self.sources])

    @cached_property
    def _counts(self) -> list[int]:
        shares = self._shares
        return apportion(int(shares.sum() + 0.5), shares, np.ceil(shares).astype(np.int64)).tolist()

    @property
    def starts(self) -> np.ndarray:
        """int64 ``[sources + 1]``: the number of the first record of each source."""
        return np.cumsum([0, *(source.records for source in self.sources)])

    @cached_property
    def lengths(self) -> np.ndarray | None:
        """Positions of every record, int32 ``[records]``, at most ``max_length``; ``None`` if not known. A record that
        cannot be read counts as ``max_length``, so that any stand-in fits."""
        if any(source.lengths is None for source in self.sources):
            return None
        lengths = np.abs(np.concatenate([np.asarray(source.lengths, dtype=np.int32) for source in self.sources]))
        lengths[lengths == 0] = self.max_length
        return np.minimum(lengths, self.max_length)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps (global batches) per epoch."""
        if not self.order.pack:
            return sum(self._counts) // self.global_batch
        return min(-(-len(self._first) // self.global_batch), sum(self._counts) // self.global_batch)

    @cached_property
    def _first(self) -> Packs:
        """The packs of the first epoch, before they are made whole batches."""
        return self._packs(0, sum(self._counts))

    @property
    def items(self) -> int:
        """Items per epoch, the dropped remainder left out."""
        return self.steps * self.global_batch

    @property
    def parts(self) -> dict[str, Any]:
        """What the order is a function of, by the keys of a recipe and in few bytes."""
        return {
            "data.train (shards)": [source.digest[:8] for source in self.sources],
            "data.train (weights)": [source.weight for source in self.sources],
            "data.seed": self.seed,
            "data.order": {**asdict(self.order), "group_by": sorted(self.order.group_by)},
            **({"data.max_length": self.max_length} if self.order.measures else {}),
            **self.text,
        }

    @property
    def hash(self) -> str:
        """Equal if and only if the plans give the same order (16 hex digits)."""
        content = [[[s.digest, s.records] for s in self.sources], self.global_batch, self.parts]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def packs(self, epoch: int) -> Packs:
        """The items of an epoch in order, ``items`` of them."""
        if not self.order.pack:
            rng = self._rng(epoch)
            return self._grouped(singles(self._sequence(rng, self.items)), rng)
        records = total = sum(self._counts)  # at least as many as items: see `steps`
        while True:
            packs = self._first if (epoch, records) == (0, total) else self._packs(epoch, records)
            excess = len(packs) - self.items
            if excess <= 0:
                break
            records -= max(1, excess * records // len(packs))
        return self._grouped(packs.split(self.items), self._rng(epoch, 1))

    def epoch(self, epoch: int) -> np.ndarray:
        """The records of an epoch in order, int64 ``[records]``."""
        return self.packs(epoch).records

    def micro_batches(self, epoch: int, consumed: int, rank: int, world: int, micro: int) -> MicroBatches:
        """What a rank still has to read in an epoch of which ``consumed`` items are done.

        ``consumed`` inside a global batch is taken back to its start: its optimizer step has not happened.
        """
        accumulation(self.global_batch, world, micro)
        done = consumed - consumed % self.global_batch
        items = np.arange(done, self.items).reshape(-1, world, micro)[:, rank]
        return MicroBatches(self.packs(epoch), items, self.order.pack)

    def spare(self, record: int, attempt: int) -> int:
        """The record that stands in for a bad one, the same on every machine and at every resume; in a pack, one that
        is not longer."""
        rng = np.random.default_rng([self.seed, record, attempt])
        if not self.order.pack:
            return int(rng.integers(self.starts[-1]))
        assert self.lengths is not None
        order, sorted_lengths = self._by_length
        fitting = int(np.searchsorted(sorted_lengths, self.lengths[record], side="right"))
        return int(order[rng.integers(fitting)])

    def padding(self, micro: int, epoch: int = 0) -> tuple[float, float] | None:
        """The share of padding in the micro-batches of an epoch: as planned, and without packing and grouping; ``None``
        if lengths are not known."""
        lengths = self.lengths
        if lengths is None:
            return None
        packs = self.packs(epoch)
        rows = np.add.reduceat(lengths[packs.records], packs.starts[:-1])
        plain = lengths[self._sequence(self._rng(epoch), sum(self._counts))]
        return _padding(rows, micro), _padding(plain, micro)

    # --- the steps of an epoch

    def _rng(self, epoch: int, stage: int | None = None) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch] if stage is None else [self.seed, epoch, stage])

    def _sequence(self, rng: np.random.Generator, total: int) -> np.ndarray:
        """``total`` records of an epoch in shuffled order, of each source its share."""
        chosen, shard, shards = [], [], 0
        for source, start, count in zip(self.sources, self.starts, self._counts, strict=False):
            whole, part = divmod(count, source.records) if source.records else (0, 0)
            rows = [np.arange(source.records)] * whole + [rng.permutation(source.records)[:part]]
            chosen.append(start + np.concatenate(rows))
            if self.order.window is not None:  # each repeat is shards of its own: a window should not hold one twice
                sizes = np.array([source.records]) if source.shards is None else source.shards
                of = np.repeat(np.arange(len(sizes)), sizes)
                for each in rows:
                    shard.append(shards + of[each])
                    shards += len(sizes)
        records = np.concatenate(chosen)
        order = rng.permutation(len(records))
        if self.order.window is not None:
            window = rng.permutation(shards) // self.order.window
            order = order[np.argsort(window[np.concatenate(shard)[order]], kind="stable")]
        records = records[order].astype(np.int64)
        return self._keep(records, apportion(total, self._shares, np.array(self._counts)))

    def _keep(self, records: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The first ``counts`` records of each source, in order."""
        if counts.sum() == len(records):
            return records
        keep = np.ones(len(records), dtype=bool)
        source = np.searchsorted(self.starts, records, side="right") - 1
        for i, count in enumerate(counts):
            keep[np.flatnonzero(source == i)[count:]] = False
        return records[keep]

    def _packs(self, epoch: int, total: int) -> Packs:
        assert self.lengths is not None
        rng = self._rng(epoch)
        records = self._sequence(rng, total)
        kinds = [records]
        if "modality" in self.order.group_by:
            text = self._is_text[records]
            kinds = [records[~text], records[text]]
        rows = [pack(own, self.lengths[own], self.max_length, self.order.pack_window, rng) for own in kinds]
        if len(rows) == 1:
            return rows[0]
        ends = np.cumsum([0, *(len(one.records) for one in rows)])
        starts = [one.starts[:-1] + end for one, end in zip(rows, ends, strict=False)]
        packs = Packs(np.concatenate([one.records for one in rows]), np.concatenate([*starts, ends[-1:]]))
        place = np.concatenate([np.arange(len(one)) / max(1, len(one)) for one in rows])  # as in the sequence, about
        return packs.take(np.argsort(place, kind="stable"))

    def _grouped(self, packs: Packs, rng: np.random.Generator) -> Packs:
        """Items put into global batches as ``group_by`` says."""
        if not self.order.group_by:
            return packs
        batch, items = self.global_batch, np.arange(len(packs))
        first = packs.records[packs.starts[:-1]]
        kinds = [items]
        if "modality" in self.order.group_by:
            text = self._is_text[first]
            kinds = [items[~text], items[text]]
        left = np.concatenate([own[len(own) - len(own) % batch :] for own in kinds])
        whole = [own[: len(own) - len(own) % batch] for own in kinds] + [left]
        if "length" in self.order.group_by:
            assert self.lengths is not None
            length = self.lengths[first]
            whole = [own[np.lexsort((-length[own], np.arange(len(own)) // (MEGA_BATCH * batch)))] for own in whole]
        batches = np.concatenate(whole).reshape(-1, batch)
        if self.order.window is None:
            order = rng.permutation(len(batches))
        else:  # near to where their records are read
            near = np.argsort(np.median(batches, axis=1), kind="stable")
            order = near[np.lexsort((rng.random(len(near)), np.arange(len(near)) // MEGA_BATCH))]
        return packs.take(batches[order].ravel())

    @cached_property
    def _is_text(self) -> np.ndarray:
        return np.concatenate([np.asarray(source.lengths) < 0 for source in self.sources])

    @cached_property
    def _by_length(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.lengths is not None
        order = np.argsort(self.lengths, kind="stable")
        return order, self.lengths[order]


def apportion(total: int, shares: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Share out ``total``: whole numbers, in proportion to ``shares`` to within one, and none above ``most``.

    The largest remainders are rounded up, the first of equals.
    """
    quotas = total * shares / shares.sum()
    counts = np.minimum(np.floor(quotas).astype(np.int64), most)
    while (missing := total - int(counts.sum())) > 0:
        open_ = np.flatnonzero(counts < most)
        order = open_[np.argsort((counts - quotas)[open_].round(9), kind="stable")]
        counts[order[:missing]] += 1
    return counts


def _padding(rows: np.ndarray, micro: int) -> float:
    batches = rows[: len(rows) - len(rows) % micro].reshape(-1, micro)
    return float(1 - batches.sum() / max(1, micro * batches.max(1).sum()))


def accumulation(global_batch: int, world: int, micro: int) -> int:
    """Micro-batches of a rank per optimizer step.

    Raises:
        ValueError: if the global batch is not a multiple of ``world * micro``.
    """
    if global_batch % (world * micro):
        raise ValueError(
            f"data.global_batch_size: {global_batch} is no multiple of {world} ranks x data.micro_batch_size {micro}"
        )
    return global_batch // (world * micro)


def eval_share(items: int, rank: int, world: int) -> tuple[np.ndarray, np.ndarray]:
    """A rank's share of ``items`` in order: int64 item numbers and bool ``valid``, of equal length on all ranks.

    Shares are contiguous, so that the questions about one image stay together; a short share repeats the last item with
    ``valid`` false.
    """
    length = -(-items // world)
    numbers = np.arange(rank * length, (rank + 1) * length)
    return np.minimum(numbers, items - 1), numbers < items


def question_rows(questions: Sequence[int] | np.ndarray) -> np.ndarray:
    """The record of every question in order, given the questions of each record, int64 ``[questions]``."""
    return np.repeat(np.arange(len(questions)), questions)
