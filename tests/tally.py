"""A line per fault at the end of the run: how often it was tried, and survived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class Tries:
    """How often a test tried its fault."""

    number: int
    seen: list[int] = field(init=False)
    """Number, tries, survived: what a process of pytest-xdist can tell another."""

    def __post_init__(self) -> None:
        self.seen = [self.number, 0, 0]

    @property
    def count(self) -> int:
        return self.seen[1]

    @contextmanager
    def one(self) -> Iterator[None]:
        """A try; it is survived if nothing is raised."""
        self.seen[1] += 1
        yield
        self.seen[2] += 1


def lines(reports: Iterable[tuple[str, Any]]) -> list[str]:
    """One per fault that was tried, of the outcomes of tests and pytest's reports of them."""
    tried: dict[int, list[int]] = {}
    for outcome, report in reports:
        elsewhere = next((n for name, n in ELSEWHERE.items() if report.nodeid.startswith(name)), None)
        found = next((value for name, value in report.user_properties if name == "fault"), None)
        if found is None and elsewhere is None:
            continue
        number, count, survived = found or (elsewhere, 0, 0)
        if count == survived and (count == 0 or outcome != "passed"):
            count, survived = count + 1, survived + (outcome == "passed")
        line = tried.setdefault(number, [0, 0])
        line[0] += count
        line[1] += survived
    return [
        f"{number:2}  {FAULTS[number]:<64} {count:4} tries, {survived:4} survived"
        for number, (count, survived) in sorted(tried.items())
    ]
