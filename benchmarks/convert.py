"""How fast does parquet become shards? Rows per second of one core, beside `datasets` with webdataset's ShardWriter.

    python benchmarks/convert.py             # 5 rounds of 2,000 rows (5 minutes); --quick to see it run

The rows are those of `benchmarks/data.py` (640 x 480, JPEG quality 90, 70 kB; conversations of three rounds), as the
`datasets` library writes them:

    ours                    data_prep.tables: every picture decoded once and checked, hashes, index and manifest
    datasets + ShardWriter  the usual loop: rows with their pictures, which the writer encodes again
    the same, undecoded     Image(decode=False): bytes are copied, and nothing is looked at

Each arm runs in a process of its own, in a new order in each round. Counted is processor time of that process and its
workers, without imports. Quote medians.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
ARMS = ("ours", "datasets + ShardWriter", "the same, undecoded")
PICTURES = 40  # different ones


def write_rows(path: Path, count: int) -> None:
    """A parquet file as `datasets` writes it."""
    import datasets

    from benchmarks.data import conversation, picture

    numbers, picks, words = np.random.default_rng(0), random.Random(0), " ".join(topics.values()).split()
    encoded = []
    for _ in range(min(count, PICTURES)):
        out = io.BytesIO()
        picture(numbers).save(out, "JPEG", quality=90)
        encoded.append(out.getvalue())
    rows = [
        {
            "id": str(i),
            "image": {"bytes": encoded[i % len(encoded)], "path": None},
            "conversations": conversation(picks, words),
        }
        for i in range(count)
    ]
    text = datasets.Value("string")
    features = {"id": text, "image": datasets.Image(), "conversations": datasets.List({"from": text, "value": text})}
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(str(path))


def spent() -> float:
    """Seconds of processor time of this process and those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def run(arm: str, path: Path, out: Path) -> float:
    """Convert once; processor seconds."""
    if arm == "ours":
        from data_prep.tables import main

        before = spent()
        main([str(path), "--out", str(out), "--workers", "1"])
        return spent() - before
    import datasets
    import webdataset

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(path.parent / "cache"))
    raw = arm != ARMS[1]
    if raw:
        rows = rows.cast_column("image", datasets.Image(decode=False))
    before = spent()
    out.mkdir()
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=4000, verbose=0) as writer:
        for i, row in enumerate(rows):
            text = {"id": row["id"], "conversations": row["conversations"]}
            image = row["image"]["bytes"] if raw else row["image"]
            writer.write({"__key__": f"{i:09d}", "jpg": image, "json": text})
    return spent() - before


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arm", nargs=3, metavar=("ARM", "PARQUET", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        arm, path, out = args.arm
        print("\nSECONDS", json.dumps(run(arm, Path(path), Path(out))))
        return
    rounds, count = (1, 20) if args.quick else (args.rounds, args.rows)
    speeds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_rows(path, count)
        for number in range(rounds):
            for arm in random.Random(number).sample(ARMS, len(ARMS)):
                call = [sys.executable, __file__, "--arm", arm, str(path), str(Path(folder) / "out")]
                done = subprocess.run(call, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                speeds[arm].append(count / json.loads(done.stdout.rpartition("SECONDS")[2]))
                shutil.rmtree(Path(folder) / "out")
    middle = statistics.median(speeds[ARMS[1]])
    print("| way | rows/s of a core | times datasets + ShardWriter |\n| --- | ---: | ---: |")
    for arm, found in speeds.items():
        print(f"| {arm} | {statistics.median(found):.0f} | {statistics.median(found) / middle:.2f} |")


if __name__ == "__main__":
    main()
