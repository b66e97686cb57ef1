"""Dense labels: views with a class for every patch, for fitting a vision encoder alone.

The record carries ``labels_grid``, a small map of classes over its image; a patch gets the class under its centre, in
the base view and in each crop alike. The plan, the loader and the resuming are those of the conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from dslight.data.datamodule import (
    Source,
    ValSource,
    make_plan,
    open_shards,
    open_train,
    rank_and_world,
    source_of,
    train_loader,
)
from dslight.data.loader import EvalLoader, TrainLoader
from dslight.data.records import OnBad, TrainRecords, read_sample
from dslight.data.sample import BadSample, Pixels, Sample, decode_image
from dslight.data.shards import Check, ShardReader
from dslight.data.transport.batch_buffer import joined
from dslight.data.transport.workers import Workers
from dslight.data.views.policy import ViewPolicy
from dslight.types import DenseBatch, Grid, Views
from dslight.written import Written


@dataclass(frozen=True)
class DenseRow:
    """One image before batching: ``pixels`` uint8 ``[1 + rows * cols, 3, h, w]``, ``targets`` int64 ``[1 + rows * cols,
    P]``."""

    key: str
    pixels: Tensor
    grid: Grid
    targets: Tensor
    valid: bool = True


def patch_labels(labels: np.ndarray, patches: Grid, grid: Grid) -> np.ndarray:
    """The class under the centre of every patch, int64 ``[1 + rows * cols, P]``: base view, then crops row by row.

    Args:
        labels: int64 ``[label rows, label cols]`` over the whole image.
        patches: (rows, columns) of patches of a view.
        grid: (rows, columns) of crops, ``(0, 0)`` for none.
    """

    def under(rows: int, cols: int) -> np.ndarray:
        y = (np.arange(rows) + 0.5) / rows * labels.shape[0]
        x = (np.arange(cols) + 0.5) / cols * labels.shape[1]
        return labels[y.astype(int)][:, x.astype(int)]

    (h, w), (rows, cols) = patches, grid
    base = under(h, w).reshape(1, h * w)
    crops = under(rows * h, cols * w).reshape(rows, h, cols, w).swapaxes(1, 2).reshape(rows * cols, h * w)
    return np.concatenate([base, crops])


@dataclass(frozen=True)
class DenseRowMaker:
    """A sample to a row. Travels to the data workers."""

    views: ViewPolicy
    image_size: tuple[int, int]
    patches: Grid
    pixels: Pixels = "fast"

    def __call__(self, sample: Sample, valid: bool = True) -> DenseRow:
        """Decode, cut into views, label the patches."""
        if sample.labels_grid is None or len(sample.images) != 1:
            raise BadSample(
                f"{len(sample.images)} images and labels_grid {sample.labels_grid}; dense labels need one of each"
            )
        image = decode_image(sample.pictures[0], pixels=self.pixels)
        pixels, grid = self.views(image, self.image_size, self.pixels)
        targets = torch.from_numpy(patch_labels(sample.labels_grid, self.patches, grid))
        return DenseRow(sample.key, pixels, grid, targets, valid)


def collate_dense(rows: Sequence[DenseRow]) -> DenseBatch:
    """Pack rows into a batch."""
    views = Views(joined([row.pixels for row in rows]), [row.grid for row in rows])
    targets = torch.cat([row.targets for row in rows])
    return DenseBatch(views, targets, [row.key for row in rows], torch.tensor([row.valid for row in rows]))


class DenseRecords(torch.utils.data.Dataset[DenseRow]):
    """The records of one validation source; an index is (record, whether it is no padding)."""

    def __init__(self, reader: ShardReader, make: DenseRowMaker) -> None:
        self.reader, self.make = reader, make

    def __getitem__(self, index: tuple[int, bool]) -> DenseRow:
        row, valid = index
        return self.make(read_sample(self.reader, row), valid)


class DenseLabelData(LightningDataModule, Written):
    """Batches of :class:`DenseBatch` from shards whose records have a ``labels_grid``.

    Args: as in :class:`dslight.data.datamodule.ShardData`; ``limit`` of a validation source counts images. ``views``
    must show the whole image and nothing else: no padding, no fine crops.

    Example:
        >>> data = dslight.DenseLabelData(["data/digits/train"], dslight.GridViews(2, 2), global_batch_size=4)
        >>> data.connect(encoder.image_size, encoder.grid)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader())).targets.shape  # five views an image, 16 patches a view
        torch.Size([20, 16])
    """

    def __init__(
        self,
        train: list[Source | str],
        views: ViewPolicy,
        global_batch_size: int,
        val: dict[str, ValSource] | None = None,
        pixels: Pixels = "fast",
        micro_batch_size: int | None = None,
        val_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        on_bad: OnBad = "raise",
        check: Check = "size",
    ) -> None:
        super().__init__()
        if views.native:
            raise ValueError(f"data.views: {type(views).__name__} has a size for each image; labels need views of one")
        if views.fine:
            name = type(views).__name__
            raise ValueError(f"data.views: {name} makes fine crops, which have no labels; take AspectGridViews")
        if views.fit != "squash":
            raise ValueError(f"data.views.fit: {views.fit}; labels lie over the whole view, so it must be squash")
        self.sources = [source_of(Source, source, f"data.train[{i}]") for i, source in enumerate(train)]
        self.val_sources = {
            name: source_of(ValSource, source, f"data.val.{name}") for name, source in (val or {}).items()
        }
        self.views, self.global_batch_size, self.micro_batch_size = views, global_batch_size, micro_batch_size
        self.val_batch_size, self.workers, self.seed = val_batch_size, Workers(num_workers), seed
        self.on_bad: OnBad = on_bad
        self.check: Check = check
        self.pixels: Pixels = pixels
        self._make: DenseRowMaker | None = None

    def connect(self, image_size: tuple[int, int], patches: Grid) -> None:
        """Take from the encoder the (height, width) of its views and its (rows, columns) of patches; called before
        ``setup``."""
        self._make = DenseRowMaker(self.views, image_size, patches, self.pixels)

    @property
    def make(self) -> DenseRowMaker:
        """What makes rows of samples; there once the encoder is connected."""
        if self._make is None:
            raise RuntimeError("DenseLabelData.connect(image_size, patches) must be called before the data is used")
        return self._make

    def setup(self, stage: str) -> None:
        """Open the shards; only a fit needs those that are trained on."""
        if stage == "fit":
            self._train_readers = open_train(self.sources, self.check)
            self._plan = make_plan(self._train_readers, self.sources, self.seed, self.global_batch_size)
        self._val_readers = {
            name: open_shards(f"data.val.{name}.root", source.root, self.check)
            for name, source in self.val_sources.items()
        }

    def train_dataloader(self) -> TrainLoader[DenseRow]:
        """The resumable loader of this rank."""
        dataset = TrainRecords(self._train_readers, self._plan, self.make, self.on_bad)
        return train_loader(dataset, self._plan, collate_dense, self.micro_batch_size, self.workers, self.trainer)

    def val_dataloader(self) -> list[EvalLoader[DenseRow]]:
        """One loader per validation source."""
        rank, world = rank_and_world(self.trainer)
        loaders = []
        for name, reader in self._val_readers.items():
            limit = self.val_sources[name].limit
            items = len(reader) if limit is None else min(limit, len(reader))
            dataset = DenseRecords(reader, self.make)
            loaders.append(EvalLoader(dataset, items, collate_dense, rank, world, self.val_batch_size, self.workers))
        return loaders
