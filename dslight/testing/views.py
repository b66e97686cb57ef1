"""What a view policy promises: as many views as its grid says, in order, alike wherever they are made."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import torch

from dslight.data.views.policy import ViewPolicy
from dslight.types import Grid


class ViewPolicyContract:
    """The promises of :class:`~dslight.ViewPolicy`; subclass it and define :meth:`make`.

    Attributes:
        size: (height, width) of a view, or of a piece where images have sizes of their own.
        images: (height, width) of the images that it is tried with, beside one in the shape of each of its grids.
    """

    size: Grid = (16, 24)
    images: tuple[Grid, ...] = ((40, 60), (60, 40), (50, 50), (150, 60))

    def make(self) -> ViewPolicy:
        """A new policy."""
        raise NotImplementedError(f"{type(self).__name__}: define make(self), which returns the policy to test")

    def test_it_is_a_view_policy(self) -> None:
        policy = self.make()
        assert isinstance(policy, ViewPolicy), f"{type(policy).__name__} must subclass dslight.ViewPolicy"
        assert policy.grids(), "grids() names no grid; (0, 0) is no crops"

    def test_the_grid_is_one_that_it_names(self) -> None:
        policy = self.make()
        for shape in self._shapes(policy):
            grid = policy.choose(shape, self.size)
            assert tuple(grid) in map(tuple, policy.grids()), (
                f"choose gives {grid} to an image of {shape[0]} x {shape[1]}, which grids() does not name"
            )

    def test_an_image_becomes_the_views_of_its_grid(self) -> None:
        policy = self.make()
        for shape in self._shapes(policy):
            views, grid = policy(_picture(shape), self.size)
            assert tuple(grid) == tuple(policy.choose(shape, self.size)), "the views are not of the grid of choose()"
            pieces = policy.pieces(shape, self.size)
            count = pieces[0] * pieces[1] * (1 + grid[0] * grid[1]) * (1 + policy.fine**2)
            assert tuple(views.shape) == (count, 3, *self.size), (
                f"{tuple(views.shape)} for {count} views of {self.size}"
            )
            assert views.dtype == torch.uint8, f"views are {views.dtype}: the encoder normalises, leave them uint8"

    def test_crops_come_row_by_row(self) -> None:
        policy = self.make()
        if policy.native:
            return  # of an enlarged view, not of crops
        for rows, columns in filter(all, policy.grids()):
            views, (high, wide) = policy(_picture((rows * self.size[0], columns * self.size[1])), self.size)
            crops = views[1 : 1 + high * wide].float().mean((2, 3)).reshape(high, wide, 3)
            right, down = crops[..., 0].diff(dim=1), crops[..., 1].diff(dim=0)
            assert (right > 0).all() and (down > 0).all(), (  # noqa: PT018
                f"the crops of a grid of {high} rows and {wide} columns are not row by row, from the upper left"
            )

    def test_the_same_image_gives_the_same_views(self) -> None:
        policy, picture = self.make(), _picture(self.images[0])
        assert torch.equal(policy(picture, self.size)[0], policy(picture, self.size)[0]), "views differ by chance"

    def test_it_travels_to_data_workers(self) -> None:
        policy, picture = self.make(), _picture(self.images[0])
        again = pickle.loads(pickle.dumps(policy))
        assert torch.equal(again(picture, self.size)[0], policy(picture, self.size)[0]), "a copy makes other views"
        assert list(again.grids()) == list(policy.grids()), "a copy has other grids"

    def _shapes(self, policy: ViewPolicy) -> Iterator[Grid]:
        yield from self.images
        yield from ((max(rows, 1) * self.size[0], max(columns, 1) * self.size[1]) for rows, columns in policy.grids())


def _picture(shape: Grid) -> np.ndarray:
    """Redder to the right and greener downwards."""
    high, wide = np.meshgrid(np.linspace(0, 255, shape[0]), np.linspace(0, 255, shape[1]), indexing="ij")
    return np.stack([wide, high, np.zeros(shape)], axis=-1).astype(np.uint8)
