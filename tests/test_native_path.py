"""The whole path of images as they are: shards of mixed sizes, ``dslight fit`` with a tiny tower of any size,
validation, plan, answers; and that what only the enlarged view shows is learnt through its stacks.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dslight
from data_prep.digits import png, write_tokenizer
from dslight.cli import main
from dslight.data.shards import ShardWriter
from dslight.recipe.compose import compose, to_yaml

TRAIN = {"vision_encoder": {"lr": 3e-3}, "projector": {"lr": 3e-3}, "language_model": {"lr": 3e-3}}
SHAPES = [(16, 16), (8, 32), (32, 8)]
"""Of the base views of pages, (height, width), each at half the page's size: 2 x 2, 1 x 4 and 4 x 1 pieces."""


def page(kind: int, shape: tuple[int, int], rng: np.random.Generator) -> bytes:
    """Lines of one pixel across, along, or a chequer: all the same grey at half size."""
    rows, cols = np.mgrid[: shape[0] * 2, : shape[1] * 2]
    ink = [cols % 2, rows % 2, (rows + cols) % 2][kind]
    noisy = np.clip(255 - 200 * ink + rng.normal(0, 8, ink.shape), 0, 255).astype(np.uint8)
    return png(noisy)


def write(root: Path, count: int, seed: int, asks: bool) -> None:
    rng = np.random.default_rng(seed)
    with ShardWriter(root) as writer:
        for i in range(count):
            kinds = rng.integers(0, 3, int(rng.integers(0, 3))).tolist() if not asks else [int(rng.integers(0, 3))]
            images = [page(kind, SHAPES[int(rng.integers(0, len(SHAPES)))], rng) for kind in kinds]
            question, answer = "<image> " * len(images) + "A1", " ".join(map(str, kinds)) or "9"
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            asked = [{"question_id": f"q{i}", "question": "A1", "answers": [answer], "type": ""}]
            writer.write(f"page-{i:03d}", images, {"questions": asked} if asks else {"conversations": turns})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("native")
    write(root / "train", 96, 0, asks=False)
    write(root / "val", 24, 1, asks=True)
    write_tokenizer(root / "tokenizer")
    return root


def recipe(root: Path, **sections: Any) -> dict[str, Any]:
    model = {
        "vision_encoder": {
            "NativeVisionEncoder": {
                "config": {
                    "model_type": "qwen3_vl_vision", "depth": 4, "hidden_size": 32, "intermediate_size": 64,
                    "num_heads": 2, "patch_size": 4, "num_position_embeddings": 64, "initializer_range": 0.1,
                }
            }
        },
        "projector": {"PixelShuffleMLPProjector": {"factor": 2}},
        "stacking": {"DeepStackL": {"crops": 4}},
        "language_model": {
            "HFCausalLM": {
                "config": {
                    "model_type": "qwen3", "vocab_size": 30, "hidden_size": 48, "intermediate_size": 96,
                    "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
                    "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
                    "initializer_range": 0.1,
                },
                "tokenizer": str(root / "tokenizer"),
            }
        },
    }  # fmt: skip
    made = {
        "seed": 0,
        "model": {**model, **sections.pop("model", {})},
        "data": {
            "train": [str(root / "train")], "template": "bare", "global_batch_size": 8, "micro_batch_size": 4,
            "val": {"pages": {"root": str(root / "val"), "benchmark": "exact"}},
            "views": {"NativeViews": {"min_pixels": 64, "max_pixels": 256, "up": 2}}, "val_batch_size": 8,
            **sections.pop("data", {}),
        },
        "stage": {"train": TRAIN},
        "trainer": {
            "accelerator": "cpu", "max_steps": 3, "enable_progress_bar": False, "log_every_n_steps": 1,
            **sections.pop("trainer", {}),
        },
    }  # fmt: skip
    return {**made, **sections}


def saved(values: dict[str, Any], file: Path) -> str:
    file.write_text(to_yaml(values))
    return str(file)


