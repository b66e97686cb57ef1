"""What do the stacks cost the language model? Forward and backward of a decoder at equal context, with and without.

    python benchmarks/injection.py                       # a CPU-sized Llama: width 512, 8 layers, 640 positions
    python benchmarks/injection.py --device cuda --width 4096 --layers 32 --dtype bfloat16 --rounds 10

Three ways in turn, A B C A B C ..., so that a drifting machine drifts for all: no stacks; four stacks through dslight's
injector; the same four stacks added with a masked ``index_put`` on a clone of the hidden states, in the way that
Qwen3-VL's decoder does it. The vision side is left out: it costs the same in all three. Quote the median of the ratios
of neighbours.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor

from dslight.components import HFCausalLM
from dslight.nn.injector import inject
from dslight.nn.loss import next_token_loss


def masked_index_put(lm: HFCausalLM, mask: Tensor, stacks: Tensor) -> AbstractContextManager[object]:
    """The rival: clone, add at the mask, write back."""
    hooks = ExitStack()

    def adder(values: Tensor) -> Callable[..., object]:
        def add(module: object, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> object:
            hidden = args[0].clone()
            hidden[mask] = hidden[mask] + values
            return (hidden, *args[1:]), kwargs

        return add

    for site, values in enumerate(stacks, start=1):
        hooks.callback(lm.layers[site].register_forward_pre_hook(adder(values), with_kwargs=True).remove)
    return hooks


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in (("width", 512), ("layers", 8), ("text", 64), ("visual", 576), ("batch", 1), ("rounds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()

    torch.manual_seed(0)
    config = {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": args.width,
        "intermediate_size": args.width * 11 // 4,
        "num_hidden_layers": args.layers,
        "num_attention_heads": max(args.width // 64, 1),
        "num_key_value_heads": max(args.width // 64, 1),
    }
    lm = HFCausalLM(config=config, dtype=args.dtype).to(args.device)
    length = args.visual + args.text
    ids = torch.randint(0, 32000, (args.batch, length), device=args.device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 8 : 8 + args.visual] = True
    count = int(mask.sum())
    values = torch.randn(4, count, args.width, device=args.device, dtype=lm.embedding.weight.dtype)  # type: ignore[arg-type]
    stacks = (values * 0.02).requires_grad_()
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "no stacks": nullcontext,
        "dslight": lambda: inject(lm.layers, mask, stacks, (1, 2, 3, 4)),
        "index_put": lambda: masked_index_put(lm, mask, stacks),
    }

    def step(way: Callable[[], AbstractContextManager[object]]) -> float:
        lm.zero_grad(set_to_none=True)
        stacks.grad = None
        if args.device != "cpu":
            torch.cuda.synchronize()
        began = time.perf_counter()
        with way():
            loss, _ = next_token_loss(lm.logits(ids, torch.ones_like(ids)), ids)
        loss.backward()
        if args.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for way in ways.values():
        step(way)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            seconds[name].append(step(way))
    place = torch.cuda.get_device_name() if args.device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{place}; torch {torch.__version__}; width {args.width}, {args.layers} layers, {args.dtype}")
    print(f"{args.batch} x ({args.visual} visual + {args.text} text) positions, 4 stacks, {args.rounds} rounds")
    print(f"{'way':<12}{'median s':>10}{'ratio to no stacks: min':>26}{'median':>9}{'max':>9}")
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["no stacks"], strict=True)]
        row = f"{min(ratios):>26.3f}{statistics.median(ratios):>9.3f}{max(ratios):>9.3f}"
        print(f"{name:<12}{statistics.median(times):>10.3f}{row}")
    peak = (
        torch.cuda.max_memory_allocated()
        if args.device != "cpu"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    print(f"peak memory of the process {peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
