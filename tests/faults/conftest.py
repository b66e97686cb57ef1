"""What the fault tests share."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import LIMIT, Ended, dslight, free_port, slurm, start, wait_all
from tally import Tries
from transformers import AutoTokenizer

from data_prep.digits import png, write_tokenizer
from dslight.data.shards import ShardReader, ShardWriter
from dslight.recipe.compose import compose, to_yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))  # for the modules that are no tests

# --- what a test tried
# ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def tries(request) -> Tries:
    """Counts for the line of the test's fault; a test that does not count is one try."""
    marker = request.node.get_closest_marker("fault")
    assert marker, "every test in this folder says which fault it tries: @pytest.mark.fault(number)"
    found = Tries(marker.args[0])
    request.node.user_properties.append(("fault", found.seen))
    return found


# --- data
# ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., Path]:
    """``write_shards(root, count, prefix)``: ``count`` conversations about one small picture, 7 to a shard."""

    def write(root: Path, count: int, prefix: str = "a", questions: bool = False, shard_records: int = 7) -> Path:
        rng = np.random.default_rng(0)
        with ShardWriter(root, shard_records=shard_records) as writer:
            for i in range(count):
                page = png(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
                record: dict[str, Any] = {"id": f"{prefix}{i}"}
                if questions:
                    record["questions"] = [{"question_id": f"{prefix}{i}", "question": "A1", "answers": ["1"]}]
                else:
                    turns = [{"from": "human", "value": "<image>\nA1"}, {"from": "gpt", "value": str(i % 10)}]
                    record["conversations"] = turns
                writer.write(f"{prefix}-{i:04d}", [page], record)
        return root

    return write


@pytest.fixture(scope="session")
def tokenizer(data):
    return AutoTokenizer.from_pretrained(data / "tokenizer")


@pytest.fixture(scope="session")
def data(tmp_path_factory, write_shards) -> Path:
    """Two training sources, ``a`` and ``b``, a validation source ``q``, and ``tokenizer``."""
    root = tmp_path_factory.mktemp("data")
    write_shards(root / "a", 33, "a")
    write_shards(root / "b", 21, "b")
    write_shards(root / "q", 7, "q", questions=True)
    write_tokenizer(root / "tokenizer")
    return root


@pytest.fixture(scope="session")
def recipe(pages, tmp_path_factory) -> Path:
    """The quickstart at tiny size: 9 steps of 8 records in two micro-batches a rank, saved after every third."""
    values = compose(
        ROOT / "recipes" / "quickstart" / "deepstack_l.yaml",
        [
            f"data.train=[{pages / 'train'}]", f"data.val.pages.root={pages / 'val'}", "data.val_batch_size=8",
            "data.global_batch_size=8", "data.micro_batch_size=2", "checkpoint_every=3", "stage.warmup_steps=2",
            f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}", "trainer.max_steps=9",
            "trainer.val_check_interval=24", "trainer.check_val_every_n_epoch=null", "trainer.log_every_n_steps=1",
            "trainer.enable_progress_bar=false", "trainer.callbacks=[{class_path: witness.Witness}]",
        ],
    )  # fmt: skip
    del values["weights"]
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(to_yaml(values))
    return file


@pytest.fixture
def poisoned(pages, tmp_path) -> tuple[Path, str, str]:
    """The training pages with one whose picture is cut; its shard and its key. Two ranks read it once an epoch."""
    reader = ShardReader(pages / "train")
    bad = 29
    with ShardWriter(tmp_path / "poisoned", shard_records=20) as writer:
        for row in range(len(reader)):
            members = reader.read(row)
            image = members["png"][:60] if row == bad else members["png"]
            writer.write(reader.locate(row)[1], [image], json.loads(members["json"]))
    poisoned = ShardReader(tmp_path / "poisoned")
    shard, key = poisoned.locate(bad)
    return poisoned.root, shard.name, key


# --- processes
# ----------------------------------------------------------------------------------------------------


@pytest.fixture(name="dslight")
def forked(tmp_path) -> Callable[..., Any]:
    """``dslight(*arguments, ranks=1)``: the program in a process per rank, forked, which is quick. Each knows its place
    by SLURM's variables, and nobody ends the others when one fails."""

    def run(*arguments: str, ranks: int = 1, timeout: float = LIMIT, **variables: str) -> Any:
        began, port, processes = time.monotonic(), free_port(), []
        outs = [tmp_path / f"output-{time.monotonic_ns()}-{rank}.txt" for rank in range(ranks)]
        if ranks > 1:
            arguments = (*arguments, f"trainer.devices={ranks}", "trainer.strategy=ddp")
        for rank, out in enumerate(outs):
            place = slurm(rank, ranks, port) if ranks > 1 else {}
            processes.append(start(dslight, list(arguments), variables=place | variables, out=out))
        codes = wait_all(processes, timeout)
        return Ended(codes, [out.read_text() for out in outs], time.monotonic() - began)

    return run
