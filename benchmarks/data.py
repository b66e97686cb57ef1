"""How fast are batches made? Samples per second of one core, from stored JPEG to a batch of views and token ids.

    python benchmarks/data.py                # --passes 3 --samples 128 for a look (3 minutes); --quick to see it run
    python benchmarks/data.py --only start   # start-up time and memory with an index of 1.3 million records

The same rows of the same images (640 x 480, JPEG quality 90, noise of many octaves, 70 kB) and conversations (three
rounds), in batches of 16:

    ours            shards read by dslight's loader, ``data.pixels: fast``
    ours, kept      the same with ``data.keep_tokens: true``: text is tokenized before the first step
    in place        the same as ours, the pictures read from parquet that the datasets library wrote
    ours, pillow    the same as ours with ``data.pixels: pillow``
    webdataset      the same tars in webdataset's own pipeline: shuffle, Pillow decode, Pillow resize, batched
    json + folder   LLaVA's way: a json and a folder of files, a torch Dataset and DataLoader, Pillow
    limit           simplejpeg and torch's resize of the bytes in memory, and nothing else, in as many processes
    limit, tokens   the same, and the tokenizer on each text: what no loader can leave out

Each round runs every arm once at every number of workers, in a new order, so that a drifting machine drifts for all; a
ratio is taken within a round. Counted is processor time of this process and its workers, between two batches in the
middle of an epoch; the clock of the wall is given beside it. Quote medians.
"""

from __future__ import annotations

import argparse
import inspect
import io
import json
import multiprocessing
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import cycle, islice, product
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import datasets
import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
import webdataset.compat
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from data_prep.tables import main as tables
from dslight.data.collate import Collate, Item
from dslight.data.conversation import template
from dslight.data.datamodule import ShardData
from dslight.data.images import GridViews, SingleView
from dslight.data.sample import Pixels, parse_turns
from dslight.data.shards import ShardWriter
from dslight.data.shards.format import Index, Manifest, ShardInfo
from dslight.data.transport.workers import Start
from dslight.files.digest import file_sha256, sha256
from dslight.layout import SlotLayout
from dslight.types import Grid

VIEWS: dict[str, tuple[int, Grid]] = {"336": (336, (0, 0)), "672": (672, (0, 0)), "336 + 2x2 of 672": (336, (2, 2))}
"""Side of a view, and (rows, columns) of crops."""
ARMS = ("ours", "ours, kept", "in place", "ours, pillow", "webdataset", "json + folder", "limit", "limit, tokens")
_BESIDE = ("limit", "limit, tokens", "webdataset", "ours")
BATCH, EDGE = 16, 4
"""Samples of a batch; batches before and behind those that are counted (more than workers read ahead)."""
SLOTS = SlotLayout((24, 24))  # the positions of an image, the same for all views


# --- what is read


