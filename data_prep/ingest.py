"""The engine below the programs: entries and images in, checked shards out, by many processes, killed at any time.

Every entry is read, checked and fully decoded once here, so that training meets no bad sample. What does not pass goes
to ``quarantine.jsonl`` with the class of its fault (``image-missing``, ``marks``, ``roles``, ...); more than
``--max-bad`` of them stop the program without a manifest, because then a folder is missing rather than a file. Image
bytes are kept as they are; their extension comes from the bytes, since file names lie.

Decided here, and why:

* Shard ``i`` holds the good ones of entries ``i n`` to ``(i + 1) n``. So its bytes depend neither on the number of
  processes nor on what was finished before, and a shard is the unit of work and of resuming.
* A finished shard is a line of ``.journal.jsonl``, synced after the shard is. A run that was killed is run again and
  makes what has no line; with other arguments or another file it is refused, since the shards would not fit together.
  The manifest comes last.
* The main process parses and hands out entries, so that memory does not grow with the file. Workers end when it does.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.check import Convert, check_entry
from data_prep.engines import Engine, Local, Tally, add_engine_arguments
from data_prep.entries import Entries, RawEntry, Source, SourceError
from data_prep.images import Images
from data_prep.journal import Journal
from data_prep.media import UNREAD
from data_prep.processes import check_numbers
from data_prep.report import QUARANTINE, REPORT, described, difference, gigabytes, json_lines, listing, shortened
from dslight.data.sample import BadSample
from dslight.data.shards import MANIFEST, Manifest, ShardError, ShardInfo
from dslight.data.shards.elsewhere import AT, IN_PLACE, Place
from dslight.data.shards.format import size_problem
from dslight.data.shards.writer import check_key, locked, shard_name, stale_shards, write_shard
from dslight.files.atomic import remove_leftovers, write_atomically
from dslight.files.typed import read_json_if_there

SHARD_ENTRIES = 4000
"""About 0.2 GB of LLaVA-Pretrain, 0.6 GB of COCO."""
MAX_BAD = 0.001

_VERSION = 3
_SAMPLE = 200  # entries whose images are looked up to guess the disk space
_POLL = 0.2  # seconds
_MESSAGE = 400  # characters


@dataclass(frozen=True)
class Job:
    """Shards to make.

    Attributes:
        program: its name, for the manifest.
        out: the folder.
        name: first part of every key.
        entries: of the source.
        images: of the source.
        convert: an entry as the engine wants it (picklable).
        options: all that ``convert`` and ``entries`` depend on: with other ones a killed run is not continued.
        places: makes of the entries of a shard what finds its pictures where they lie already; they stay there, and the
            shards have their places (:mod:`dslight.data.shards.elsewhere`). ``None``: they are copied.
        files: those that they lie in, for the manifest.
        shard_entries, max_bad: as in :func:`add_arguments`.
        engine: what makes the shards.
    """

    program: str
    out: Path
    name: str
    entries: Source
    images: Images
    convert: Convert
    options: dict[str, Any] = field(default_factory=dict)
    places: Callable[[Any], Callable[[bytes], Place | None]] | None = None
    files: Sequence[dict[str, Any]] = ()
    shard_entries: int = SHARD_ENTRIES
    max_bad: float = MAX_BAD
    engine: Engine = field(default_factory=Local)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The engine's own options."""
    parser.add_argument("--max-bad", type=float, default=MAX_BAD, help="share of entries that may be quarantined")
    add_engine_arguments(parser)
    parser.add_argument("--shard-entries", type=int, default=SHARD_ENTRIES, help="entries per shard")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a program that makes one folder of one file."""
    parser.add_argument("--json", type=Path, required=True, help="the .json or .jsonl of entries")
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="[PREFIX=]PATH",
        help="a folder, .zip or .tar; names begin there. With PREFIX: names that begin with it. May be repeated",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="first part of every key: a-z, 0-9, _ and - (default: from the name of --out)")
    add_arguments(parser)


def key_name(out: Path) -> str:
    """The first part of the keys of a folder, from its name."""
    return out.resolve().name.lower().replace(".", "-")


def ingest(job: Job) -> dict[str, Any]:
    """Make the shards of a job, or what an earlier run has left to make; the report.

    Raises:
        SystemExit: with what to do, for everything that can be wrong with arguments, sources and disk.
    """
    _check(job)
    if (job.out / MANIFEST).exists():
        meta = _finished(job).meta
        print(f"{job.out}: finished already, from {meta.get('entries')} entries; delete the folder to make it again")
        path = job.out / REPORT
        return read_json_if_there(path, dict[str, Any]) or {}
    started = time.monotonic()
    try:
        with locked(job.out, patience=5):
            job, sample = _survey(job)
            journal = Journal(job.out, _head(job))
            _check_space(job, sample, len(journal.lines))
            kept = len(journal.lines)
            _make_shards(job, journal)
            return _finish(job, journal, kept, time.monotonic() - started)
    except SourceError as error:
        raise SystemExit(str(error)) from error
    except (ShardError, OSError) as error:
        raise SystemExit(f"{job.out}: {error}") from error


def _finished(job: Job) -> Manifest:
    """The manifest of what an earlier run has finished, which has to be all there and made of the same."""
    again = "delete the folder to make it again"
    try:
        manifest = Manifest.load(job.out)
    except ShardError as error:
        raise SystemExit(f"{error}; {again}") from error
    for shard in manifest.shards:
        if problem := size_problem(job.out, shard):
            raise SystemExit(f"{job.out / shard.name}: {problem}; {again}")
    now = _asked(job) if job.entries.there else {}
    if other := difference(manifest.meta, json.loads(json.dumps(now))):
        raise SystemExit(f"{job.out}: finished by another job: its {other}; write to another folder, or {again}")
    return manifest


def _check(job: Job) -> None:
    check_numbers(job.max_bad, shard_entries=job.shard_entries)
    try:
        check_key(_key(job, 0))
    except ValueError as error:
        raise SystemExit(f"--name: {error}") from error


def _key(job: Job, row: int) -> str:
    return f"{job.name}-{row:09d}"


def _survey(job: Job) -> tuple[Job, list[RawEntry]]:
    """Count the entries, and keep a sample of them."""
    if not isinstance(job.entries, Entries):
        if not len(job.entries):
            raise SystemExit(f"{job.entries.named}: has no rows")
        return job, []
    rng, sample, total = random.Random(0), [], 0
    for total, entry in enumerate(tqdm(iter(job.entries), desc=f"{job.name}: counting", unit="entry", leave=False), 1):
        if total <= _SAMPLE:
            sample.append(entry)
        elif (place := rng.randrange(total)) < _SAMPLE:
            sample[place] = entry
    if total < job.entries.at_least:
        wanted = "entries" if job.entries.keep is None else "entries as they are wanted here"
        raise SystemExit(f"{job.entries.named}: has {total} {wanted}; {job.name} needs {job.entries.at_least} or more")
    return replace(job, entries=replace(job.entries, total=total)), sample


def _head(job: Job) -> dict[str, Any]:
    """All that the bytes of the shards depend on, and where they come from."""
    return {**_asked(job), "version": _VERSION, "entries": len(job.entries)}


def _asked(job: Job) -> dict[str, Any]:
    """The part of it that is known before the entries are counted."""
    return {
        "program": job.program,
        "name": job.name,
        **job.entries.identity(),
        "shard_entries": job.shard_entries,
        "options": job.options,
        **({IN_PLACE: list(job.files)} if job.places else {}),
    }


def _check_space(job: Job, sample: list[RawEntry], done: int) -> None:
    need = 0 if job.places else job.entries.bytes or 0
    for raw in sample:
        try:
            images = job.convert(raw).images
            sizes = [job.images.size(image) if isinstance(image, str) else len(image) for image in images]
        except (BadSample, LookupError, TypeError, ValueError, AttributeError, RecursionError):
            continue
        need += len(json.dumps(raw)) + 1024 + sum(512 + size for size in sizes)  # headers and padding
    left = len(job.entries) - done * job.shard_entries
    need = int(need / (len(sample) or len(job.entries)) * max(0, left))
    free = shutil.disk_usage(job.out).free
    if need > free:
        raise SystemExit(f"{job.out}: about {gigabytes(need)} are needed, its disk has {gigabytes(free)} free")


def _make_shards(job: Job, journal: Journal) -> None:
    tally = job.engine.tally(len(journal.bad))
    pending: set[Future[dict[str, Any]]] = set()
    start = sum(_entries_of(job, number) for number in journal.lines)
    reads = (*job.images.paths, *job.entries.reads)
    with (
        job.engine.pool(reads, job.out, _begin, job, tally) as pool,
        tqdm(total=len(job.entries), initial=start, desc=job.name, unit="entry") as bar,
    ):

        def show() -> None:
            shards = sum(_entries_of(job, number) for number in journal.lines)
            bar.update(max(shards, start + tally.done) - bar.n)

        def collect(at_most: int) -> None:
            while len(pending) > at_most:
                done, _ = wait(pending, _POLL, FIRST_COMPLETED)
                for future in done:
                    journal.add(future.result())
                    pending.remove(future)
                    if len(journal.bad) > _allowed(job):  # of shards that know nothing of each other
                        raise Stopped([])
                show()

        try:
            for number, entries in job.entries.batches(job.shard_entries, set(journal.lines)):
                pending.add(pool.submit(_make_shard, number, entries))
                collect(at_most=job.engine.at_once)
            collect(at_most=0)
            show()
        except Stopped:
            _stop(pool, tally)
            _give_up(job, journal, pending)
        except BrokenProcessPool as error:
            raise SystemExit(
                f"{job.out}: a process was killed from outside (short of memory?); finished shards are kept: run it "
                "again, with fewer --workers"
            ) from error
        except KeyboardInterrupt:
            _stop(pool, tally)
            raise SystemExit(f"{job.out}: stopped; finished shards are kept: run it again to go on") from None
        except BaseException:
            _stop(pool, tally)
            raise


def _entries_of(job: Job, number: int) -> int:
    return min(job.shard_entries, len(job.entries) - number * job.shard_entries)


def _stop(pool: Executor, tally: Tally) -> None:
    tally.stop()
    pool.shutdown(wait=True, cancel_futures=True)


def _give_up(job: Job, journal: Journal, stopped: set[Future[dict[str, Any]]]) -> None:
    """Say why. Shards with bad entries are made again next time: what was missing may be there by then."""
    bad = journal.bad
    for future in stopped:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, Stopped):
            bad += error.lines
        elif not future.cancelled() and error is None:
            bad += future.result()["bad"]
    bad.sort(key=lambda line: line["row"])
    _write_lines(job.out / QUARANTINE, bad)
    journal.lines = {number: line for number, line in journal.lines.items() if not line["bad"]}
    journal.save()
    classes = listing(Counter(line["reason"] for line in bad))
    last = bad[-1]
    raise SystemExit(
        f"{len(bad)} bad entries and counting ({classes}); --max-bad {job.max_bad} allows {_allowed(job)} of "
        f"{len(job.entries)}; the last: entry {last['row']}: {last['message']}. All are in {job.out / QUARANTINE}"
    )


def _finish(job: Job, journal: Journal, kept: int, seconds: float) -> dict[str, Any]:
    shards = tuple(ShardInfo.parse(line["info"], journal.path) for line in journal.ordered)
    if not any(shard.records for shard in shards):
        bad = journal.bad
        _write_lines(job.out / QUARANTINE, bad)
        journal.lines.clear()  # what was missing may be there next time
        journal.save()
        if not bad:
            raise SystemExit(f"{job.out}: --where leaves out all {len(job.entries)} rows of {job.entries.named}")
        classes = listing(Counter(line["reason"] for line in bad))
        raise SystemExit(
            f"{job.out}: not one of {len(job.entries)} entries is good ({classes}). All are in {job.out / QUARANTINE}; "
            f"the first: entry {bad[0]['row']}: {bad[0]['message']}"
        )
    counts: Counter[str] = Counter()
    for line in journal.ordered:
        counts.update(line["counts"])
    unread = {name.removeprefix(UNREAD): counts.pop(name) for name in sorted(counts) if name.startswith(UNREAD)}
    bad = journal.bad
    report = {
        "entries": len(job.entries),
        "records": sum(shard.records for shard in shards),
        **{name: counts.pop(name, 0) for name in ("text_only", "images", "left_out")},
        **{name: count for name in ("videos", "videos_as_images") if (count := counts.pop(name, 0))},
        "bytes": sum(shard.bytes for shard in shards),
        "shards": len(shards),
        "bad": dict(sorted(Counter(line["reason"] for line in bad).items())),
        "changed": dict(sorted(counts.items())),
        "unread": unread,
        "shards_of_earlier_runs": kept,
        "seconds": round(seconds, 1),
    }
    remove_leftovers(job.out)  # of processes that died while others went on
    for stale in stale_shards(job.out, {shard.name for shard in shards}):
        stale.unlink(missing_ok=True)
    _write_lines(job.out / QUARANTINE, bad)
    write_atomically(job.out / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    Manifest(shards, {**journal.head, "quarantined": len(bad)}).save(job.out)
    journal.path.unlink()
    print(described(job.out, report))
    return report


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    write_atomically(path, json_lines(lines))


def _brief(value: Any) -> Any:
    """A value for the quarantine: it names the entry, and need not be whole."""
    text = value if isinstance(value, str) else json.dumps(value, default=lambda other: shortened(repr(other), 80))
    return json.loads(json.dumps(value, default=repr)) if len(text) <= _MESSAGE else shortened(text)


def _allowed(job: Job) -> int:
    return int(job.max_bad * len(job.entries))


# --- in a worker process
# --------------------------------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818 - a count and not an error of the program
    """Too many entries are bad, or another process said so; ``lines`` are those of the unfinished shard."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        super().__init__(lines)
        self.lines = lines


