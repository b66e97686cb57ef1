"""A few tiny shards, a recipe over them, and ``dslight`` as processes of its own, one or several ranks."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from data_prep.digits import NAMES, draw_pages, write_tokenizer
from dslight.data.plan import PlanSource, TrainPlan
from dslight.data.shards import ShardWriter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for the modules that are no tests

from launches import STRATEGY, Ended, fork, launch, strategy  # noqa: E402

GLOBAL_BATCH = 4
STEPS = 6
RECORDS = GLOBAL_BATCH * STEPS
QUESTIONS = 7  # does not divide by two ranks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of this folder may launch processes several times, on a machine that does more than this."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))


def share(step: int, rank: int) -> list[int]:
    """The records that one of two ranks reads in a step: the plan is known before the shards are written."""
    plan = TrainPlan((PlanSource("", RECORDS),), seed=0, global_batch=GLOBAL_BATCH)
    return plan.micro_batches(0, 0, rank, 2, GLOBAL_BATCH // 2)[step].tolist()


TEXT_ONLY = {*share(1, 1), *share(3, 0), *share(4, 0), *share(4, 1)}
"""Records without an image: all that rank 1 reads in step 1, rank 0 in step 3, and both in step 4."""


def png(page: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(page).save(out, "PNG")
    return out.getvalue()


def write_train(root: Path, broken: int | None = None) -> None:
    """``RECORDS`` conversations about pages of digits, some without a picture; that of record ``broken`` is cut
    short.
    """
    rng = np.random.default_rng(0)
    pages, digits = draw_pages(RECORDS, "train", rng)
    with ShardWriter(root, shard_records=10) as writer:
        for i, (page, labels) in enumerate(zip(pages, digits, strict=True)):
            turns = []
            for cell in rng.permutation(16)[: 3 + i % 3]:
                turns += [{"from": "human", "value": NAMES[cell]}, {"from": "gpt", "value": str(labels.flat[cell])}]
            if i not in TEXT_ONLY:
                turns[0]["value"] = "<image>\n" + turns[0]["value"]
            image = png(page)[:60] if i == broken else png(page)
            writer.write(f"train-{i:04d}", [] if i in TEXT_ONLY else [image], {"conversations": turns})


def write_val(root: Path) -> None:
    """``QUESTIONS`` questions, one per page, some of them without a picture."""
    rng = np.random.default_rng(1)
    pages, digits = draw_pages(QUESTIONS, "val", rng)
    with ShardWriter(root, shard_records=10) as writer:
        for i, (page, labels) in enumerate(zip(pages, digits, strict=True)):
            cell = int(rng.integers(16))
            question = {
                "question_id": f"q{i}",
                "question": NAMES[cell],
                "answers": [str(labels.flat[cell])],
                "type": "",
            }
            writer.write(f"val-{i:04d}", [] if i == 5 else [png(page)], {"questions": [question]})


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    write_train(root / "train")
    write_val(root / "val")
    write_tokenizer(root / "tokenizer")
    return root


@pytest.fixture(scope="session")
def broken_shards(tmp_path_factory) -> tuple[Path, str]:
    """Shards with a broken picture that rank 1 alone reads, in step 2; and the key of its record."""
    root, record = tmp_path_factory.mktemp("broken"), share(2, 1)[0]
    write_train(root, broken=record)
    return root, f"train-{record:04d}"


STACKING = {
    "DeepStackL": {"num_stacks": 4, "start": 1},
    "DeepStackV": {"num_stacks": 4, "start": 1},
}


OPTIMIZER = {
    "SGD": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}},
    "AdamW": {"class_path": "torch.optim.AdamW"},
}
"""Adam hides a gradient that is off by a factor, and makes steps of noise where the gradient is zero; SGD does
neither.
"""

CLIP = {"DeepStackL": None, "DeepStackV": 1.0}
"""So does clipping: off in one of the two."""


@pytest.fixture(scope="session")
def recipe(shards, tmp_path_factory) -> Callable[..., Path]:
    """``recipe(stacking, frozen=False, **more)``: a recipe file; ``more`` replaces top-level keys."""

    def write(stacking: str = "DeepStackL", frozen: bool = False, optimizer: str = "SGD", **more: Any) -> Path:
        how = {"lr": 1e-2, "weight_decay": 0.02}
        train = {"projector": how, "language_model": how} | ({} if frozen else {"vision_encoder": how})
        vit = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 5, "num_heads": 2, "weight_init": "jax"}
        encoder = {"name": "vit_tiny_patch16_224", "model_args": vit}
        decoder = {
            "model_type": "llama", "vocab_size": 30, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 128, "initializer_range": 0.1, "tie_word_embeddings": True,
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        }  # fmt: skip
        values = {
            "name": "distributed",
            "model": {
                "vision_encoder": {"class_path": "dslight.components.TimmEncoder", "init_args": encoder},
                "projector": {"class_path": "dslight.components.MLPProjector", "init_args": {"per_level": True}},
                "stacking": {"class_path": f"dslight.components.{stacking}", "init_args": STACKING[stacking]},
                "language_model": {
                    "class_path": "dslight.components.HFCausalLM",
                    "init_args": {"config": decoder, "tokenizer": str(shards / "tokenizer")},
                },
            },
            "stage": {"train": train, "warmup_steps": 2, "optimizer": OPTIMIZER[optimizer]},
            "data": {
                "train": [str(shards / "train")],
                "val": {"pages": {"root": str(shards / "val")}},
                "views": {"class_path": "dslight.data.images.GridViews"},
                "template": "bare",
                "global_batch_size": GLOBAL_BATCH,
                "val_batch_size": 1,
            },
            "checkpoint_every": 100,
            "trainer": {
                "accelerator": "cpu", "max_steps": STEPS, "gradient_clip_val": CLIP[stacking], "log_every_n_steps": 1,
                "enable_progress_bar": False, "callbacks": [{"class_path": "probe.Probe"}],
            },
        }  # fmt: skip
        file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
        file.write_text(json.dumps(values | more))  # JSON is YAML
        return file

    return write


@dataclass(frozen=True)
class Done(Ended):
    """What a launch left behind."""

    folder: Path

    def seconds_since_the_failure(self) -> float:
        """From the probe's failure to the end of all processes."""
        return (self.folder / "output.txt").stat().st_mtime - (self.folder / "failed").stat().st_mtime

    def probe(self, rank: int) -> dict[str, Any]:
        """What the probe saw on a rank."""
        return json.loads((self.folder / f"probe-{rank}.json").read_text())

    def losses(self) -> dict[int, float]:
        """``train/loss`` by step, over all attempts."""
        with (self.folder / "run" / "metrics.csv").open() as file:
            return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}

    def weights(self) -> dict[str, Tensor]:
        """Every tensor of every part that trained."""
        files = (self.folder / "run" / "weights").glob("*.safetensors")
        return {f"{file.stem}.{name}": tensor for file in files for name, tensor in load_file(file).items()}

    def answers(self) -> list[dict[str, Any]]:
        """Every question with its answer."""
        file = self.folder / "run" / "questions" / "pages.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]

    def result(self) -> dict[str, Any]:
        """``result.json``."""
        return json.loads((self.folder / "run" / "result.json").read_text())


@pytest.fixture(scope="session")
def fit() -> Callable[..., Done]:
    """``dslight fit`` of a recipe with a process per rank, forked or started by torchrun."""

    def run(
        recipe: Path,
        folder: Path,
        *overrides: str,
        ranks: int = 1,
        sharded: bool | None = None,
        torchrun: bool = False,
        **env: str,
    ) -> Done:
        """``folder`` takes the run, its output and the probe's files; ``sharded``: with FSDP2 (default: when there
        are several ranks).
        """
        if sharded or (sharded is None and ranks > 1):
            overrides = (strategy(STRATEGY, data_parallel_size=ranks, tensor_parallel_size=1), *overrides)
        call = ["fit", str(recipe), f"run_dir={folder / 'run'}", *overrides]
        ended = launch(folder, ["-m", "dslight", *call], ranks, **env) if torchrun else fork(folder, call, ranks, **env)
        return Done(ended.code, ended.output, ended.seconds, folder)

    return run


@pytest.fixture(scope="session")
def done_in() -> Callable[[Path, Ended], Done]:
    """What a launch left behind in a folder."""
    return lambda folder, ended: Done(ended.code, ended.output, ended.seconds, folder)
