"""What the fault tests share, and a line per fault at the end of the run: how often it was tried, and survived."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from data_prep.digits import png, write_tokenizer
from dslight.data.shards import ShardReader, ShardWriter
from dslight.recipe.compose import compose, to_yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))  # for the modules that are no tests

FAULTS = {
    1: "kill -9 of the writer",
    2: "the disk is full",
    3: "an exception in the producer",
    4: "two writers on one folder",
    5: "a shard cut at any block",
    6: "a bit flipped",
    7: "shards deleted, renamed, reordered; index or manifest stale",
    8: "duplicate, dotted, unicode and long names; a format that lies",
    9: "the image zoo",
    10: "defects in a LLaVA json",
    11: "kill -9 of the trainer, same world",
    12: "kill -9 of the trainer, other world, workers and micro-batch",
    13: "resume at every kind of boundary",
    14: "two resumes in a row",
    15: "SIGTERM, also inside an accumulation",
    16: "a poisoned sample on one rank",
    17: "fewer shards than readers, or fewer records than a batch",
    18: "a data worker killed or hanging",
    19: "every start method under every launcher",
    20: "mixing and packing, exact also after a resume",
    21: "remote shards: a cut connection, a changed byte, a killed puller",
}

ELSEWHERE = {
    "tests/data/test_shards.py::test_a_killed_writer_": 1,
    "tests/data/test_shards.py::test_a_full_disk_": 2,
    "tests/data/test_shards.py::test_an_exception_in_the_producer_": 3,
    "tests/data/test_shards.py::test_a_second_writer_": 4,
    "tests/data/test_shards.py::test_a_shard_cut_at_any_block_": 5,
    "tests/data/test_shards.py::test_a_foreign_tar_cut_": 5,
    "tests/data/test_shards.py::test_every_flipped_bit_": 6,
    "tests/data/test_shards.py::test_missing_foreign_and_stale_files_": 7,
    "tests/data/test_shards.py::test_swapped_shards_": 7,
    "tests/data/test_shards.py::test_an_edited_manifest_": 7,
    "tests/data/test_shards.py::test_a_key_that_": 8,
    "tests/data_prep/test_zoo.py::": 9,
    "tests/data_prep/test_llava.py::": 10,
    "tests/data/test_resume.py::test_a_killed_run_resumes_with_": 12,
    "tests/data/test_resume.py::test_a_run_killed_after_any_step_": 13,
    "tests/data/test_resume.py::test_a_resumed_run_": 14,
    "tests/data/test_resume.py::test_a_checkpoint_inside_an_accumulation_": 15,
    "tests/distributed/test_fit.py::test_an_error_on_one_rank_": 16,
    "tests/data/test_resume.py::test_packed_epochs_": 20,
    "tests/data/test_resume.py::test_a_killed_run_of_any_order_": 20,
    "tests/data/test_resume.py::test_resuming_with_": 20,
    "tests/data/test_remote.py::test_a_cut_connection_": 21,
    "tests/data/test_remote.py::test_what_never_arrives_whole_": 21,
    "tests/data/test_remote.py::test_a_process_that_is_killed_while_it_pulls_": 21,
}
"""Tests of other folders that are a fault's fast representative, by the beginning of their names."""


# --- the line per fault
# ----------------------------------------------------------------------------------------------------


@dataclass
class Tries:
    """How often a test tried its fault."""

    number: int
    count: int = 0
    survived: int = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """A try; it is survived if nothing is raised."""
        self.count += 1
        yield
        self.survived += 1


@pytest.fixture(autouse=True)
def tries(request) -> Tries:
    """Counts for the line of the test's fault; a test that does not count is one try."""
    marker = request.node.get_closest_marker("fault")
    assert marker, "every test in this folder says which fault it tries: @pytest.mark.fault(number)"
    found = Tries(marker.args[0])
    request.node.user_properties.append(("fault", found))
    return found


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line per fault that was tried."""
    tried: dict[int, list[int]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if not isinstance(report, pytest.TestReport) or (outcome == "passed" and report.when != "call"):
                continue
            number = next((n for name, n in ELSEWHERE.items() if report.nodeid.startswith(name)), None)
            found = next((value for name, value in report.user_properties if name == "fault"), None)
            if found is None and number is None:
                continue
            found = found or Tries(number or 0)
            count, survived = found.count, found.survived
            if count == survived and (count == 0 or outcome != "passed"):
                count, survived = count + 1, survived + (outcome == "passed")
            line = tried.setdefault(found.number, [0, 0])
            line[0] += count
            line[1] += survived
    if tried:
        terminalreporter.section("faults")
        for number, (count, survived) in sorted(tried.items()):
            terminalreporter.write_line(f"{number:2}  {FAULTS[number]:<64} {count:4} tries, {survived:4} survived")


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


@pytest.fixture
def dslight(tmp_path) -> Callable[..., Any]:
    """``dslight(*arguments, ranks=1)``: the program in a process per rank, forked, which is quick. Each knows its place
    by SLURM's variables, and nobody ends the others when one fails."""
    from processes import Ended, free_port, program, slurm, wait_all

    import dslight.run.result
    import dslight.vlm  # noqa: F401  what every process would import: forked, they have it

    def run(*arguments: str, ranks: int = 1, timeout: float = 120, **variables: str) -> Any:
        began, port, processes = time.monotonic(), free_port(), []
        outs = [tmp_path / f"output-{time.monotonic_ns()}-{rank}.txt" for rank in range(ranks)]
        if ranks > 1:
            arguments = (*arguments, f"trainer.devices={ranks}", "trainer.strategy=ddp")
        for rank, out in enumerate(outs):
            place = slurm(rank, ranks, port) if ranks > 1 else {}
            context = multiprocessing.get_context("fork")
            processes.append(context.Process(target=program, args=(list(arguments), place | variables, out)))
            processes[-1].start()
        codes = wait_all(processes, timeout)
        return Ended(codes, [out.read_text() for out in outs], time.monotonic() - began)

    return run
