"""What does a step on images of a size each cost? A small Qwen3-VL, in dslight's parts and in transformers' own class.

    OMP_NUM_THREADS=1 python -m benchmarks.native
    python -m benchmarks.native --device cuda --dtype bfloat16 --scale 4

One batch of images of mixed sizes and answers, forward and backward, the same weights and the same loss: ``ours`` with
:class:`~dslight.components.NativeVisionEncoder`, ``theirs`` with ``Qwen3VLForConditionalGeneration``, and ``padded``,
ours again with every image on a canvas of the largest one's size; ``packed`` is ours with several documents in a row
(``data.order.pack``). Every round runs each arm once, in a new order, and
a ratio is taken within a round. Peak memory is the allocator's on a GPU; on a CPU the resident set of a process of its
own per arm, interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dslight.components import DeepStackTaps, HFCausalLM, NativeVisionEncoder, PixelShuffleMLPProjector
from dslight.types import IGNORE, Batch, Grid, Views
from dslight.vlm import VLM

PIECES: list[Grid] = [(4, 6), (12, 16), (7, 5), (16, 12), (6, 10), (3, 20), (8, 8), (14, 9)]
"""Of the images, in pieces of 32 x 32 pixels: 128 x 192 to 512 x 384."""
TAPS = [2, 4, 6]
PATCH, TEXT, ANSWER, IMAGE = 16, 24, 8, 7
ARMS = ("ours", "packed", "theirs", "padded")


def released(scale: int, folder: Path) -> Any:
    """Transformers' model, saved; about as much of it in the head as in a Qwen3-VL of 2 billion parameters."""
    import transformers

    torch.manual_seed(0)
    width = 192 * scale
    config = transformers.Qwen3VLConfig(
        vision_config={
            "depth": 8, "hidden_size": width // 2, "intermediate_size": 2 * width, "num_heads": width // 64,
            "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": width,
            "num_position_embeddings": 256, "deepstack_visual_indexes": [tap - 1 for tap in TAPS],
        },
        text_config={
            "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 8, "head_dim": 32,
            "num_attention_heads": width // 32, "num_key_value_heads": width // 64, "vocab_size": 8192,
            "max_position_embeddings": 4096, "tie_word_embeddings": False, "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5]},
        },
        image_token_id=IMAGE, video_token_id=8, vision_start_token_id=5, vision_end_token_id=6,
    )  # fmt: skip
    model = transformers.Qwen3VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    return model


def composed(theirs: Any, folder: Path) -> VLM:
    """The same out of four parts."""

    def projector(in_widths: list[int], out_width: int) -> PixelShuffleMLPProjector:
        made = PixelShuffleMLPProjector(
            in_widths, out_width, hidden="merged", norm="pre", stack_norm="post", per_level=True
        )
        mergers = [theirs.model.visual.merger, *theirs.model.visual.deepstack_merger_list]
        for net, merger in zip(made.nets, mergers, strict=True):
            for mine, given in zip(net.parameters(), merger.parameters(), strict=True):
                mine.data.copy_(given.data)
        return made

    encoder = NativeVisionEncoder(str(folder), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return VLM(encoder, projector, DeepStackTaps(taps=TAPS, tap=-1), HFCausalLM(str(folder)))


def batch_of(pieces: list[Grid]) -> Batch:
    """A row for each image: the image, a question, an answer that is learned; padded on the right."""
    generator = torch.Generator().manual_seed(0)
    count, side = sum(rows * cols for rows, cols in pieces), 2 * PATCH
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    length = max(rows * cols for rows, cols in pieces) + 2 + TEXT + ANSWER
    shape = (len(pieces), length)
    ids, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORE)
    mask = torch.zeros(shape, dtype=torch.int64)
    for i, (rows, cols) in enumerate(pieces):
        words = torch.randint(10, 8000, (TEXT + ANSWER,), generator=generator)
        row = torch.cat([torch.tensor([5, *[IMAGE] * (rows * cols), 6]), words])
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
        labels[i, len(row) - ANSWER : len(row)] = words[-ANSWER:]
    views = Views(pixels, [(0, 0)] * len(pieces), pieces=list(pieces))
    return Batch(ids, mask, ids == IMAGE, labels, views).located()


