"""Queries that look into windows of the map: fewer tokens that stay in their places (Granite 4 Vision).

A map is cut into windows; in each, a small Q-Former answers as many queries as tokens are wanted. A query begins as
what the map shows at its place, so several levels may ask the same map from different corners of every block: its
"spatial" stacks. Decided here: the Q-Former is transformers' own, as in the original, and weights go by the original's
names, so that its checkpoints' tensors fit as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dslight.components.projector import MapProjector, blocks, shrunk
from dslight.types import Grid

QuerySource = Literal["area", "top_left", "top_right", "bottom_left", "bottom_right"]
CORNERS = {"top_left": (0, 0), "top_right": (0, 1), "bottom_left": (1, 0), "bottom_right": (1, 1)}


class WindowQFormerProjector(MapProjector):
    """A Q-Former in every window: ``[M, h, w, C]`` -> ``[M, h * queries / window, w * queries / window, D]``.

    A token of the output shows its window and no other (all of it: places inside a window are kept by its query).

    Args:
        in_widths: C of each level.
        out_width: D.
        window: the side of a window in tokens of the map.
        queries: the side of what comes out of a window. 4 of 8 is Granite's ``downsample_rate: 4/8``.
        queries_from: what a query begins as: the mean of the cells that it covers (``area``), or one corner of each
            2 x 2 block (``top_left``, ...; for ``window`` = 2 ``queries``). One for all levels, or a list with one for
            each level, with ``per_level``.
        heads: of the attention; ``None``: C / 64, as in Granite.
        depth: the number of Q-Former layers.
        hidden: the width inside their MLPs.
        dropout: on what the Q-Former reads and gives, and inside it.
        per_level: see :class:`MapProjector`.

    Example:
        >>> small = {"window": 2, "queries": 1, "heads": 2, "hidden": 16}
        >>> dslight.WindowQFormerProjector([16], 32, **small).out_grid((4, 4))
        (2, 2)
    """

    local = True

    def __init__(
        self,
        in_widths: Sequence[int],
        out_width: int,
        window: int = 8,
        queries: int = 4,
        queries_from: QuerySource | list[QuerySource] = "area",
        heads: int | None = None,
        depth: int = 1,
        hidden: int = 3072,
        dropout: float = 0.1,
        per_level: bool = False,
    ) -> None:
        if not 1 <= queries <= window:
            raise ValueError(
                f"queries: between 1 x 1 and the window's {window} x {window} come out of it, got {queries}"
            )
        if depth < 1:
            raise ValueError(f"depth: queries read the window in at least 1 layer, got {depth}")
        named = queries_from if isinstance(queries_from, list) else [queries_from] * len(in_widths)
        self.sources: Sequence[str] = named
        if len(self.sources) != len(in_widths):
            raise ValueError(f"queries_from: {len(self.sources)} named; there are {len(in_widths)} levels")
        if set(self.sources) - {"area"} and window != 2 * queries:
            raise ValueError(
                f"queries_from: corners are those of 2 x 2 blocks; with window {window}, set queries: {window // 2}"
            )
        if len(set(self.sources)) > 1 and not per_level:
            raise self._unshared(f"queries from {', '.join(dict.fromkeys(self.sources))}")
        self.window, self.queries, self.heads, self.depth = window, queries, heads, depth
        self.hidden, self.dropout = hidden, dropout
        super().__init__(in_widths, out_width, per_level)

    def make(self, level: int) -> nn.Module:
        """See :meth:`MapProjector.make`."""
        from transformers import Blip2QFormerConfig

        width = self.in_widths[level]
        heads = self.heads or max(1, width // 64)
        if width % heads:
            raise ValueError(f"heads: a width of {width} does not divide by {heads}")
        config = Blip2QFormerConfig(
            hidden_size=width,
            encoder_hidden_size=width,
            num_attention_heads=heads,
            num_hidden_layers=self.depth,
            intermediate_size=self.hidden,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            cross_attention_frequency=1,
        )
        return WindowQFormer(config, self.out_width, self.window, self.queries, self.sources[level])

    def units(self, net: nn.Module) -> Iterable[nn.Module]:
        """The Q-Former's layers."""
        return net.qformer.encoder.layer  # type: ignore[return-value,union-attr]

    def out_grid(self, grid: Grid) -> Grid:
        """See :meth:`Projector.out_grid`."""
        rows, cols = shrunk(grid, self.window, "window")
        return rows * self.queries, cols * self.queries


class WindowQFormer(nn.Module):
    """The net of one level; see :class:`WindowQFormerProjector`. Names of weights are transformers'
    ``Granite4VisionWindowQFormerDownsampler``'s.
    """

    def __init__(self, config: object, out_width: int, window: int, queries: int, source: str) -> None:
        from transformers import Blip2QFormerModel

        super().__init__()
        width: int = config.hidden_size  # type: ignore[attr-defined]
        self.window, self.queries, self.source = window, queries, source
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Parameter(torch.empty(1, queries**2, width))
        self.image_positions = nn.Parameter(torch.empty(1, window**2, width))
        for parameter in (self.query, self.image_positions):
            nn.init.normal_(parameter, std=width**-0.5)
        self.qformer = Blip2QFormerModel(config)  # type: ignore[arg-type]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)  # type: ignore[attr-defined]
        self.out_linear = nn.Linear(width, out_width)

    def forward(self, maps: Tensor) -> Tensor:
        """From ``[M, h, w, C]`` to ``[M, h * queries / window, w * queries / window, D]``."""
        maps = self.norm(maps)
        seen, asked = blocks(maps, self.window), blocks(self._asked(maps), self.queries)
        windows = seen.shape[:3]  # maps, rows and columns of windows
        answers = self.qformer(
            query_embeds=self.query + asked.flatten(3, 4).flatten(0, 2),
            encoder_hidden_states=self.dropout(seen.flatten(3, 4).flatten(0, 2) + self.image_positions),
        ).last_hidden_state
        answers = answers.unflatten(1, (self.queries, self.queries)).unflatten(0, windows)
        return self.out_linear(self.dropout(answers.transpose(2, 3).flatten(3, 4).flatten(1, 2)))

    def _asked(self, maps: Tensor) -> Tensor:
        """What each query begins as, ``[M, h * queries / window, w * queries / window, C]``."""
        if self.source != "area":
            return blocks(maps, 2)[:, :, :, *CORNERS[self.source]]
        rows, cols = (side // self.window * self.queries for side in maps.shape[1:3])
        return F.adaptive_avg_pool2d(maps.movedim(-1, 1), (rows, cols)).movedim(1, -1)
