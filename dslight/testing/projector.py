"""What a projector promises: shapes, gradients, and that a map's tokens are its own."""

from __future__ import annotations

import torch
from torch import Tensor

from dslight.components.projector import Projector
from dslight.types import Grid


class ProjectorContract:
    """The promises of :class:`~dslight.components.Projector`; subclass it and define :meth:`make`.

    Attributes:
        in_widths: C of each level that it is tried with.
        out_width: D.
        grid: (rows, columns) of the maps.
        atol: largest difference between values that ought to be equal, in float32.
    """

    in_widths: tuple[int, ...] = (16, 16, 16)
    out_width = 24
    grid: Grid = (4, 6)
    atol = 1e-5

    def make(self) -> Projector:
        """A new projector for ``in_widths`` and ``out_width``."""
        raise NotImplementedError(f"{type(self).__name__}: define make(self), which returns the projector to test")

    def test_it_is_a_projector_of_these_widths(self) -> None:
        projector = self.make()
        assert isinstance(projector, Projector), (
            f"{type(projector).__name__} must subclass dslight.components.Projector"
        )
        assert (projector.in_widths, projector.out_width) == (self.in_widths, self.out_width), (
            "call super().__init__(in_widths, out_width) with what the stacking hands over"
        )

    def test_maps_become_the_tokens_that_out_grid_promises(self) -> None:
        projector = self.make().eval()
        tokens = projector(self._maps(3))
        expected = (len(self.in_widths), 3, *projector.out_grid(self.grid), self.out_width)
        assert tuple(tokens.shape) == expected, (
            f"forward gives {tuple(tokens.shape)}, out_grid, levels and out_width promise {expected}"
        )
        assert tokens.isfinite().all(), "forward gives numbers that are not finite"

    def test_maps_do_not_influence_each_other(self) -> None:
        projector, maps = self.make().eval(), self._maps(3)
        together = projector(maps)
        alone = torch.cat([projector([level[i : i + 1] for level in maps]) for i in range(3)], dim=1)
        assert torch.allclose(together, alone, atol=self.atol), (
            "a map's tokens depend on the other maps of the batch: work within each map, and normalise within it"
        )

    def test_a_level_has_its_own_tokens(self) -> None:
        projector, maps = self.make().eval(), self._maps(1)
        before = projector(maps)
        for level in range(len(maps)):
            changed = [m + 1.0 if index == level else m for index, m in enumerate(maps)]
            moved = (projector(changed) - before).abs().amax(dim=(1, 2, 3, 4)) > self.atol
            others = [index for index in range(len(maps)) if moved[index] and index != level]
            assert not others, f"level {level} changes the tokens of level {others[0]}: each level is projected alone"

    def test_a_token_shows_its_place(self) -> None:
        projector = self.make().eval()
        if not projector.aligned:
            return
        rows, columns = projector.out_grid(self.grid)
        maps = self._maps(1)
        before = projector(maps)[0, 0]
        height, width = self.grid[0] // rows, self.grid[1] // columns
        for row, column in ((0, 0), (rows - 1, columns - 1)):
            after = [level.clone() for level in maps]
            spot = after[0][:, row * height : (row + 1) * height, column * width : (column + 1) * width]
            spot.copy_(torch.randn(spot.shape, generator=torch.Generator().manual_seed(7)) * 3)
            change = (projector(after)[0, 0] - before).abs().sum(-1).flatten()
            most = int(change.argmax())
            assert most == row * columns + column, (
                f"changing the map where token ({row}, {column}) lies changes token {divmod(most, columns)} most: keep "
                f"rows and columns, or set aligned = False"
            )

    def test_gradients_reach_every_parameter_and_the_maps(self) -> None:
        projector = self.make().requires_grad_(True)
        maps = [level.requires_grad_(True) for level in self._maps(2)]
        tokens = projector(maps)
        (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
        idle = [name for name, parameter in projector.named_parameters() if parameter.grad is None]
        assert not idle, f"no gradient reaches {', '.join(idle[:8])}: what forward does not use cannot be trained"
        if any(level.grad is None for level in maps):
            raise AssertionError("no gradient reaches the maps, so the encoder cannot be trained: do not detach")

    def test_bfloat16_goes_through(self) -> None:
        tokens = self.make().eval().to(torch.bfloat16)([level.to(torch.bfloat16) for level in self._maps(1)])
        assert tokens.dtype == torch.bfloat16, f"in bfloat16 the tokens are {tokens.dtype}"

    def test_it_is_built_without_memory_on_the_meta_device(self) -> None:
        with torch.device("meta"):
            shadow = self.make()
        real = [n for n, t in [*shadow.named_parameters(), *shadow.named_buffers()] if not t.is_meta]
        assert not real, f"under torch.device('meta') {', '.join(real[:8])} have memory: name no device in __init__"

    def _maps(self, count: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(count, *self.grid, width, generator=generator) for width in self.in_widths]
