"""What comes out of data workers is what a loader without workers gives, and stays so however long it is kept."""

import gc
import os

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from dslight.data.transport.batch_buffer import empty, joined
from dslight.data.transport.workers import Workers, read_batches
from dslight.types import Batch, Views

COUNT = 40


def numbered(views, i):
    views[:, 0], views[:, 1], views[:, 2] = i % 251, torch.arange(48), torch.arange(64)[:, None]
    return views


class Rows(Dataset):
    """Row i: pixels of i in as many views as ``views`` says."""

    def __init__(self, views=(4,)):
        self.views = views

    def __getitem__(self, i):
        count = self.views[i % len(self.views)]
        return i, numbered(empty(count, 64, 48), i) if count else None


def collate(rows):
    """A batch with tensors of several types and sizes, and much that is no tensor."""
    numbers = torch.tensor([i for i, _ in rows])
    pixels = [view for _, view in rows if view is not None]
    views = Views(joined(pixels), [(0, 0)] * sum(map(len, pixels))) if pixels else None
    ids = numbers[:, None].repeat(1, 3 + int(numbers[0]) % 5)
    return Batch(ids, ids.T[:, :1] > 0, ids > 7, None, views, [f"row {i}" for i, _ in rows], dropped=["none"])


def lists(count=COUNT, rows=2):
    return [list(range(i, i + rows)) for i in range(count)]


def same(a: Batch, b: Batch) -> None:
    for name in ("input_ids", "attention_mask", "visual_mask"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        assert torch.equal(x, y), name
    assert (a.labels, a.keys, a.dropped) == (b.labels, b.keys, b.dropped)
    assert (a.views is None) == (b.views is None)
    if a.views is not None and b.views is not None:
        assert torch.equal(a.views.pixels, b.views.pixels)
        assert a.views.grids == b.views.grids


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("views", [(4,), (1, 1, 2, 9, 0, 30, 3), (0,)], ids=str)
def test_workers_give_the_batches_that_the_process_itself_gives(workers, views):
    here, there = (read_batches(Rows(views), lists(), collate, Workers(count)) for count in (0, workers))
    compared = [same(a, b) for a, b in zip(there, here, strict=True)]
    assert len(compared) == COUNT


def test_a_batch_that_is_kept_stays_as_it_was():
    """More are kept than there are places, so that some came another way."""
    kept = list(read_batches(Rows(), lists(), collate, Workers(2)))
    for batch, expected in zip(kept, read_batches(Rows(), lists(), collate, Workers(0)), strict=True):
        same(batch, expected)


def test_a_part_of_a_batch_keeps_its_memory():
    parts = [batch.views.pixels[1, 0, ::2] for batch in read_batches(Rows(), lists(), collate, Workers(1))]
    assert [part.unique().tolist() for part in parts] == [[i % 251] for i in range(COUNT)]
    arrays = [batch.views.pixels.numpy() for batch in read_batches(Rows(), lists(), collate, Workers(1))]
    assert [array[0, 0, 0, 0] for array in arrays] == list(range(COUNT))


def test_memory_is_used_again_when_a_batch_is_gone():
    seen = {batch.views.pixels.data_ptr() for batch in read_batches(Rows(), lists(), collate, Workers(1))}
    assert len(seen) <= 7  # the places; the first batch, which came another way


def test_a_forked_process_does_not_give_away_what_its_parent_holds():
    stream = read_batches(Rows(), lists(), collate, Workers(1))
    held = [next(stream) for _ in range(4)]
    values = [batch.views.pixels.clone() for batch in held]
    child = os.fork()
    if not child:
        held.clear()
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    for _ in range(20):
        next(stream)
    assert all(torch.equal(batch.views.pixels, value) for batch, value in zip(held, values, strict=True))


def test_what_holds_no_tensor_comes_as_it_is():
    got = list(read_batches(Rows((0,)), lists(), lambda rows: np.array([i for i, _ in rows]), Workers(1)))
    assert [batch.tolist() for batch in got] == lists()


def test_large_batches_travel_in_places():
    """That is what it is for: all of a batch but of the first lies in one piece of memory."""
    batches = read_batches(Rows(), lists(6), collate, Workers(1))
    storages = [{x.untyped_storage().data_ptr() for x in (b.views.pixels, b.input_ids)} for b in batches]
    assert [len(found) for found in storages] == [2, 1, 1, 1, 1, 1]
