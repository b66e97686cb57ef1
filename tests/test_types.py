"""Where base views, crops and fine crops lie among the packed views."""

import pytest
import torch

from dslight.types import Batch, Views

GRIDS = [(1, 2), (0, 0), (2, 1)]


def labelled(fine: int) -> tuple[Views, list[str]]:
    """Views of three images, and a name of each: image, then tile (0: base), then fine crop."""
    names = []
    for image, (rows, cols) in enumerate(GRIDS):
        tiles = range(1 + rows * cols)
        names += [f"{image}{tile}" for tile in tiles]
        names += [f"{image}{tile}{part}" for tile in tiles for part in range(fine * fine)]
    pixels = torch.arange(len(names)).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return Views(pixels, GRIDS, fine, [(5, 9), (4, 4), (9, 5)]), names


@pytest.mark.parametrize("fine", [0, 2, 3])
def test_every_index_finds_its_views(fine):
    views, names = labelled(fine)

    def named(index: torch.Tensor) -> list[str]:
        return [names[i] for i in index.tolist()]

    assert named(views.base_index) == ["00", "10", "20"]
    assert named(views.crop_index) == ["01", "02", "21", "22"]
    assert named(views.tile_index) == ["00", "01", "02", "10", "20", "21", "22"]
    assert named(views.fine_index) == [tile + str(n) for tile in named(views.tile_index) for n in range(fine**2)]
    assert views.per_image == [3 * (1 + fine**2), 1 + fine**2, 3 * (1 + fine**2)]
    assert len(views) == 3


def test_bases_and_crops_are_the_pixels_at_their_indices():
    views, names = labelled(2)
    assert views.base()[:, 0, 0, 0].tolist() == [names.index(name) for name in ("00", "10", "20")]
    assert views.crops()[:, 0, 0, 0].tolist() == [names.index(name) for name in ("01", "02", "21", "22")]


def test_views_on_another_device_keep_grids_fine_crops_and_sizes():
    views, _ = labelled(2)
    moved = views.to("meta")
    assert moved.pixels.device.type == moved.fine_index.device.type == "meta"
    assert (moved.grids, moved.fine, moved.sizes) == (views.grids, views.fine, views.sizes)


def test_views_that_are_too_few_or_sizes_that_do_not_match_are_refused():
    pixels = torch.zeros(14, 3, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"14 views, but the grids \[\(1, 2\)\] with 2 x 2 fine crops each need 15"):
        Views(pixels, [(1, 2)], fine=2)
    with pytest.raises(ValueError, match="2 image sizes for 1 images"):
        Views(pixels[:3], [(1, 2)], sizes=[(1, 1), (2, 2)])


def test_what_goes_through_a_batch_by_its_fields_can_make_it_again():
    """As FSDP does, which gives computing its type."""
    from torch.distributed.utils import _apply_to_tensors

    ids = torch.tensor([[3, 4, 5]])
    made = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool), ids).located()
    again = _apply_to_tensors(lambda x: x, made)
    assert again.places.supervised.tolist() == made.places.supervised.tolist()
    assert again.input_ids.tolist() == ids.tolist()
