"""One class, or function, of every kind that a recipe names beside the parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import dslight
from dslight.data.sample import parse_sample
from dslight.data.shards import ShardReader
from dslight.metrics import ExactMatch


class Dialogue(dslight.Template):
    """Answers behind a word.

    Args:
        word: which.
    """

    def __init__(self, word: str = " A :") -> None:
        self.word = word

    def pieces(self, turns: Sequence[Any], tokenizer: Any, images: bool) -> Iterator[dslight.Piece]:
        """See there."""
        for turn in turns:
            if turn.role == "gpt":
                yield dslight.Piece(f" {turn.text}{tokenizer.eos_token}", turn.learnt, weight=turn.weight)
            else:
                yield from [*self.with_images(turn.text, images), dslight.Piece(self.word)]

    def stop(self, tokenizer: Any) -> str:
        """See there."""
        return tokenizer.eos_token


class Above(dslight.ViewPolicy):
    """One crop above the other.

    Args:
        rows: how many.
    """

    def __init__(self, rows: int = 2) -> None:
        super().__init__()
        self.rows = rows

    def grids(self) -> list[tuple[int, int]]:
        """See there."""
        return [(self.rows, 2)]

    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """See there."""
        return (self.rows, 2)


class ScaledVLM(dslight.VLM):
    """Its loss is scaled."""

    def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = scale

    def loss(self, batch: Any, visual: Any = None) -> Any:
        """See there."""
        loss, count = super().loss(batch, visual)
        return loss * self.scale, count


class ShortData(dslight.Data):
    """The library's data, cut short.

    Args:
        shorter: by so many positions.
    """

    def __init__(self, shorter: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_length -= shorter


class OwnData(LightningDataModule):
    """Rows held in memory, with nothing of the library's data but the model's own processor.

    Args:
        root: a folder of shards.
    """

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root

    def train_dataloader(self) -> Any:
        """See there."""
        processor, reader = self.trainer.lightning_module.processor, ShardReader(self.root)  # type: ignore[union-attr]
        rows = [processor.rows.train(parse_sample(str(i), reader.read(i))) for i in range(8)]
        return DataLoader(rows, 4, collate_fn=processor.collate)  # type: ignore[arg-type]


def halving(optimizer: Any, every: int = 10) -> LambdaLR:
    """Half of the learning rate every so many steps."""
    return LambdaLR(optimizer, lambda step: 0.5 ** (step // every))


class PlainSGD(torch.optim.SGD):
    """An optimizer."""


class Lenient(ExactMatch):
    """A metric."""
