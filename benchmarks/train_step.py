"""What does a training step cost? LLaVA, DeepStack-L and a long sequence, next to Hugging Face's LLaVA in a plain loop.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py                                       # a toy, on a CPU
    python benchmarks/train_step.py --size 7b --device cuda --batch 4 --compile inductor    # LLaVA-1.5-7B's shape

All arms are the same encoder, projector and decoder with random weights, one copy of each, in bfloat16 on a GPU:
`low` reads one view (576 tokens at full size), `deepstack_l` five (2880 tokens) in the same context, `sequence` five
with all their tokens in the sequence, `hugging_face` is `low` as transformers' LlavaForConditionalGeneration. A step is
stage 2's: the encoder is frozen, projector and decoder train; forward, loss, backward, fused AdamW. Attention is SDPA.

Every round runs each arm once, in a new order, and ratios are taken within a round; quote medians. FLOPs are torch's
count of the forward pass, once for the frozen encoder and three times for the rest, whatever is computed again. "behind
the encoder" leaves out its share: its FLOPs, and its time, measured by itself. Peak memory is the GPU allocator's.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor, nn

from dslight.checkpoints.llava import llava_config
from dslight.components import DeepStackL, HFCausalLM, HFVisionEncoder, LowResolution, MLPProjector, SequenceConcat
from dslight.train.units import run_units
from dslight.types import IGNORE, Batch, Views
from dslight.upstream.torch import count_flops
from dslight.vlm import VLM

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 128, "layers": 6, "heads": 4, "mlp": 344, "words": 512,
             "vit_width": 64, "vit_layers": 6, "vit_heads": 2, "image": 112},
    "7b": {"width": 4096, "layers": 32, "heads": 32, "mlp": 11008, "words": 32064,
           "vit_width": 1024, "vit_layers": 24, "vit_heads": 16, "image": 336},
}  # fmt: skip
PATCH = 14
STACKINGS: dict[str, tuple[Any, tuple[int, int]]] = {
    "low": (LowResolution(tap=-2), (0, 0)),
    "deepstack_l": (DeepStackL(crops=4, start=1, tap=-2), (2, 2)),
    "sequence": (SequenceConcat(tap=-2), (2, 2)),
}
"""Arm -> stacking, grid of crops."""
THEIRS = "hugging_face"
ARMS = (*STACKINGS, THEIRS)
WARM_UP = 2


@dataclass(frozen=True)
class Bench:
    """The arms, which share their weights, and a batch for each."""

    vlms: dict[str, VLM]
    theirs: nn.Module
    batches: dict[str, Batch]
    optimizer: torch.optim.Optimizer
    device: torch.device
    compile: str | None
    checkpointing: bool

    @classmethod
    def make(cls, args: argparse.Namespace) -> Bench:
        """Random weights and tokens."""
        torch.manual_seed(0)
        size, dtype, device = SIZES[args.size], getattr(torch, args.dtype), torch.device(args.device)
        vision = {
            "model_type": "clip_vision_model", "hidden_size": size["vit_width"], "hidden_act": "quick_gelu",
            "num_hidden_layers": size["vit_layers"], "intermediate_size": 4 * size["vit_width"],
            "num_attention_heads": size["vit_heads"], "image_size": size["image"], "patch_size": PATCH,
        }  # fmt: skip
        text = {
            "model_type": "llama", "hidden_size": size["width"], "num_hidden_layers": size["layers"],
            "intermediate_size": size["mlp"], "num_attention_heads": size["heads"],
            "num_key_value_heads": size["heads"],
            "vocab_size": size["words"], "max_position_embeddings": 4096, "tie_word_embeddings": False,
        }  # fmt: skip
        with device:
            encoder = HFVisionEncoder(config=vision, dtype=args.dtype, attention="sdpa")
            lm = HFCausalLM(config=text, dtype=args.dtype, attention="sdpa")
            projector = MLPProjector([encoder.width], lm.width, layers=2).to(dtype)
            vlms = {
                arm: VLM(encoder, _sharing(projector), stacking, lm).to(device)
                for arm, (stacking, _) in STACKINGS.items()
            }
        encoder.freeze()
        trained = [*projector.parameters(), *lm.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=device.type == "cuda")
        batches = {arm: _batch(vlm, STACKINGS[arm][1], args, size).to(device) for arm, vlm in vlms.items()}
        bench = cls(vlms, _theirs(vlms["low"]), batches, optimizer, device, args.compile, args.checkpointing)
        if args.compile:
            bench.theirs.compile(backend=args.compile)
        return bench

    def prepare(self, arm: str) -> None:
        """Let the shared layers run as the arm wants; Hugging Face's model is compiled, or not, as a whole."""
        ours = arm != THEIRS
        for part in (self.vlms["low"].vision_encoder, self.vlms["low"].language_model):
            lm = part is self.vlms["low"].language_model
            run_units(part, checkpointing=self.checkpointing and lm, compile=(self.compile or False) if ours else False)

    def loss(self, arm: str) -> Tensor:
        """The mean loss of the arm's batch."""
        if arm != THEIRS:
            total, count = self.vlms[arm].loss(self.batches[arm])
            return total / count
        batch, encoder = self.batches["low"], self.vlms["low"].vision_encoder
        assert batch.views is not None
        return self.theirs(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=encoder.normalise(batch.views.pixels),
            labels=batch.labels,
            use_cache=False,
        ).loss

    def step(self, arm: str) -> float:
        """Seconds of a step."""
        self.prepare(arm)
        return self._timed(lambda: self._step(arm))

    def _step(self, arm: str) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(arm).backward()
        self.optimizer.step()

    def encode(self, arm: str) -> float:
        """Seconds of the frozen encoder alone."""
        self.prepare(arm)
        vlm, views = self.vlms[arm], self.batches[arm].views
        return self._timed(lambda: vlm.stacking(vlm.vision_encoder, cast(Views, views)))

    def _timed(self, run: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def flops(self, arm: str) -> tuple[float, float]:
        """Of a step: the encoder's, and what lies behind it."""
        vlm, batch = self.vlms[arm], self.batches[arm]
        run_units(vlm.language_model)
        run_units(vlm.vision_encoder)
        found = []
        with torch.no_grad():
            for run in (lambda: vlm.stacking(vlm.vision_encoder, cast(Views, batch.views)), lambda: vlm(batch)):
                with count_flops() as counter:
                    run()
                found.append(counter.get_total_flops())
        return found[0], 3.0 * (found[1] - found[0])

    def peak(self, arm: str) -> int:
        """Bytes at most; 0 on a CPU, where the arms cannot be told apart."""
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats()
        self.step(arm)
        return torch.cuda.max_memory_allocated()


def _batch(vlm: VLM, grid: tuple[int, int], args: argparse.Namespace, size: dict[str, int]) -> Batch:
    """Rows of some text, one image, and more text, of which half is supervised."""
    generator = torch.Generator().manual_seed(0)
    height, width = vlm.vision_encoder.image_size
    slots = vlm.stacking.slot_layout(vlm.vision_encoder, vlm.projector)(grid, (2 * height, 2 * width))
    ids = torch.randint(1, size["words"] - 1, (args.batch, slots + args.text), generator=generator)
    visual = torch.zeros_like(ids, dtype=torch.bool)
    visual[:, 8 : 8 + slots] = True
    ids[visual] = size["words"] - 1  # the placeholder of Hugging Face's model
    labels = ids.clone()
    labels[:, : slots + args.text // 2] = IGNORE
    views = (1 + grid[0] * grid[1]) * args.batch
    pixels = torch.randint(0, 256, (views, 3, height, width), dtype=torch.uint8, generator=generator)
    return Batch(ids, torch.ones_like(ids), visual, labels, Views(pixels, [grid] * args.batch))


def _sharing(projector: MLPProjector) -> Callable[[list[int], int], MLPProjector]:
    def make(widths: list[int], width: int) -> MLPProjector:
        made = MLPProjector(widths, width, layers=2)  # it knows how many levels its arm has
        made.net = projector.net
        return made

    return make


def _theirs(vlm: VLM) -> nn.Module:
    """Transformers' own model out of our modules: the same weights, and no second copy of them."""
    from transformers import LlavaForConditionalGeneration

    lm, encoder, projector = (cast(Any, vlm.parts()[n]) for n in ("language_model", "vision_encoder", "projector"))
    config = llava_config(vlm.parts(), image_token=lm.vocabulary - 1, vocabulary=lm.vocabulary)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        theirs: Any = LlavaForConditionalGeneration(config)
    theirs.model.vision_tower, theirs.model.language_model, theirs.lm_head = encoder.model, lm.decoder, lm.model.lm_head
    bridge = theirs.model.multi_modal_projector
    bridge.linear_1, bridge.linear_2 = projector.net[0], projector.net[2]
    assert not any(parameter.is_meta for parameter in theirs.parameters())
    return theirs.train()


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="default: bfloat16 on a GPU, float32 on a CPU")
    for name, default in {"batch": 2, "text": 64, "rounds": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", help="backend of torch.compile: inductor, or aot_eager on a CPU; default: none")
    parser.add_argument("--checkpointing", action="store_true", help="of the decoder's layers")
    args = parser.parse_args()
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    bench = Bench.make(args)

    bench.prepare(THEIRS)
    with torch.no_grad():
        ours, theirs = float(bench.loss("low")), float(bench.loss(THEIRS))
    flops = {arm: bench.flops(arm) for arm in STACKINGS}
    flops[THEIRS] = flops["low"]
    for arm in ARMS * WARM_UP:
        bench.step(arm)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    encoding: dict[str, list[float]] = {arm: [] for arm in STACKINGS}
    order = random.Random(0)
    for _ in range(args.rounds):
        for arm in order.sample(ARMS, len(ARMS)):
            seconds[arm].append(bench.step(arm))
            if arm in encoding:
                encoding[arm].append(bench.encode(arm))
    peaks = {arm: bench.peak(arm) for arm in ARMS}

    cuda = bench.device.type == "cuda"
    place = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    peak = get_available_flops(bench.device, getattr(torch, args.dtype)) if cuda else None
    print(
        f"{place}; torch {torch.__version__}; {args.size}, {args.dtype}, batch {args.batch}, {args.rounds} rounds; ",
        end="",
    )
    print(f"compile: {args.compile or 'no'}; checkpointing: {'yes' if args.checkpointing else 'no'}")
    print(f"loss of low {ours:.6f}, of {THEIRS} {theirs:.6f}\n")
    head = "positions | seconds | ratio | behind the encoder | ratio | tokens/s | TFLOPs | MFU | MFU behind | peak GiB"
    print(f"| arm | {head} |\n| --- |" + " ---: |" * 10)
    base = [a - b for a, b in zip(seconds["low"], encoding["low"], strict=True)]
    for arm in ARMS:
        times, of = seconds[arm], "low" if arm == THEIRS else arm
        behind = [a - b for a, b in zip(times, encoding[of], strict=True)]
        ratio = statistics.median(a / b for a, b in zip(times, seconds["low"], strict=True))
        later = statistics.median(a / b for a, b in zip(behind, base, strict=True))
        median, rest = statistics.median(times), statistics.median(behind)
        seen, other = flops[arm]
        used = f"{(seen + other) / median / peak:.1%} | {other / rest / peak:.1%}" if peak else "- | -"
        shape = bench.batches[of].input_ids.shape
        row = f"| {arm} | {shape[1]} | {median:.4f} | {ratio:.3f} | {rest:.4f} | {later:.3f} | "
        row += f"{shape.numel() / median:,.0f} | {(seen + other) / 1e12:.3f} | {used} | "
        print(row + (f"{peaks[arm] / 2**30:.1f} |" if cuda else "- |"))


if __name__ == "__main__":
    main()
