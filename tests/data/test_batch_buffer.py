"""Views that are made side by side are a batch without a copy, and where they are not, nothing else changes."""

import numpy as np
import pytest
import torch

from dslight.data.transport.batch_buffer import Arena, Pool, empty, joined


def filled(*counts: int) -> list[torch.Tensor]:
    parts = [empty(count, 2, 2) for count in counts]
    for number, part in enumerate(parts):
        part.random_(0, 256, generator=torch.Generator().manual_seed(number))
    return parts


def memory(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def test_parts_made_in_an_arena_are_joined_without_a_copy():
    with Arena(memory(200)) as arena:
        parts = filled(2, 5, 1)
        whole = joined(parts)
    assert whole.data_ptr() == parts[0].data_ptr() == arena.memory.data_ptr()
    assert torch.equal(whole, torch.cat(parts))
    assert arena.wanted == whole.nbytes


def test_an_arena_may_be_a_part_of_other_memory():
    outer = torch.zeros(300, dtype=torch.uint8)
    with Arena(outer[100:200]):
        for part in filled(2, 5, 1):
            part.fill_(7)
    assert (outer[100:196] == 7).all()
    assert not outer[:100].any()
    assert not outer[196:].any()


@pytest.mark.parametrize("size", [0, 30, 95, 96])
@pytest.mark.parametrize("chosen", [[0, 1, 2], [1, 0, 2], [0, 2], [1, 1], [2]])
def test_whatever_lies_elsewhere_is_copied(size, chosen):
    with Arena(memory(size)):
        parts = filled(2, 5, 1)
        picked = [parts[i] for i in chosen]
        assert torch.equal(joined(picked), torch.cat(picked))


def test_neighbours_of_different_memory_are_copied():
    """Two tensors that share bytes but not the storage: one that ends where the other begins, as chance may have it."""
    whole = torch.arange(24, dtype=torch.uint8)
    halves = [torch.from_numpy(half).view(1, 2, 2, 3).permute(0, 3, 1, 2) for half in np.split(whole.numpy(), 2)]
    assert halves[0].data_ptr() + halves[0].nbytes == halves[1].data_ptr()
    both = joined(halves)
    assert torch.equal(both, torch.cat(halves))
    assert both.untyped_storage().nbytes() == 24


@pytest.mark.parametrize("size", [0, 200])
def test_views_with_their_colours_apart_are_joined_too(size):
    parts = [torch.arange(12 * n, dtype=torch.uint8).view(n, 3, 2, 2) for n in (1, 2)]
    with Arena(memory(size)):
        assert torch.equal(joined(parts), torch.cat(parts))
        assert torch.equal(joined([*parts, *filled(3)]), torch.cat([*parts, *filled(3)]))


def test_outside_of_a_batch_memory_is_torchs():
    with Arena(memory(200)) as arena:
        pass
    assert len(filled(1)) == 1
    assert arena.wanted == 0


def test_memory_is_lent_again_when_no_tensor_needs_it():
    pool = Pool()
    first = pool.take(100)
    part, start = first[90:100].view(2, 5)[1], first.data_ptr()
    array = part.numpy()
    del first, part
    other = pool.take(100)
    assert other.data_ptr() != start  # the array still shows it
    array[:] = 7
    del array
    assert pool.take(100).data_ptr() == start
    assert len(pool.take(1000)) >= 1000


def test_a_pool_of_one_size_needs_as_many_pieces_as_are_held():
    pool, held, seen = Pool(), [], set()
    for i in range(20):
        held = [*held[-1:], pool.take(1 << 20)]
        held[-1].fill_(i)
        assert [int(piece[5]) for piece in held] == list(range(max(0, i - 1), i + 1))
        seen.add(held[-1].data_ptr())
    assert len(seen) <= 3
