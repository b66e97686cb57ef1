"""What does an order of questions save, what do pictures that are looked at once, and what do answers that are written
together? The same answers, four ways.

    OMP_NUM_THREADS=1 python benchmarks/generation.py
    python benchmarks/generation.py --device cuda --width 2048 --layers 16 --questions 1024 --batch 64
    python benchmarks/generation.py --questions 200 --per-picture 5 --longest 30 --image 32
    python benchmarks/generation.py --questions 256 --longest 30 --batch 32 --new 16 --ends 0.3

Questions of 5 to ``--longest`` words, most of them short, about pictures that each have ``--per-picture`` of them, are
generated for in batches, with a cache of keys and values and greedily, as the validation loop does. Sorted, a batch has
rows of like lengths and little padding. Pictures once: each is encoded once for all its questions in a batch, and what
stands before them is computed once. Written together, the validation loop's way: batches are read one after the other,
the answers of several are written at once, and those that are done leave. Each round runs all arms, in turn first; a
ratio is taken within a round. Random weights: only times are real. An answer ends with any of a share ``--ends`` of all
tokens, or after ``--new`` of them; the weights are then so large that answers differ.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.digits import NAMES, draw_pages, png, write_tokenizer
from dslight.components import DeepStackL, HFCausalLM, MLPProjector, TimmEncoder, shared_pictures
from dslight.components.waiting import Waiting
from dslight.data.datamodule import ShardData, ValSource
from dslight.data.images import GridViews
from dslight.data.loader import EvalLoader
from dslight.data.shards import ShardWriter
from dslight.types import Batch
from dslight.vlm import VLM


def write_questions(root: Path, count: int, longest: int, each: int = 1) -> None:
    """``count`` questions, ``each`` about a picture, half of them of less than a tenth of ``longest`` words."""
    rng = np.random.default_rng(0)
    pages, _ = draw_pages(-(-count // each), "val", rng)
    with ShardWriter(root, shard_records=1000) as writer:
        for i, page in enumerate(pages):
            asked = []
            for number in range(i * each, min((i + 1) * each, count)):
                words = 5 + int((longest - 5) * rng.random() ** 3.3)
                text = " ".join(NAMES[cell] for cell in rng.integers(0, 16, words))
                asked.append({"question_id": str(number), "question": text, "answers": ["1"], "type": ""})
            writer.write(f"q{i:05d}", [png(page)], {"questions": asked})


def make_model(width: int, layers: int, longest: int, side: int = 16, spread: float = 0.02) -> VLM:
    """A decoder of this size behind a small encoder of pictures of ``side`` pixels, 4 to a patch."""
    vit = {"img_size": side, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2}
    decoder = {
        "model_type": "llama", "vocab_size": 30, "hidden_size": width, "intermediate_size": 3 * width,
        "num_hidden_layers": layers, "num_attention_heads": width // 64, "num_key_value_heads": width // 64,
        "max_position_embeddings": 2 * longest + 100 + side**2, "initializer_range": spread,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    return VLM(
        TimmEncoder("vit_tiny_patch16_224", model_args=vit),
        MLPProjector,
        DeepStackL(4, start=1),
        HFCausalLM(config=decoder),
    ).eval()


def alone(model: VLM, batches: Sequence[Batch], options: dict[str, Any]) -> list[str]:
    """The answers, batch by batch."""
    return [text for batch in batches for text in model.answer_batch(batch, **options)]


def together(model: VLM, batches: Sequence[Batch], options: dict[str, Any]) -> list[str]:
    """The same, those of several batches written at once."""
    decoder = model.language_model
    assert isinstance(decoder, HFCausalLM)
    waiting, written = Waiting(), []
    for batch in batches:
        prompts = shared_pictures.read(decoder, batch, model.see(batch.views), options)
        assert prompts is not None
        waiting.add(prompts)
        if waiting.full:
            written += waiting.write(decoder, **options)
    written += waiting.write(decoder, **options)
    ids = [row for answers in written for row in answers]
    return [text.strip() for text in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def main() -> None:
    """Print all arms and their ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    defaults = {"questions": 64, "per-picture": 1, "longest": 300, "batch": 8, "new": 4, "width": 128, "layers": 5}
    for name, default in {**defaults, "image": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ends", type=float, default=0.0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_questions(root / "q", args.questions, args.longest, args.per_picture)
        write_tokenizer(root / "tokenizer")
        torch.manual_seed(0)
        model = make_model(args.width, args.layers, args.longest, args.image, 0.15 if args.ends else 0.02)
        model = model.to(args.device)
        from transformers import AutoTokenizer

        model.tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer", trust_remote_code=False)
        data = ShardData(
            [str(root / "q")], GridViews(2, 2), 1, {"q": ValSource(str(root / "q"))}, template="bare",
            val_batch_size=args.batch,
        )  # fmt: skip
        slots = model.stacking.slot_layout(model.vision_encoder, model.projector)
        data.connect(model.tokenizer, model.vision_encoder.image_size, slots)
        data.setup("validate")
        (once,) = data.val_dataloader()
        plain, ordered = copy(once), copy(once)
        plain.collate = ordered.collate = replace(once.collate, once=False)
        plain.batches = EvalLoader(once.dataset, args.questions, once.collate, 0, 1, args.batch).batches
        arms = {"as they come": plain, "longest first": ordered, "pictures once": once, "written together": once}
        random = torch.Generator().manual_seed(0)
        ends = (torch.rand(30, generator=random) < args.ends).nonzero().flatten().tolist()
        options = {"max_new_tokens": args.new, "eos_token_id": ends, "pad_token_id": model.tokenizer.pad_token_id}
        batches = {name: [batch.to(args.device) for batch in loader] for name, loader in arms.items()}
        for name, own in batches.items():
            real, all_ = (
                sum(int(x) for x in xs)
                for xs in ([b.attention_mask.sum() for b in own], [b.attention_mask.numel() for b in own])
            )
            print(f"{name:<16} {1 - real / all_:6.1%} of the prompts' positions are padding")
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        answers: dict[str, dict[str, str]] = {}
        for round_ in range(-1, args.rounds):
            for name in sorted(arms, reverse=round_ % 2 == 0):
                began = time.process_time() if args.device == "cpu" else time.perf_counter()
                with torch.inference_mode():
                    said = (together if name == "written together" else alone)(model, batches[name], options)
                if args.device != "cpu":
                    torch.cuda.synchronize()
                took = (time.process_time() if args.device == "cpu" else time.perf_counter()) - began
                if round_ >= 0:
                    seconds[name].append(took)
                ids = [question.question_id for batch in batches[name] for question in batch.questions]
                answers[name] = dict(zip(ids, said, strict=True))
    for name, took in seconds.items():
        print(f"{name:<16} {args.questions / statistics.median(took):8.1f} questions/s")
    for before, after in pairwise(arms):
        ratios = [a / b for a, b in zip(seconds[before], seconds[after], strict=True)]
        same = sum(answers[before][key] == text for key, text in answers[after].items())
        print(
            f"{before} / {after}: {statistics.median(ratios):.2f} of {args.rounds} rounds, {min(ratios):.2f} to "
            f"{max(ratios):.2f}; {same} of {args.questions} answers are the same"
        )


if __name__ == "__main__":
    main()
