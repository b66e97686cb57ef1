"""One small corpus per metric, as rows of ``update`` arguments, and one rank of a distributed run over it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from dslight.metrics.answers import ANLS, ExactMatch, MMMUOpenAccuracy, RelaxedAccuracy, SubstringAccuracy
from dslight.metrics.base import TextMetric
from dslight.metrics.multiple_choice import MultipleChoiceAccuracy
from dslight.metrics.vqa import VQAAccuracy
from dslight.metrics.yes_no import MMEScore, POPEMetric

Row = dict[str, Any]
OPTIONS = {"A": "a cat", "B": "a dog", "C": "two birds"}


def row(pred: str, target: list[str], **more: Any) -> Row:
    return {"preds": pred, "target": target, **more}


CASES: dict[str, tuple[Callable[[], TextMetric], list[Row]]] = {
    "vqa": (
        lambda: VQAAccuracy(types=("yes/no", "number")),
        [
            row("yes", ["yes"] * 10, types="yes/no"),
            row("Two", ["2"] * 2 + ["3"] * 8, types="number"),
            row("a red car", ["red car"] * 3 + ["car"] * 7, types=""),
            row("no", ["yes"] * 9 + ["no"], types="yes/no"),
            row("blue", ["blue", "teal"], types=""),
        ],
    ),
    "anls": (
        lambda: ANLS(types=("form", "table")),
        [
            row("ab", ["ac"], types="form"),
            row("invoice 12", ["Invoice 13", "bill"], types="form"),
            row("x", ["something"], types="table"),
            row("kitten", ["sitting"], types="table"),
            row("1,000", ["1000"], types="table"),
        ],
    ),
    "exact": (
        lambda: ExactMatch("lmms_eval", types=("binary", "open")),
        [
            row("Yes.", ["yes"], types="binary"),
            row("t-shirt", ["tshirt"], types="open"),
            row("no", ["yes"], types="binary"),
            row("cup", ["cup"], types="open"),
            row("cup", ["mug"], types="open"),
        ],
    ),
    "relaxed": (
        RelaxedAccuracy,
        [
            row("104", ["100"], types="human"),
            row("106", ["100"], types="human"),
            row("50%", ["0.5"], types="augmented"),
            row("Blue", ["blue"], types="augmented"),
            row("red", ["blue"], types="augmented"),
        ],
    ),
    "open": (
        MMMUOpenAccuracy,
        [
            row("The answer is 3.14", ["3.14"]),
            row("so it is osmosis", ["Osmosis"]),
            row("no idea", ["5"]),
            row("x = 2", ["3"]),
            row("1,000", ["1000"]),
        ],
    ),
    "substring": (
        SubstringAccuracy,
        [
            row("the sign says STOP", ["stop"], types=""),
            row("a b", ["ab"], types="HME100k"),
            row("a b", ["ab"], types=""),
            row("5", ["15"], types=""),
            row("15", ["5"], types=""),
        ],
    ),
    "choice": (
        lambda: MultipleChoiceAccuracy("mmmu", types=("art", "science")),
        [
            row("(B)", ["B"], options=OPTIONS, types="art"),
            row("b)", ["B"], options=OPTIONS, types="art"),
            row("A", ["C"], options=OPTIONS, types="science"),
            row("it must be two birds for sure now", ["C"], options=OPTIONS, types="science"),
            row("4.00", ["4"], options={}, types="science"),
        ],
    ),
    "circular": (
        lambda: MultipleChoiceAccuracy("mmbench", circular_groups=3),
        [
            row("A", ["A"], options=OPTIONS, groups=0),
            row("B", ["B"], options=OPTIONS, groups=0),
            row("C", ["C"], options=OPTIONS, groups=2),
            row("none", ["A"], options=OPTIONS, groups=2),
            row("C", ["C"], options=OPTIONS, groups=0),
        ],
    ),
    "pope": (
        POPEMetric,
        [
            row("Yes", ["yes"], types="random"),
            row("No", ["yes"], types="random"),
            row("no", ["no"], types="popular"),
            row("Yes, a dog", ["yes"], types="popular"),
            row("It is", ["no"], types="random"),
        ],
    ),
    "mme": (
        lambda: MMEScore({"count": 2, "OCR": 1, "code_reasoning": 1}),
        [
            row("Yes", ["yes"], types="count", image_index=0),
            row("No", ["no"], types="count", image_index=0),
            row("Yes", ["yes"], types="count", image_index=1),
            row("who knows", ["no"], types="count", image_index=1),
            row("no", ["yes"], types="OCR", image_index=0),
        ],
    ),
}


def feed(metric: TextMetric, rows: list[Row], batch: int = 2) -> TextMetric:
    """Update ``metric`` with ``rows``, ``batch`` at a time."""
    for start in range(0, len(rows), batch):
        chunk = rows[start : start + batch]
        metric.update(**{name: [one[name] for one in chunk] for name in chunk[0]})
    return metric


def values(metric: TextMetric) -> dict[str, float]:
    return {key: value.item() for key, value in metric.compute().items()}


def uneven(rows: list[Row], rank: int, world: int) -> list[Row]:
    """The first rank has one row, the last has what is left."""
    return rows[rank:] if rank == world - 1 else rows[rank : rank + 1]


def one_rank_empty(rows: list[Row], rank: int, world: int) -> list[Row]:
    """Rank 0 has no data at all."""
    return [] if rank == 0 else rows[rank - 1 :: world - 1]


def padded(rows: list[Row], rank: int, world: int) -> list[Row]:
    """What a distributed sampler does: repeats from the start until all ranks have as many; repeats are not valid."""
    length = -(-len(rows) // world) * world
    filled = [one | {"valid": True} for one in rows]
    filled += [filled[i % len(rows)] | {"valid": False} for i in range(length - len(rows))]
    return filled[rank::world]


SHARES = (uneven, one_rank_empty, padded)


WORLDS = (3, 2)


def run(rank: int, world: int, store: str) -> dict[str, dict[str, dict[str, float]]]:
    """What every metric computes on this rank, by share and metric."""
    dist.init_process_group(
        "gloo", init_method=f"file://{store}{world}", rank=rank, world_size=world, timeout=timedelta(seconds=200)
    )
    results = {
        share.__name__: {name: values(feed(make(), share(rows, rank, world))) for name, (make, rows) in CASES.items()}
        for share in SHARES
    }
    dist.destroy_process_group()
    return results


def write(rank: int, store: str) -> None:
    """Print, as JSON, what every metric computes on this rank in groups of 2 and of 3 processes, under every way to
    share out the rows (see ``SHARES``).
    """
    print(json.dumps({world: run(rank, world, store) for world in WORLDS if rank < world}))