def packed(batch: Batch) -> Batch:
    """The same documents in fewer rows of the same length, the longest first."""
    lengths, width = batch.attention_mask.sum(1).tolist(), batch.input_ids.shape[1]
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = (row for row in rows if sum(lengths[j] for j in row) + lengths[i] <= width)
        row = next(fits, None)
        rows.append([i]) if row is None else row.append(i)
    assert batch.labels is not None
    assert batch.views is not None
    ids, labels = torch.zeros(len(rows), width, dtype=torch.int64), torch.full((len(rows), width), IGNORE)
    segments, order = torch.zeros_like(ids), [i for row in rows for i in row]
    for number, row in enumerate(rows):
        start = 0
        for document, i in enumerate(row, start=1):
            place = slice(start, start + lengths[i])
            ids[number, place], labels[number, place] = batch.input_ids[i, : lengths[i]], batch.labels[i, : lengths[i]]
            segments[number, place], start = document, start + lengths[i]
    parts = batch.views.pixels.split(batch.views.per_image)
    pieces = [batch.views.pieces[i] for i in order]
    views = Views(torch.cat([parts[i] for i in order]), [(0, 0)] * len(order), pieces=pieces)
    return Batch(ids, (segments > 0).long(), ids == IMAGE, labels, views, segments=segments).located()


def ours_step(model: VLM, batch: Batch) -> Tensor:
    """Mean loss of a step and its gradients."""
    loss, count = model.loss(batch)
    loss = loss / count
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.detach()


def theirs_step(model: Any, batch: Batch) -> Tensor:
    """The same with their class, on patches that were made before (as by their processor)."""
    loss = model(**model.prepared).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.detach()


def prepare(model: Any, batch: Batch) -> None:
    """Their inputs of a batch, with pixels normalised and cut into patches."""
    assert batch.views is not None
    pixels = (batch.views.pixels.float() / 255 - 0.5) / 0.5
    patches = pixels.unflatten(-1, (2, PATCH)).unflatten(-3, (2, PATCH)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    model.prepared = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "labels": batch.labels,
        "mm_token_type_ids": batch.visual_mask.int(),
        "pixel_values": patches.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1),
        "image_grid_thw": torch.tensor([[1, 2 * r, 2 * c] for r, c in batch.views.pieces], device=pixels.device),
    }


def steps(args: argparse.Namespace, wanted: tuple[str, ...]) -> dict[str, Callable[[], Tensor]]:
    """The arms, each ready to run."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = released(args.scale, Path(folder))
        ours = composed(theirs, Path(folder))
    dtype = getattr(torch, args.dtype)
    theirs, ours = theirs.to(args.device, dtype).train(), ours.to(args.device, dtype).train()
    largest = (max(rows for rows, _ in PIECES), max(cols for _, cols in PIECES))
    plain, padded = batch_of(PIECES), batch_of([largest] * len(PIECES)).to(args.device)
    own, together = plain.to(args.device), packed(plain).to(args.device)
    prepare(theirs, own)
    made: dict[str, Callable[[], Tensor]] = {
        "ours": partial(ours_step, ours, own),
        "packed": partial(ours_step, ours, together),
        "theirs": partial(theirs_step, theirs, own),
        "padded": partial(ours_step, ours, padded),
    }
    return {name: made[name] for name in wanted}


def peak(args: argparse.Namespace, arm: str) -> float:
    """MiB, of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.native", "--arm", arm, "--scale", str(args.scale)]
    command += ["--device", args.device, "--dtype", args.dtype]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["peak"])


def main() -> None:
    """Print the arms, their ratios and their peak memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        (step,) = steps(args, (args.arm,)).values()
        for _ in range(2):
            step()
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used = torch.cuda.max_memory_allocated() / 2**20 if args.device != "cpu" else kib / 2**10
        print(json.dumps({"peak": used}))
        return
    # before this process is large: a child starts with the peak of the one that made it
    peaks = {} if args.no_memory else {name: f"{peak(args, name):.0f}" for name in ARMS}
    arms, seconds = steps(args, ARMS), {name: [] for name in ARMS}
    losses = {name: float(step()) for name, step in arms.items()}
    print("loss: " + ", ".join(f"{name} {losses[name]:.6f}" for name in ARMS[:3]))
    shuffled = random.Random(0)
    for _ in range(args.rounds):
        for name in shuffled.sample(ARMS, len(ARMS)):
            began = time.process_time() if args.device == "cpu" else time.perf_counter()
            arms[name]()
            if args.device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append((time.process_time() if args.device == "cpu" else time.perf_counter()) - began)
    print("| arm | seconds | of theirs | range | peak memory, MiB |\n| --- | ---: | ---: | ---: | ---: |")
    for name in ARMS:
        ratios = [a / b for a, b in zip(seconds[name], seconds["theirs"], strict=True)]
        took, ratio = statistics.median(seconds[name]), statistics.median(ratios)
        print(f"| {name} | {took:.2f} | {ratio:.3f} | {min(ratios):.3f} to {max(ratios):.3f} | {peaks.get(name, '')} |")


if __name__ == "__main__":
    main()
