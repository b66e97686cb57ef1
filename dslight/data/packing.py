"""Packing: several conversations share a row, so that a batch of short ones is not mostly padding.

Decided here: best fit decreasing. The longest conversation goes first, each into the row with the least room that still
takes it; a row is never longer than the limit and a conversation never cut for it. It is done inside windows of the
shuffled order, so that what shares a row stays random, and rows inside a window are shuffled afterwards: unshuffled,
the longest conversations of a window would come first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packs:
    """Records grouped into packs: pack ``i`` is ``records[starts[i] : starts[i + 1]]``.

    Attributes:
        records: int64 ``[n]``.
        starts: int64 ``[packs + 1]``.
    """

    records: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.records[self.starts[pack] : self.starts[pack + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """Records of each pack, int64 ``[packs]``."""
        return np.diff(self.starts)

    def take(self, order: np.ndarray) -> Packs:
        """The packs numbered ``order``, in that order."""
        sizes = self.sizes[order]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
        return Packs(self.records[np.repeat(self.starts[:-1][order], sizes) + within], starts)

    def split(self, total: int) -> Packs:
        """``total`` packs or more of the same records: the last record of the fullest packs leaves for one of its own.

        Raises:
            ValueError: if there are fewer records than ``total``.
        """
        missing = total - len(self)
        if missing <= 0:
            return self
        if len(self.records) < total:
            raise ValueError(f"{len(self.records)} records cannot be {total} packs")
        sizes = self.sizes.copy()
        while missing:
            fullest = np.argsort(-sizes, kind="stable")[:missing]
            fullest = fullest[sizes[fullest] > 1]
            sizes[fullest] -= 1
            missing -= len(fullest)
        alone = self.sizes - sizes  # records of each pack that leave it
        pieces = np.ones(len(sizes) + alone.sum(), dtype=np.int64)
        pieces[np.arange(len(sizes)) + np.concatenate([[0], np.cumsum(alone)[:-1]])] = sizes
        return Packs(self.records, np.concatenate([[0], np.cumsum(pieces)]))


def singles(records: np.ndarray) -> Packs:
    """Each record by itself."""
    return Packs(records, np.arange(len(records) + 1))


def pack(records: np.ndarray, lengths: np.ndarray, capacity: int, window: int, rng: np.random.Generator) -> Packs:
    """Pack ``records``, window by window.

    Args:
        records: int64 ``[n]``, in the order of the epoch.
        lengths: ``[n]``, positions that each takes, at least 1 and at most ``capacity``.
        capacity: positions of a pack.
        window: records that may share packs.
        rng: shuffles the packs of a window.
    """
    parts: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    for start in range(0, len(records), window):
        bins = best_fit_decreasing(lengths[start : start + window], capacity)
        new_number = rng.permutation(int(bins.max()) + 1)
        bins = new_number[bins]
        parts.append(records[start : start + window][np.argsort(bins, kind="stable")])
        sizes.append(np.bincount(bins))
    if not parts:
        return singles(records)
    return Packs(np.concatenate(parts), np.concatenate([[0], np.cumsum(np.concatenate(sizes))]))


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of every item, int64 ``[n]``, bins numbered from 0 in the order in which they are opened.

    Raises:
        ValueError: if an item is empty or does not fit any bin.
    """
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= capacity:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()}; packs take 1 to {capacity}")
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where a bin has room r, so the best fit is the lowest bit from the item's length on
    opened = 0
    bins = np.empty(len(lengths), dtype=np.int64)
    placed = []
    for length in lengths[order].tolist():
        fits = rooms >> length
        if fits:
            room = length + (fits & -fits).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            chosen, room = opened, capacity
            opened += 1
        placed.append(chosen)
        room -= length
        if room:
            rooms |= 1 << room
            by_room[room].append(chosen)
    bins[order] = placed
    return bins
