"""Views that are made side by side are a batch without a copy, and where they are not, nothing else changes."""

import pytest
import torch

from dslight.data.arena import Arena, empty, joined


def filled(*counts: int) -> list[torch.Tensor]:
    parts = [empty((count, 3, 2, 2)) for count in counts]
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
    first, second = (torch.from_numpy(half.reshape(1, 3, 2, 2)) for half in (whole.numpy()[:12], whole.numpy()[12:]))
    assert first.data_ptr() + first.nbytes == second.data_ptr()
    assert torch.equal(joined([first, second]), whole.view(2, 3, 2, 2))


def test_outside_of_a_batch_memory_is_torchs():
    with Arena(memory(200)) as arena:
        pass
    assert len(filled(1)) == 1
    assert arena.wanted == 0
