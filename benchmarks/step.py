"""What does a training step compute that nobody reads? Ours, ours as it was, and transformers' own loop.

    OMP_NUM_THREADS=1 python -m benchmarks.step             # about 10 minutes on a core

`today` is what our step did in November 2026: logits of all positions, a mask of all pairs of a packed row's positions.

- *Head.* The decoder has the shape of SmolLM2-135M (width 576, 12 of its layers, vocabulary 49,152) and random weights.
  Its row has 640 positions, 576 of them filled with visual tokens, 60 supervised. A step is forward, loss, backward and
  fused AdamW over all weights.
- *Memory* of such a step at a vocabulary of 151,936: of a process of its own for each arm, its peak above what it held
  before (weights, states of the optimizer); of one row and of four, and where the decoder is frozen.
- *Packing.* One attention of that decoder, forward and backward, in a row of 8,192 positions of 16 documents.
- *Stacks.* DeepStack-L's step next to `low`'s: the toy of `train_step.py`.

Every round runs each arm once, in a new order, and ratios are taken within a round; seconds are of the processor.
Medians are printed, and at the end a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AttentionInterface

from benchmarks.train_step import Bench as Toy
from dslight.components import HFCausalLM, documents
from dslight.places import document_starts
from dslight.types import IGNORE, Batch, VisualTokens

ARMS = ("ours", "today", "transformers")
VISUAL, TEXT, SUPERVISED = 576, 64, 60
WIDE = 151_936


def decoder(vocabulary: int, layers: int = 12) -> HFCausalLM:
    """Of SmolLM2-135M's shape."""
    torch.manual_seed(0)
    return HFCausalLM(config={
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": layers, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    })  # fmt: skip


def full_logits_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss as it was: a boolean mask over logits of all positions."""
    targets = labels[:, 1:]
    supervised = targets != IGNORE
    total = F.cross_entropy(logits[:, :-1][supervised].float(), targets[supervised], reduction="sum")
    return total, supervised.sum(dtype=torch.int64)


@dataclass(frozen=True)
class Bench:
    """The arms, which share their weights, and a batch."""

    lm: HFCausalLM
    batch: Batch
    visual: VisualTokens
    optimizer: torch.optim.Optimizer | None

    @classmethod
    def make(cls, vocabulary: int, rows: int = 1, frozen: bool = False) -> Bench:
        """Random weights, tokens and slots; of a ``frozen`` decoder the slots alone train."""
        lm = decoder(vocabulary)
        ids = torch.randint(0, vocabulary, (rows, VISUAL + TEXT))
        visual, labels = torch.zeros_like(ids, dtype=torch.bool), torch.full_like(ids, IGNORE)
        visual[:, :VISUAL] = True
        labels[:, -SUPERVISED:] = ids[:, -SUPERVISED:]
        batch = Batch(ids, torch.ones_like(ids), visual, labels).located()
        slots = (torch.randn(1, rows * VISUAL, lm.width) * 0.02).requires_grad_()
        lm.requires_grad_(not frozen)
        optimizer = None if frozen else torch.optim.AdamW(lm.parameters(), lr=1e-6, fused=True)
        return cls(lm, batch, VisualTokens(slots), optimizer)

    def loss(self, arm: str) -> Tensor:
        """The mean."""
        batch, labels = self.batch, cast(Tensor, self.batch.labels)
        if arm == "ours":
            total, count = self.lm.loss(batch, self.visual)
        elif arm == "today":
            logits = self.lm(batch.input_ids, batch.attention_mask, batch.visual_mask, self.visual)
            total, count = full_logits_loss(logits, labels)
        else:
            embedded = self.lm.embedding(batch.input_ids)
            embedded = embedded.masked_scatter(batch.visual_mask[..., None], self.visual.base)  # as LLaVA does
            options: Any = {"inputs_embeds": embedded, "attention_mask": batch.attention_mask, "use_cache": False}
            return self.lm.model(**options, labels=labels).loss
        return total / count

    def step(self, arm: str) -> float:
        """Seconds of the processor for a step."""
        self.visual.slots.grad = None
        self.lm.zero_grad(set_to_none=True)
        began = time.process_time()
        self.loss(arm).backward()
        if self.optimizer is not None:
            self.optimizer.step()
        return time.process_time() - began


def rounds(arms: Sequence[str], run: Callable[[str], float], count: int) -> dict[str, list[float]]:
    """Seconds of each arm, round by round, after two of warming up."""
    order, seconds = random.Random(0), {arm: [] for arm in arms}
    for number in range(-2, count):
        for arm in order.sample(arms, len(arms)):
            took = run(arm)
            if number >= 0:
                seconds[arm].append(took)
    return seconds


def ratio(seconds: dict[str, list[float]], arm: str, to: str) -> float:
    """The median over rounds."""
    return statistics.median(a / b for a, b in zip(seconds[arm], seconds[to], strict=True))


def peak(run: Callable[[], object]) -> float:
    """MB that this process held at most while something ran, above what it held before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1000


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def alone(*arguments: str) -> float:
    """The number that this program prints in a process of its own."""
    return float(subprocess.check_output([sys.executable, "-m", "benchmarks.step", *arguments], text=True))


class Packed:
    """One attention over a packed row."""

    def __init__(self, length: int = 8192, count: int = 16) -> None:
        self.lm = decoder(64, layers=1)
        self.layer = next(m for m in self.lm.modules() if hasattr(m, "num_key_value_groups"))
        self.inputs = [torch.randn(1, heads, length, 64, requires_grad=True) for heads in (9, 3, 3)]
        self.segments = torch.arange(length)[None] // (length // count) + 1
        self.out: dict[str, Tensor] = {}

    def step(self, arm: str) -> float:
        """Seconds of the processor, mask and all."""
        began = time.process_time()
        attend: Any
        if arm == "ours":
            starts = document_starts(self.segments)
            mask, attend = documents.as_mask(starts, int(starts.diff().max())), documents.attention
        else:
            index = torch.arange(self.segments.shape[1])
            same = self.segments[:, :, None] == self.segments[:, None]
            mask, attend = (same & (index[:, None] >= index))[:, None], AttentionInterface()["sdpa"]
        out = attend(self.layer, *self.inputs, mask, scaling=0.125)[0]
        out.backward(torch.ones_like(out))
        took = time.process_time() - began
        self.out[arm] = out.detach()
        return took


def stacks(count: int) -> float:
    """DeepStack-L's step to `low`'s."""
    bench = Toy.make(argparse.Namespace(
        size="tiny", dtype="float32", device="cpu", batch=2, text=64, compile=None, checkpointing=False
    ))  # fmt: skip

    def step(arm: str) -> float:
        began = time.process_time()
        bench.step(arm)
        return time.process_time() - began

    return ratio(rounds(("low", "deepstack_l"), step, count), "deepstack_l", "low")


MEMORY = {"trained, one row": (1, False), "trained, four rows": (4, False), "frozen, one row": (1, True)}


def one_peak(of: str, arm: str) -> float:
    """MB."""
    if of == "packing":
        packed = Packed()
        return peak(lambda: packed.step(arm))
    rows, frozen = MEMORY[of]
    bench = Bench.make(WIDE, rows, frozen)
    bench.step(arm)
    return peak(lambda: bench.step(arm))


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("head", "memory", "packing", "stacks"), help="default: all")
    parser.add_argument("--peak", nargs=2, metavar=("OF", "ARM"), help="print one peak, and nothing else")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        print(one_peak(*args.peak))
        return
    found: dict[str, float] = {}

    def wanted(name: str) -> bool:
        return args.only in (None, name)

    def row(what: str, values: dict[str, float], form: str) -> None:
        print(f"| {what} | " + " | ".join(format(values[arm], form) if arm in values else "-" for arm in ARMS) + " |")

    print(
        f"CPU, one thread; torch {torch.__version__}, transformers {transformers.__version__}; {args.rounds} rounds\n"
    )
    print(f"| | {' | '.join(ARMS)} |\n| --- | ---: | ---: | ---: |")
    if wanted("memory"):
        peaks = {of: {arm: alone("--peak", of, arm) for arm in ARMS} for of in MEMORY}
        for of, values in peaks.items():
            row(f"peak of a step, {of}, MB", values, ".0f")
        found |= {
            "memory_to_today": peaks["trained, four rows"]["ours"] / peaks["trained, four rows"]["today"],
            "memory_to_today_one_row": peaks["trained, one row"]["ours"] / peaks["trained, one row"]["today"],
            "memory_to_today_frozen": peaks["frozen, one row"]["ours"] / peaks["frozen, one row"]["today"],
        }
    if wanted("head"):
        seconds = rounds(ARMS, Bench.make(49_152).step, args.rounds)
        row("step, s", {arm: statistics.median(seconds[arm]) for arm in ARMS}, ".2f")
        found |= {f"step_to_{arm}": ratio(seconds, "ours", arm) for arm in ARMS[1:]}
    if wanted("packing"):
        arms, packed = ARMS[:2], Packed()
        seconds = rounds(arms, packed.step, max(1, args.rounds // 3))
        torch.testing.assert_close(packed.out["ours"], packed.out["today"], atol=1e-5, rtol=1e-5)
        row("packed attention, s", {arm: statistics.median(seconds[arm]) for arm in arms}, ".2f")
        row("peak of packed attention, MB", {arm: alone("--peak", "packing", arm) for arm in arms}, ".0f")
        found["packing_to_today"] = ratio(seconds, "ours", "today")
    if wanted("stacks"):
        found["deepstack_l_to_low"] = stacks(2 * args.rounds)
    print("\n" + json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
