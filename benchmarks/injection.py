"""What do the stacks cost the language model? Forward and backward of a decoder at equal context, with and without.

    OMP_NUM_THREADS=1 python benchmarks/injection.py  # a CPU-sized Llama: width 512, 8 layers, 640 positions
    python benchmarks/injection.py --device cuda --width 4096 --layers 32 --dtype bfloat16

Four arms, all with the base tokens in the sequence: no stacks; the same once more, which shows what the machine's noise
alone makes of a ratio; four stacks through dslight's injector; the same four stacks in the way of Qwen3-VL's decoder
(clone the hidden states, read and write them at a boolean mask). The vision side is left out: it costs all the same.

Each round runs every arm once, in a new order, so that a drifting machine drifts for all; a ratio is taken within a
round. Quote the median, with its 95% interval (from the ranks, so without assuming a distribution). Peak memory is that
of the allocator on a GPU, and on a CPU that of a process of its own for each arm (its resident set).
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dslight.components import HFCausalLM
from dslight.nn.injector import inject
from dslight.nn.loss import next_token_loss

SITES = (1, 2, 3, 4)
NO_STACKS, ARMS = "no stacks", ("no stacks", "no stacks again", "dslight", "index_put")
WARM_UP = 2


def index_put(layers: Sequence[nn.Module], mask: Tensor, stacks: Tensor) -> AbstractContextManager[object]:
    """The rival: clone, add at the mask, write back."""
    hooks = ExitStack()

    def adder(values: Tensor) -> Callable[..., object]:
        def add(module: object, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> object:
            hidden = args[0].clone()
            hidden[mask, :] = hidden[mask, :] + values
            return (hidden, *args[1:]), kwargs

        return add

    for site, values in zip(SITES, stacks, strict=True):
        hooks.callback(layers[site].register_forward_pre_hook(adder(values), with_kwargs=True).remove)
    return hooks


@dataclass(frozen=True)
class Bench:
    """A decoder and one batch."""

    lm: HFCausalLM
    ids: Tensor
    mask: Tensor
    slots: Tensor

    @classmethod
    def make(cls, args: argparse.Namespace) -> Bench:
        """Random weights, tokens and slots."""
        torch.manual_seed(0)
        config = {
            "model_type": "llama",
            "vocab_size": args.vocabulary,
            "hidden_size": args.width,
            "intermediate_size": args.width * 11 // 4,
            "num_hidden_layers": args.layers,
            "num_attention_heads": max(args.width // 64, 1),
            "num_key_value_heads": max(args.width // 64, 1),
        }
        lm = HFCausalLM(config=config, dtype=args.dtype).to(args.device)
        ids = torch.randint(0, args.vocabulary, (args.batch, args.visual + args.text), device=args.device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, 8 : 8 + args.visual] = True
        slots = torch.randn(1 + len(SITES), int(mask.sum()), args.width, device=args.device)
        return cls(lm, ids, mask, (slots * 0.02).to(getattr(torch, args.dtype)).requires_grad_())

    def step(self, arm: str) -> float:
        """Seconds of a forward and a backward pass."""
        self.lm.zero_grad(set_to_none=True)
        self.slots.grad = None
        ours = arm == "dslight"
        stacks, sites = (self.slots[1:], SITES) if ours else (self.slots[:0], ())
        base = inject(
            self.lm.layers, self.mask, stacks, sites, fill=self.slots[0], embedding=self.lm.embedding
        )  # fmt: skip
        rival = index_put(self.lm.layers, self.mask, self.slots[1:]) if arm == "index_put" else nullcontext()
        self._wait()
        began = time.perf_counter()
        with base, rival:
            loss, _ = next_token_loss(self.lm.logits(self.ids, torch.ones_like(self.ids)), self.ids)
        loss.backward()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.ids.is_cuda:
            torch.cuda.synchronize()

    def peak(self, arm: str) -> int:
        """Bytes at most, of a process that has run no other arm or on a GPU."""
        if self.ids.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(WARM_UP):
            self.step(arm)
        if self.ids.is_cuda:
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95% interval of the median: the order statistics that enclose it."""
    ordered, half = sorted(values), 0.98 * math.sqrt(len(values))
    last = len(ordered) - 1
    low, high = math.floor(len(ordered) / 2 - half), math.ceil(len(ordered) / 2 + half)
    return ordered[min(max(low, 0), last)], ordered[min(max(high, 0), last)]


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    sizes = {"width": 512, "layers": 8, "vocabulary": 32000, "text": 64, "visual": 576, "batch": 1, "rounds": 40}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--peak", choices=ARMS, help="print the peak memory of one arm, and nothing else")
    args = parser.parse_args()
    if args.peak:
        print(Bench.make(args).peak(args.peak))
        return
    peaks: dict[str, int] = {}
    if args.device == "cpu":  # before this process is large: a child starts with the peak of the one that made it
        alone = [sys.executable, *sys.argv, "--peak"]
        peaks = {arm: int(subprocess.check_output([*alone, arm], text=True)) for arm in ARMS}

    bench = Bench.make(args)
    for arm in ARMS * WARM_UP:
        bench.step(arm)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    order = random.Random(0)
    for _ in range(args.rounds):
        for arm in order.sample(ARMS, len(ARMS)):
            seconds[arm].append(bench.step(arm))
    peaks = peaks or {arm: bench.peak(arm) for arm in ARMS}
    place = torch.cuda.get_device_name() if bench.ids.is_cuda else f"CPU, {torch.get_num_threads()} threads"

    print(f"{place}; torch {torch.__version__}; width {args.width}, {args.layers} layers, {args.dtype}")
    print(
        f"{args.batch} x ({args.visual} visual + {args.text} text) positions, {len(SITES)} stacks, {args.rounds} rounds"
    )
    print(
        f"{'arm':<17}{'median s':>10}{'ratio to no stacks: median':>28}{'95% interval':>18}{'peak MiB':>10}{'ratio':>8}"
    )
    for arm, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds[NO_STACKS], strict=True)]
        low, high = interval(ratios)
        row = f"{statistics.median(times):>10.4f}{statistics.median(ratios):>28.4f}{f'{low:.4f} to {high:.4f}':>18}"
        print(f"{arm:<17}{row}{peaks[arm] / 2**20:>10.0f}{peaks[arm] / peaks[NO_STACKS]:>8.3f}")


if __name__ == "__main__":
    main()