def picture(rng: np.random.Generator, height: int = 480, width: int = 640) -> Image.Image:
    """Noise of many octaves, each weaker the finer it is, as in photographs."""
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 9):
        coarse = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32)
        planes = [
            Image.fromarray(np.ascontiguousarray(coarse[..., c])).resize((width, height), Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        total += np.stack([np.asarray(plane) for plane in planes], -1) * 0.72**octave
    total = total / total.std() * 45 + 128 + rng.normal(size=total.shape) * 3
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def conversation(rng: random.Random, words: list[str]) -> list[dict[str, str]]:
    """Three rounds of the usual lengths: questions of a dozen words, answers of forty."""
    turns = []
    for i in range(6):
        start = rng.randrange(len(words) - 50)
        text = " ".join(words[start : start + (12, 40)[i % 2]])
        turns.append({"from": ("human", "gpt")[i % 2], "value": f"<image>\n{text}" if i == 0 else text})
    return turns


@dataclass(frozen=True)
class Data:
    """The same records as shards, as parquet with an index, as a json with a folder, and in memory."""

    shards: Path
    placed: Path
    folder: Path
    jpegs: list[bytes]
    texts: list[str]
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def make(cls, root: Path, samples: int) -> Data:
        """Write them."""
        corpus = list(topics.values())
        numbers, picks, words = np.random.default_rng(0), random.Random(0), " ".join(corpus).split()
        shards, folder, jpegs, records = root / "shards", root / "folder", [], []
        folder.mkdir(parents=True)
        with ShardWriter(shards, shard_records=-(-samples // 4)) as writer:  # webdataset needs a shard for each worker
            for i in range(samples):
                out = io.BytesIO()
                picture(numbers).save(out, "JPEG", quality=90)
                record = {"id": f"{i:06d}", "image": f"{i:06d}.jpg", "conversations": conversation(picks, words)}
                writer.write(record["id"], [out.getvalue()], record)
                (folder / record["image"]).write_bytes(out.getvalue())
                jpegs.append(out.getvalue())
                records.append(record)
        (root / "folder.json").write_text(json.dumps(records))
        placed = in_place(root, jpegs, records)
        tokenizer = make_tokenizer(corpus)
        texts = [" ".join(turn["value"] for turn in record["conversations"]) for record in records]
        tokenizer.backend_tokenizer.encode_batch(texts)  # it keeps the words it has seen, as after an hour of training
        return cls(shards, placed, folder, jpegs, texts, tokenizer)


def in_place(root: Path, jpegs: list[bytes], records: list[dict[str, Any]]) -> Path:
    """The same records as the ``datasets`` library writes them, and the folder through which training reads them."""
    datasets.disable_progress_bars()
    text = datasets.Value("string")
    features = {"id": text, "image": datasets.Image(), "conversations": datasets.List({"from": text, "value": text})}
    rows = [
        {**record, "image": {"bytes": jpeg, "path": record["image"]}}
        for jpeg, record in zip(jpegs, records, strict=True)
    ]
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(str(root / "all.parquet"))
    each = ["--shard-entries", str(-(-len(rows) // 4)), "--workers", "1"]
    with redirect_stdout(io.StringIO()):
        tables([str(root / "all.parquet"), "--out", str(root / "placed"), "--in-place", *each])
    return root / "placed"


def make_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level pairs, as most language models have them."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    options: dict[str, Any] = {"vocab_size": 8000, "special_tokens": ["<s>", "</s>"], "show_progress": False}
    model.train_from_iterator(corpus, trainers.BpeTrainer(**options))
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="</s>")


# --- the arms


def ours(
    shards: Path, data: Data, views: tuple[int, Grid], workers: int, pixels: Pixels, keep_tokens: bool = False
) -> Iterable[Any]:
    """dslight's loader."""
    side, grid = views
    options: dict[str, Any] = {"num_workers": workers, "pixels": pixels, "keep_tokens": keep_tokens}
    module = ShardData([str(shards)], GridViews(*grid) if any(grid) else SingleView(), BATCH, **options)
    module.connect(data.tokenizer, (side, side), SLOTS)
    module.setup("fit")
    return module.train_dataloader()


@dataclass(frozen=True)
class PillowRow:
    """A row as most training code makes it."""

    tokenizer: PreTrainedTokenizerFast
    views: tuple[int, Grid]

    def __call__(self, key: str, image: Image.Image, record: dict[str, Any]) -> Item:
        """Resize, cut, tokenize."""
        encoded = template("vicuna_v1").encode(parse_turns(record["conversations"], 1), self.tokenizer, 1)
        side, (rows, cols) = self.views
        views = [self._tensor(image, side, side)]
        if rows:
            large = self._tensor(image, rows * side, cols * side)
            views += [tile for row in large.split(side, 1) for tile in row.split(side, 2)]
        size = (image.height, image.width)
        return Item(key, encoded.ids, encoded.labels, [torch.stack(views)], [(rows, cols)], [size])

    @staticmethod
    def _tensor(image: Image.Image, height: int, width: int) -> Tensor:
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def of_webdataset(data: Data, views: tuple[int, Grid], workers: int) -> Iterable[Any]:
    """webdataset's pipeline."""
    make, tars = PillowRow(data.tokenizer, views), sorted(str(path) for path in data.shards.glob("*.tar"))

    def row(sample: dict[str, Any]) -> Item:
        return make(sample["__key__"], sample["jpg"], sample["json"])

    records = webdataset.compat.WebDataset(tars, shardshuffle=False, resampled=True, empty_check=False)
    stages = records.shuffle(100).decode("pilrgb").map(row)
    rows = stages.batched(BATCH, collation_fn=Collate(SLOTS, 0), partial=False)
    return webdataset.compat.WebLoader(rows, batch_size=None, num_workers=workers)


class JsonFolder(Dataset[Item]):
    """LLaVA's dataset."""

    def __init__(self, data: Data, views: tuple[int, Grid]) -> None:
        self.records = json.loads(data.folder.with_suffix(".json").read_text())
        self.folder, self.make = data.folder, PillowRow(data.tokenizer, views)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Item:
        record = self.records[i]
        image = Image.open(self.folder / record["image"]).convert("RGB")
        return self.make(record["id"], image, record)


def of_folder(data: Data, views: tuple[int, Grid], workers: int) -> Iterable[Any]:
    """LLaVA's way."""
    rows = JsonFolder(data, views)
    return DataLoader(rows, BATCH, shuffle=True, num_workers=workers, collate_fn=Collate(SLOTS, 0), drop_last=True)


def limit(data: Data, views: tuple[int, Grid], workers: int, tokens: bool) -> Iterator[None]:
    """Decode and resize, a batch at a time, here or in ``workers`` processes at once."""
    if not workers:
        yield from _limit(data, views, tokens)
    done = multiprocessing.Semaphore(0)
    processes = [
        multiprocessing.Process(target=_limit_of_worker, args=(data, views, tokens, done), daemon=True)
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        while True:
            done.acquire()
            yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _limit_of_worker(data: Data, views: tuple[int, Grid], tokens: bool, done: Any) -> None:
    torch.set_num_threads(1)
    for _ in _limit(data, views, tokens):
        done.release()


def _limit(data: Data, views: tuple[int, Grid], tokens: bool) -> Iterator[None]:
    records, encode = cycle(zip(data.jpegs, data.texts, strict=True)), data.tokenizer.backend_tokenizer.encode
    side, grid = views
    sizes = [side, *([grid[0] * side] if grid[0] else [])]
    while True:
        for jpeg, text in islice(records, BATCH):
            pixels = torch.from_numpy(simplejpeg.decode_jpeg(jpeg))[None].permute(0, 3, 1, 2)  # torch's fastest order
            for size in sizes:
                F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
            if tokens:
                encode(text, add_special_tokens=False)
        yield


def arm(name: str, data: Data, views: tuple[int, Grid], workers: int) -> Iterable[Any]:
    """The batches of an arm."""
    makers: dict[str, Callable[[], Iterable[Any]]] = {
        "ours": partial(ours, data.shards, data, views, workers, "fast"),
        "in place": partial(ours, data.placed, data, views, workers, "fast"),
        "ours, kept": partial(ours, data.shards, data, views, workers, "fast", keep_tokens=True),
        "ours, pillow": partial(ours, data.shards, data, views, workers, "pillow"),
        "webdataset": partial(of_webdataset, data, views, workers),
        "json + folder": partial(of_folder, data, views, workers),
        "limit": partial(limit, data, views, workers, False),
        "limit, tokens": partial(limit, data, views, workers, True),
    }
    return makers[name]()


# --- what is measured


def cpu_seconds() -> float:
    """Processor time of this process and of its children that live."""
    children = [child.pid for child in multiprocessing.active_children()]
    # the kernel's number for the clock of a whole process is ~pid << 3 | 2 (clock_getcpuclockid, which Python lacks)
    return time.process_time() + sum(time.clock_gettime((~pid << 3) | 2) for pid in children if pid)


def speed(batches: Iterable[Any], count: int) -> tuple[float, float]:
    """Samples per second of processor time and of the wall's clock, over ``count`` batches in the middle."""
    stream = iter(batches)
    for _ in range(EDGE):
        next(stream)
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in range(count):
        next(stream)
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    return count * BATCH / cpu, count * BATCH / wall


def throughput(
    root: Path, samples: int, passes: int, workers: list[int], arms: Sequence[str], views: Sequence[str]
) -> None:
    """Print a table for each size of views."""
    data = Data.make(root, samples)
    count = samples // BATCH - 2 * EDGE
    size = statistics.median(len(jpeg) for jpeg in data.jpegs) / 1000
    tokens = statistics.median(
        len(encoding.ids) for encoding in data.tokenizer.backend_tokenizer.encode_batch(data.texts)
    )
    print(f"\n{samples} images of {size:.0f} kB, {tokens:.0f} tokens each; {passes} rounds of {count * BATCH} samples")
    cells = [(g, a, w) for g in views for a in arms for w in workers]
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = {cell: [] for cell in cells}
    order = random.Random(0)
    for _ in range(passes):
        for cell in order.sample(cells, len(cells)):
            name, kind, processes = cell
            found[cell].append(speed(arm(kind, data, VIEWS[name], processes), count))
    for name in views:
        print(f"\nViews: {name}\n")
        print(
            "| arm | workers | samples/s of a core | of the limit | of limit, tokens | times webdataset | times ours | "
            "by the wall |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for cell in [cell for cell in cells if cell[0] == name]:
            _, kind, processes = cell
            cpu = [c for c, _ in found[cell]]
            others = [(name, other, processes) for other in _BESIDE]
            ratios = " | ".join(ratio(cpu, [c for c, _ in found[o]]) if o in found else "" for o in others)
            wall = statistics.median(w for _, w in found[cell])
            print(f"| {kind} | {processes} | {statistics.median(cpu):.0f} | {ratios} | {wall:.0f} |")


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Median and range of the ratios within a round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


# --- start-up


def write_large_index(root: Path, records: int, shards: int) -> None:
    """``large`` and ``small``: shards whose index names ``records`` records, or 1000, all of a shard the same bytes of
    its tar: manifest and indexes as large as real ones, and tars that can be read, in little room."""
    rng, words = np.random.default_rng(0), " ".join(topics.values()).split()
    out = io.BytesIO()
    picture(rng).save(out, "JPEG", quality=90)
    record = {"id": "0", "conversations": conversation(random.Random(0), words)}
    with ShardWriter(root / "one") as writer:
        writer.write("0", [out.getvalue()], record)
    (info,) = Manifest.load(root / "one").shards
    one = Index.from_bytes((root / "one" / info.index_name).read_bytes())
    tar = (root / "one" / info.name).read_bytes()
    for name, count, files in (("small", 1000, 1), ("large", records, shards)):
        _repeat(root / name, one, tar, count // files, files)


def _repeat(folder: Path, one: Index, tar: bytes, each: int, shards: int) -> None:
    infos = []
    folder.mkdir()
    for shard in range(shards):
        path = folder / f"{shard:06d}.tar"
        path.write_bytes(tar)
        index = Index(
            keys=np.array([one.keys[0], *(f"{shard:06d}-{row:08d}".encode() for row in range(1, each))]),
            first=np.arange(each + 1, dtype=np.int64) * len(one.extensions),
            extensions=np.tile(one.extensions, each),
            offsets=np.tile(one.offsets, each),
            sizes=np.tile(one.sizes, each),
            hashes=np.tile(one.hashes, (each, 1)),
            questions=np.zeros(each, dtype=np.int32),
        ).to_bytes()
        line = ShardInfo(path.name, len(tar), file_sha256(path), each, 0, sha256(index))
        (folder / line.index_name).write_bytes(index)
        infos.append(line)
    Manifest(tuple(infos)).save(folder)


def proportional_mb(pid: int) -> float:
    """Memory of a process, pages that it shares counted by halves, thirds, ... (megabytes)."""
    return _pss(Path(f"/proc/{pid}/smaps_rollup").read_text())


def _pss(rollup: str) -> float:
    lines = rollup.splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def started(root: Path, workers: int, start: Start) -> dict[str, Any]:
    """Open the shards at ``root`` and read some batches, in a process that does nothing else."""
    tokenizer = make_tokenizer(list(topics.values())[:50])
    before = proportional_mb(multiprocessing.current_process().pid or 0)
    began = time.perf_counter()
    module = ShardData([str(root)], SingleView(), BATCH, num_workers=workers, worker_start=start)
    module.connect(tokenizer, (336, 336), SLOTS)
    module.setup("fit")
    stream = iter(module.train_dataloader())
    next(stream)
    seconds = time.perf_counter() - began
    for _ in range(20):
        next(stream)
    pids = [multiprocessing.current_process().pid, *(child.pid for child in multiprocessing.active_children())]
    return {"seconds": seconds, "before": before, "pss": [proportional_mb(pid) for pid in pids if pid]}


def start_up(root: Path, records: int, workers: list[int]) -> None:
    """Print how long an index of ``records`` takes to open, and the memory of each process then."""
    for modules in ("numpy", "torch", "torch, transformers", "torch, transformers, lightning.pytorch"):
        program = f"import os, {modules}; print(open(f'/proc/{{os.getpid()}}/smaps_rollup').read())"
        rollup = subprocess.check_output([sys.executable, "-c", program], text=True)
        print(f"imports of {modules}: {_pss(rollup):.0f} MB")
    write_large_index(root, records, shards=max(1, records // 10_000))
    print(f"\nAn index of {records} records, {sum(p.stat().st_size for p in root.rglob('*.npz')) / 1e6:.0f} MB\n")
    print("| records | workers | started by | s to a batch | MB before | MB of each process then | MB together |")
    print("| ---: | ---: | --- | ---: | ---: | --- | ---: |")
    kinds = [(processes, start) for processes in workers for start in (("fork", "spawn") if processes else ("",))]
    for (processes, start), folder in product(kinds, ("small", "large")):
        here = [sys.executable, inspect.getfile(start_up), "--started", str(root / folder), "--start", start or "fork"]
        got = json.loads(subprocess.check_output([*here, "--workers", str(processes)], text=True))
        each, count = " + ".join(f"{mb:.0f}" for mb in got["pss"]), records if folder == "large" else 1000
        row = [count, processes, start, f"{got['seconds']:.2f}", f"{got['before']:.0f}", each, f"{sum(got['pss']):.0f}"]
        print(f"| {' | '.join(map(str, row))} |")


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--records", type=int, default=1_300_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--views", nargs="+", default=list(VIEWS), choices=VIEWS, metavar="VIEWS")
    parser.add_argument("--only", choices=("speed", "start"))
    parser.add_argument("--quick", action="store_true", help="a tiny size, whose numbers mean nothing")
    parser.add_argument("--started", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.started:
        print(json.dumps(started(args.started, args.workers[0], args.start)))
        return
    if args.quick:
        args.samples, args.passes, args.records, args.workers = 160, 1, 1000, [0, 1]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "pillow", "simplejpeg", "webdataset"))
    print(f"{platform.machine()}, Python {platform.python_version()}, {libraries}")
    with tempfile.TemporaryDirectory() as root:
        if args.only != "start":
            throughput(Path(root) / "speed", args.samples, args.passes, args.workers, args.arms, args.views)
        if args.only != "speed":
            start_up(Path(root) / "start", args.records, args.workers)


if __name__ == "__main__":
    main()
