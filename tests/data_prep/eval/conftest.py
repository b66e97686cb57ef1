"""Small evaluation sets in the layout of their authors, converted by the program and read back."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.eval.__main__ import main
from dslight.data.sample import Sample, parse_sample
from dslight.data.shards import ShardReader
from dslight.types import Question

sys.path.insert(0, str(Path(__file__).parent))  # for hub_rows


@dataclass
class Shards:
    """What the program wrote."""

    out: Path
    samples: list[Sample]
    records: list[dict]

    @property
    def questions(self) -> dict[str, Question]:
        return {question.question_id: question for sample in self.samples for question in sample.questions}

    @property
    def images(self) -> dict[str, tuple[bytes, ...]]:
        """By question."""
        return {question.question_id: sample.images for sample in self.samples for question in sample.questions}

    @property
    def facts(self) -> dict[str, dict]:
        """Of each question, all that stands in the shard."""
        return {question["question_id"]: question for record in self.records for question in record["questions"]}

    @property
    def report(self) -> dict:
        return json.loads((self.out / "report.json").read_text())

    @property
    def quarantine(self) -> list[dict]:
        return [json.loads(line) for line in (self.out / "quarantine.jsonl").read_text().splitlines()]


@pytest.fixture
def save(tmp_path) -> Callable[..., bytes]:
    """``save("val2014/a.jpg")`` writes an image of its own there; its bytes."""
    made = 0

    def write(name: str) -> bytes:
        nonlocal made
        made += 1
        pixels = np.random.default_rng(made).integers(0, 255, (8, 10, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG" if name.endswith("png") else "JPEG")
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(out.getvalue())
        return out.getvalue()

    return write


@pytest.fixture
def put(tmp_path) -> Callable[..., Path]:
    """``put("questions.json", content)`` writes a file of annotations."""

    def write(name: str, content: object) -> Path:
        path = tmp_path / "annotations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.fixture
def convert(tmp_path) -> Callable[..., Shards]:
    """``convert("vqav2", "--split", "val2014")``: the program on ``annotations/`` and ``images/``."""

    def run(name: str, *options: object, annotations: list[Path] | None = None) -> Shards:
        out = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}"
        (tmp_path / "images").mkdir(exist_ok=True)
        given = ["--annotations", *(annotations or [tmp_path / "annotations"])]
        arguments = [name, *given, "--images", tmp_path / "images", "--out", out, "--workers", 1, *options]
        main([str(argument) for argument in arguments])
        reader = ShardReader(out, check="full")
        members = [reader.read(row) for row in range(len(reader))]
        samples = [parse_sample(reader.locate(row)[1], members[row]) for row in range(len(reader))]
        return Shards(out, samples, [json.loads(x["json"]) for x in members])

    return run