ARMS = {
    "stacks of the enlarged view": {},
    "packed rows": {"data": {"order": {"pack": True}, "max_length": 160}},
    "rows of like length": {"data": {"order": {"group_by": ["length"]}}},
    "inside the encoder": {
        "model": {"stacking": {"DeepStackV": {"crops": 4, "start": 0}}},
        "trainer": {"max_steps": 2},
    },
    "layers of the tower, no enlarged view": {
        "model": {
            "stacking": {"DeepStackTaps": {"taps": [1, 2]}},
            "projector": {
                "PixelShuffleMLPProjector": {"hidden": "merged", "norm": "pre", "stack_norm": "post", "per_level": True}
            },
        },
        "data": {"views": {"NativeViews": {"min_pixels": 64, "max_pixels": 256}}},
    },
}


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_on_shards_of_mixed_sizes_trains_validates_and_answers(arm, root, tmp_path):
    file = saved(recipe(root, **ARMS[arm]), tmp_path / "recipe.yaml")
    assert main(["fit", file, f"run_dir={tmp_path / 'run'}"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "accuracy" in json.dumps(result)
    model = dslight.load(tmp_path / "run")
    assert result["stacked_tokens"] == result["context_length"] * model.stacking.num_stacks
    rng = np.random.default_rng(5)
    pictures = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((20, 70), (64, 30), (9, 9))]
    together = model.answer(["A1", "A1 A1", "A1", "A1"], [pictures[0], pictures[1:], pictures[2], None])
    alone = [model.answer("A1", pictures[0]), model.answer("A1 A1", pictures[1:]), model.answer("A1", pictures[2])]
    assert together[:3] == alone
    batch = model.processor.ask(["A1", "A1"], [pictures[0], pictures[1:]])
    assert len(set(batch.views.pieces)) == 3
    assert int(batch.visual_mask.sum()) == sum(rows * cols for rows, cols in batch.views.pieces)


def test_what_is_seen_only_when_enlarged_is_learnt_by_stacks_of_any_size(root, tmp_path):
    """Three rulings that look alike in the base view: chance is a third."""
    values = recipe(root, trainer={"max_steps": 60, "limit_val_batches": 0}, stage={
        "train": TRAIN, "warmup_steps": 5,
    })  # fmt: skip
    assert main(["fit", saved(values, tmp_path / "recipe.yaml"), f"run_dir={tmp_path / 'run'}"]) == 0
    model = dslight.load(tmp_path / "run")
    rng = np.random.default_rng(7)
    kinds = [int(kind) for kind in rng.integers(0, 3, 24)]
    pages = [[page(kind, SHAPES[i % len(SHAPES)], rng)] for i, kind in enumerate(kinds)]
    answers = model.answer(["A1"] * len(kinds), pages, max_new_tokens=2)
    right = sum(answer.strip().split()[:1] == [str(kind)] for answer, kind in zip(answers, kinds, strict=True))
    assert right >= 20, answers


def test_a_plan_tells_what_an_image_of_a_size_costs_and_what_sizes_there_are(root, tmp_path, capsys):
    file = saved(recipe(root), tmp_path / "recipe.yaml")
    found = {}
    for image in ("8x16", "16x16"):
        assert main(["plan", file, "--image", image, "--sizes", str(root / "train"), "--json"]) == 0
        found[image] = json.loads(capsys.readouterr().out)
    small, large = found.values()
    assert (small["context_length"], small["visual_tokens"]) == (2, (2 + 8) * 4)
    assert (large["context_length"], large["visual_tokens"]) == (4, (4 + 16) * 4)
    encoder = [next(part for part in made["parts"] if part["name"] == "vision_encoder") for made in (small, large)]
    assert encoder[1]["forward_flops"] > 2 * encoder[0]["forward_flops"]
    assert large["image_size"] == [16, 16]
    assert set(large["sizes"]["slots"].values()) == {4}
    assert set(large["sizes"]["patches"].values()) == {(4 + 16) * 4}
    assert set(large["sizes"]["height"].values()) == {16, 32, 64}
    assert main(["plan", file, "--no-cost"]) == 0
    assert "times as large, of one image (--image)" in capsys.readouterr().out
    assert main(["plan", file, "--image", "wide"]) == 1
    assert "--image: 'wide'; height and width" in capsys.readouterr().err


@torch.no_grad()
def test_lengths_that_are_counted_are_those_of_the_rows(root, tmp_path):
    """Known from the heads of the images, before a pixel is decoded."""
    from dslight.data.caches.lengths import Measure, lengths_of
    from dslight.data.records import read_sample
    from dslight.data.shards import ShardReader
    from dslight.recipe.build import build, connect

    experiment = build(compose(saved(recipe(root), tmp_path / "recipe.yaml")))
    connect(experiment)
    data = experiment.data
    rows, slots, reader = data.rows, data.processor.slots, ShardReader(root / "train")
    measure = Measure(rows.template, "bare", rows.tokenizer, data.views, rows.image_size, slots)
    lengths = lengths_of(reader, measure, tmp_path, progress=False)
    for row in range(len(reader)):
        batch = data.processor.collate([rows.train(read_sample(reader, row))])
        assert batch.input_ids.shape[1] == abs(int(lengths[row]))
        assert (batch.views is None) == (lengths[row] < 0)
