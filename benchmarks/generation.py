"""What do questions in the order of their lengths save? The same answers, by rank's share sorted and as they come.

    OMP_NUM_THREADS=1 python benchmarks/generation.py
    python benchmarks/generation.py --device cuda --width 2048 --layers 16 --questions 1024 --batch 64

Questions of 5 to ``--longest`` words, most of them short, about one picture each, are generated for in batches, with a
cache of keys and values and greedily, as the validation loop does. Sorted, a batch has rows of like lengths and little
padding. Each round runs both arms, in turn first; a ratio is taken within a round. Random weights: only times are real.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data_prep.digits import NAMES, draw_pages, png, write_tokenizer
from dslight.components import DeepStackL, HFCausalLM, MLPProjector, TimmEncoder
from dslight.data.datamodule import ShardData, ValSource
from dslight.data.images import GridViews
from dslight.data.loader import EvalLoader
from dslight.data.shards import ShardWriter
from dslight.vlm import VLM


def write_questions(root: Path, count: int, longest: int) -> None:
    """``count`` questions, half of them of less than a tenth of ``longest`` words."""
    rng = np.random.default_rng(0)
    pages, _ = draw_pages(count, "val", rng)
    with ShardWriter(root, shard_records=1000) as writer:
        for i, page in enumerate(pages):
            words = 5 + int((longest - 5) * rng.random() ** 3.3)
            text = " ".join(NAMES[cell] for cell in rng.integers(0, 16, words))
            asked = {"question_id": str(i), "question": text, "answers": ["1"], "type": ""}
            writer.write(f"q{i:05d}", [png(page)], {"questions": [asked]})


def make_model(width: int, layers: int, longest: int) -> VLM:
    """A decoder of this size behind a small encoder."""
    vit = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2}
    decoder = {
        "model_type": "llama", "vocab_size": 30, "hidden_size": width, "intermediate_size": 3 * width,
        "num_hidden_layers": layers, "num_attention_heads": width // 64, "num_key_value_heads": width // 64,
        "max_position_embeddings": 2 * longest + 100, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    return VLM(
        TimmEncoder("vit_tiny_patch16_224", model_args=vit),
        MLPProjector,
        DeepStackL(4, start=1),
        HFCausalLM(config=decoder),
    ).eval()


def main() -> None:
    """Print both arms and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in {"questions": 64, "longest": 300, "batch": 8, "new": 4, "width": 128, "layers": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_questions(root / "q", args.questions, args.longest)
        write_tokenizer(root / "tokenizer")
        torch.manual_seed(0)
        model = make_model(args.width, args.layers, args.longest).to(args.device)
        from transformers import AutoTokenizer

        model.tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer", trust_remote_code=False)
        data = ShardData(
            [str(root / "q")], GridViews(2, 2), 1, {"q": ValSource(str(root / "q"))}, template="bare",
            val_batch_size=args.batch,
        )  # fmt: skip
        slots = model.stacking.slot_layout(model.vision_encoder, model.projector)
        data.connect(model.tokenizer, model.vision_encoder.image_size, slots)
        data.setup("validate")
        (ordered,) = data.val_dataloader()
        plain = EvalLoader(ordered.dataset, args.questions, ordered.collate, 0, 1, args.batch)
        arms = {"as they come": plain, "longest first": ordered}
        batches = {name: [batch.to(args.device) for batch in loader] for name, loader in arms.items()}
        for name, own in batches.items():
            real, all_ = (
                sum(int(x) for x in xs)
                for xs in ([b.attention_mask.sum() for b in own], [b.attention_mask.numel() for b in own])
            )
            print(f"{name:<14} {1 - real / all_:6.1%} of the prompts' positions are padding")
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        answers: dict[str, dict[str, str]] = {}
        for round_ in range(-1, args.rounds):
            for name in sorted(arms, reverse=round_ % 2 == 0):
                began = time.process_time() if args.device == "cpu" else time.perf_counter()
                with torch.inference_mode():
                    said = [model.answer_batch(batch, max_new_tokens=args.new) for batch in batches[name]]
                if args.device != "cpu":
                    torch.cuda.synchronize()
                took = (time.process_time() if args.device == "cpu" else time.perf_counter()) - began
                if round_ >= 0:
                    seconds[name].append(took)
                ids = [question.question_id for batch in batches[name] for question in batch.questions]
                answers[name] = dict(zip(ids, [text for texts in said for text in texts], strict=True))
    for name, took in seconds.items():
        print(f"{name:<14} {args.questions / statistics.median(took):8.1f} questions/s")
    ratios = [a / b for a, b in zip(*(seconds[name] for name in arms), strict=True)]
    same = sum(answers["as they come"][key] == text for key, text in answers["longest first"].items())
    print(f"ratio {statistics.median(ratios):.2f} of {args.rounds} rounds, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"{same} of {args.questions} answers are the same")


if __name__ == "__main__":
    main()
