"""What a rank holds of large data: the index in memory, and how long it takes to read.

    python -m benchmarks.index                          # two million records, half a minute
    python -m benchmarks.index --records 20000000       # the table of docs/scaling.md; 4 GB of disk

Shards are generated whose tars are holes: of the right size, with no content but the header that they begin with.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from dslight.data.shards import Index, Manifest, ShardInfo, index_name
from dslight.data.shards.format import load_index
from dslight.files.digest import sha256

PER_SHARD = 10_000
EXTENSIONS = (b"jpg", b"json", b"txt")


def generate(root: Path, shards: int, per_shard: int, members: int = 2) -> None:
    """Write shards of records with ``members`` members each of 1 to 200 kB, and their indexes."""
    rng = np.random.default_rng(0)
    infos = []
    for number in range(shards):
        count = members * per_shard
        sizes = rng.integers(1000, 200_000, count)
        index = Index(
            keys=np.array([f"llava-{number * per_shard + k:09d}".encode() for k in range(per_shard)]),
            first=np.arange(0, count + 1, members),
            extensions=np.array([*EXTENSIONS[:members]] * per_shard),
            offsets=512 + np.cumsum(sizes) - sizes,
            sizes=sizes,
            hashes=rng.integers(0, 256, (count, 16), dtype=np.uint8),
            questions=np.zeros(per_shard, np.int32),
        )
        name, data, size = f"shard-{number:06d}.tar", index.to_bytes(), int(sizes.sum()) + 10_000
        (root / index_name(name)).write_bytes(data)
        with (root / name).open("wb") as file:
            file.write(tarfile.TarInfo(f"{index.key(0)}.{index.extension(0)}").tobuf())
            file.truncate(size)
        infos.append(ShardInfo(name, size, f"{number:064d}", per_shard, 0, sha256(data)))
    Manifest(tuple(infos)).save(root)


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--members", type=int, default=3, choices=(1, 2, 3), help="of each record")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), -(-args.records // PER_SHARD), PER_SHARD, args.members)
        began = time.process_time()
        shards = Manifest.load(Path(folder)).shards
        index, memory = Index.concatenate([load_index(Path(folder), shard) for shard in shards])
        seconds = time.process_time() - began
    if memory is None:
        raise SystemExit("this system has no memory that processes share")
    print(
        f"{len(index):,} records of {args.members} members: {memory.size / len(index):.1f} bytes a record in memory, "
    )
    print(f"{memory.cold / len(index):.1f} in a file without a name; {seconds:.1f} s of CPU to read")


if __name__ == "__main__":
    main()
