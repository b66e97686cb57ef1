"""Small shards and a tokenizer for the data tests."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from data_prep.digits import write_tokenizer
from dslight.data.shards import ShardWriter

torch.set_num_threads(1)


def encode(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    return encode


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(root)
    return AutoTokenizer.from_pretrained(root)


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., Path]:
    """``write_shards(root, count, prefix="a", questions=0)``: ``count`` records of one small picture, 7 to a shard."""

    def write(root: Path, count: int, prefix: str = "a", questions: int = 0, shard_records: int = 7) -> Path:
        rng = np.random.default_rng(0)
        with ShardWriter(root, shard_records=shard_records) as writer:
            for i in range(count):
                image = encode(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
                record: dict[str, object] = {"id": f"{prefix}{i}"}
                if questions:
                    record["questions"] = [
                        {"question_id": f"{prefix}{i}-{q}", "question": "A1", "answers": [str(q)]}
                        for q in range(questions)
                    ]
                else:
                    turns = [{"from": "human", "value": "<image>\nA1"}, {"from": "gpt", "value": str(i % 10)}]
                    record["conversations"] = turns
                writer.write(f"{prefix}-{i:04d}", [image], record)
        return root

    return write
