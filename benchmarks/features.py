"""What does a sweep save that keeps the features of a frozen encoder?

    OMP_NUM_THREADS=1 python -m benchmarks.features        # about 5 minutes on a core

Stage 1 of DeepStack-L, projector alone, as a whole `dslight.fit`: from the shards' JPEGs to the weights. Encoder and
decoder are small, and are to each other as CLIP-L (304 M, 5 views) and a decoder of 0.5 B, or SmolLM2-135M: 21 M, and
36 M or 7 M behind its embeddings.
`today` keeps nothing. `first` is the arm that fills the folder, `second` another arm of the sweep, which stacks into
other layers and reads it. Each takes one epoch over the same pictures.

Every round runs each arm once, `second` behind `first`, and ratios are taken within a round; seconds are of the
processor (everything runs in this process) and, beside them, of the clock. Medians are printed, the largest difference
of a loss from that without kept features, and a line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import dslight
from data_prep.digits import write_tokenizer
from dslight.data.shards import ShardWriter

ARMS = ("today", "first", "second")
PICTURES, BATCH, SIZE = 16, 2, 224
DECODERS = {"0.5B": (480, 1344, 12, 8), "135M": (256, 704, 9, 4)}
"""Width, width of the MLPs, layers and heads."""
WORDS = 30
"""Of each answer; all of them are ids of the tokenizer of the quickstart."""


def write(root: Path) -> None:
    """Photographs of noise that is smooth, and answers."""
    rng = np.random.default_rng(0)
    with ShardWriter(root / "train") as writer:
        for i in range(PICTURES):
            noise = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
            file = io.BytesIO()
            noise.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            answer = " ".join(str(digit) for digit in rng.integers(0, 10, WORDS))
            turns = [{"from": "human", "value": "<image>\ntop left"}, {"from": "gpt", "value": answer}]
            writer.write(f"p{i}", [file.getvalue()], {"conversations": turns})
    write_tokenizer(root / "tokenizer")


def model(root: Path, decoder: str, start: int) -> dslight.VLM:
    """The parts with random weights, the same each time."""
    torch.manual_seed(0)
    vit: Any = {"img_size": SIZE, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    encoder = dslight.TimmEncoder("vit_tiny_patch16_224", model_args=vit)
    width, mlp, layers, heads = DECODERS[decoder]
    shape: Any = {
        "model_type": "llama", "vocab_size": 1000, "hidden_size": width, "intermediate_size": mlp,
        "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": 512,
    }  # fmt: skip
    lm = dslight.HFCausalLM(config=shape, tokenizer=str(root / "tokenizer"))
    return dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStackL(crops=4, start=start), lm)


Seconds = tuple[float, float]
"""Of the processor and of the clock."""


def fit(root: Path, decoder: str, name: str, start: int, folder: Path | None) -> tuple[Seconds, list[float]]:
    """What an arm took, and its losses."""
    made = model(root, decoder, start)
    keep = None if folder is None else dslight.KeepFeatures(str(folder))
    views = dslight.GridViews()
    data = dslight.Data([str(root / "train")], views, BATCH, template="bare", keep_features=keep)
    settings: Any = {
        "max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1,
        "enable_checkpointing": False,
    }  # fmt: skip
    began = time.process_time(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        run = dslight.fit(made, data, {"projector": 1e-3}, settings, root / "runs" / name, fresh=True)
    seconds = time.process_time() - began[0], time.perf_counter() - began[1]
    with (Path(run.path) / "metrics.csv").open() as file:
        return seconds, [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decoder", choices=tuple(DECODERS), default="0.5B")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[Seconds]] = {arm: [] for arm in ARMS}
    apart = 0.0
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        write(root)
        _, reference = fit(root, args.decoder, "warm-up", 2, None)  # and the losses that `second` has to have
        for number in range(args.rounds):
            kept = root / f"features-{number}"
            order = ("today", "first", "second") if number % 2 else ("first", "second", "today")
            losses = {}
            for arm in order:
                start = 2 if arm == "second" else 1
                took, losses[arm] = fit(root, args.decoder, arm, start, None if arm == "today" else kept)
                seconds[arm].append(took)
            for arm, plain in (("first", losses["today"]), ("second", reference)):
                apart = max(apart, *(abs(a - b) for a, b in zip(losses[arm], plain, strict=True)))
        stored = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file())
    print(f"CPU, one thread; torch {torch.__version__}; {args.rounds} rounds; {PICTURES} pictures of 640 x 480\n")
    print(f"| | {' | '.join(ARMS)} |\n| --- | ---: | ---: | ---: |")
    found = {}
    for i, what in enumerate(("processor", "clock")):
        row = " | ".join(f"{statistics.median(one[i] for one in seconds[arm]):.1f}" for arm in ARMS)
        print(f"| seconds of an arm, {what} | {row} |")
        for arm, to in (("first", "today"), ("second", "today"), ("second", "first")):
            pairs = zip(seconds[arm], seconds[to], strict=True)
            found[f"{arm}_to_{to}, {what}"] = statistics.median(a[i] / b[i] for a, b in pairs)
    print()
    print(f"losses differ by {apart:.1e} at most; kept: {stored / PICTURES / 1e6:.1f} MB a picture\n")
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
