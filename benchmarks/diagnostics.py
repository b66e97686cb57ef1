"""What does it save that the arms of a diagnosis are answered together? The same answers and norms, two ways.

    OMP_NUM_THREADS=1 python -m benchmarks.diagnostics

``before``: every arm encodes the pictures and answers with transformers' ``generate``; other pictures are asked about,
and norms are measured in a pass of their own. ``now``: what ``diagnostics: {norms, drop, shuffle}`` does. Random
weights: only times are real; an answer ends with any of 30 % of all tokens, or after ``--new``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.generation import make_model, write_questions
from data_prep.digits import write_tokenizer
from dslight.data.datamodule import ShardData, ValSource
from dslight.data.images import GridViews
from dslight.diagnostics.callback import _ask
from dslight.diagnostics.compare import ALL, Arm, arms
from dslight.diagnostics.groups import Groups
from dslight.diagnostics.norms import Norms
from dslight.diagnostics.settings import Diagnostics
from dslight.nn.intervention import intervene
from dslight.run.diagnose import Questions
from dslight.vlm import VLM


def before(model: VLM, questions: Questions, groups: Groups, compared: list[Arm], norms: Norms) -> Iterator[dict]:
    """The answers in every arm, each by itself."""
    options, first = model.generation["q"], {"max_new_tokens": 1}
    layout = model.stacking.slot_layout(model.vision_encoder, model.projector)
    rows, columns = model.vision_encoder.grid
    for asked in questions.asked(others=True):
        with intervene(norms.watch(asked.batch, layout, rows * columns)):
            model.answer_batch(asked.batch, **options | first)
        assert asked.others is not None
        with groups.recorded() as theirs:
            model.answer_batch(asked.others, **options | first)
        said = {}
        for arm in compared:
            with intervene(arm.act(theirs)):
                said[arm.name] = model.answer_batch(asked.batch, **options)
        yield from ({name: texts[row] for name, texts in said.items()} for row in range(len(said[ALL])))


def main() -> None:
    """Print the seconds of both, and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in {"questions": 64, "batch": 32, "new": 16, "width": 128, "layers": 5, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        root = Path(folder)
        write_questions(root / "q", args.questions, 30)
        write_tokenizer(root / "tokenizer")
        torch.manual_seed(0)
        model = make_model(args.width, args.layers, 30, spread=0.15)
        model.tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer", trust_remote_code=False)
        source = ValSource(str(root / "q"))
        data = ShardData([], GridViews(2, 2), 1, {"q": source}, template="bare", val_batch_size=args.batch)
        model.connect(data)
        ends = (torch.rand(30, generator=torch.Generator().manual_seed(0)) < 0.3).nonzero().flatten().tolist()
        model.generation["q"] |= {"max_new_tokens": args.new, "eos_token_id": ends}
        data.setup("validate")
        (loader,) = data.val_dataloader()
        questions = Questions(loader, data.rows, args.questions, 0, 1, args.batch)
        groups = Groups(model)
        compared = arms(groups, Diagnostics(drop=True, shuffle=True))
        seconds: dict[str, list[float]] = {"before": [], "now": []}
        found: dict[str, Any] = {}
        for round_ in range(args.rounds):
            for name in sorted(seconds, reverse=round_ % 2 == 0):
                norms, began = Norms(groups), time.process_time()
                if name == "now":
                    said = [row["answers"] for row in _ask(model, "q", questions, groups, compared, norms)]
                else:
                    said = list(before(model, questions, groups, compared, norms))
                seconds[name].append(time.process_time() - began)
                found[name] = said, norms.sums
    ratios = [now / then for then, now in zip(*seconds.values(), strict=True)]
    same = found["before"][0] == found["now"][0] and torch.allclose(found["before"][1], found["now"][1])
    for name, took in seconds.items():
        print(f"{name:<8} {statistics.median(took):6.2f} s for {len(compared)} arms of {args.questions} questions")
    print(f"now / before: {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}; the same: {same}")


if __name__ == "__main__":
    main()