_work: tuple[Job, Tally] | None = None


def _begin(job: Job, tally: Tally) -> None:
    global _work  # in a process of its own
    _work = job, tally


def _make_shard(number: int, entries: Iterable[RawEntry | None]) -> dict[str, Any]:
    """Write a shard; its line of the journal."""
    assert _work is not None
    job, tally = _work
    counts: Counter[str] = Counter()
    bad: list[dict[str, Any]] = []
    find = job.places(entries) if job.places else None

    def records() -> Iterator[tuple[str, dict[str, bytes], int]]:
        for row, raw in enumerate(entries, number * job.shard_entries):
            if tally.stopped:
                raise Stopped(bad)
            if raw is None:
                counts["left_out"] += 1
                continue
            try:
                entry = check_entry(raw, job.convert, job.images)
            except BadSample as error:
                named = {"id": raw.get("id"), "image": raw.get("image") or raw.get("images")}
                named |= {"video": video} if (video := raw.get("video") or raw.get("videos")) else {}
                bad.append(
                    {"row": row, **{name: _brief(value) for name, value in named.items()}, "reason": error.reason}
                    | {"message": shortened(str(error), _MESSAGE)}
                )
                if tally.entry_bad() > _allowed(job):
                    raise Stopped(bad) from None
            else:
                counts.update(set(entry.changes))
                counts.update(images=entry.images, videos=entry.videos, videos_as_images=entry.films)
                counts["text_only"] += not entry.images and not entry.videos
                yield _key(job, row), _placed(entry.members, find, counts) if find else entry.members, entry.questions
            tally.entry_done()

    info = write_shard(job.out, shard_name(number), records())
    return {"shard": number, "info": asdict(info), "counts": dict(counts), "bad": bad}


def _placed(members: dict[str, bytes], find: Callable[[bytes], Place | None], counts: Counter[str]) -> dict[str, bytes]:
    """Members with the places of pictures instead of the pictures, but for those that no table holds as they are."""
    placed = {}
    for extension, data in members.items():
        if extension != "json" and (place := find(data)):
            placed[f"{extension}.{AT}"] = place.to_bytes()
        else:
            placed[extension] = data
            counts.update(["picture copied, as no column holds its bytes"] if extension != "json" else [])
    return placed
