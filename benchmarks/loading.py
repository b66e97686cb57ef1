"""Peak memory of a process while a sharded run reads its weights: whole and then sharded, or share by share.

    python -m benchmarks.loading --ranks 2  # a decoder of 1.1 billion parameters in bfloat16, 2.2 GB
    python -m benchmarks.loading --ranks 2 --tiny     # seconds

Each way is run by processes of its own (gloo, CPU). What is measured, per process, above what it holds before the model
is built: private memory (``RssAnon``, sampled every 10 ms), which has to be there; and all resident memory
(``VmRSS``), in which the pages of the mapped file count that the system may drop at will.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

TINY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4}
BILLION = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
WAYS = {
    "`weights`, whole, then sharded": "weights",
    "`pretrained`, whole (transformers maps the file), then sharded": "pretrained",
    "either, share by share": "shares",
}


def decoder(tiny: bool) -> dict[str, Any]:
    """The decoder's configuration."""
    return {"model_type": "llama", "vocab_size": 32000, "tie_word_embeddings": False, **(TINY if tiny else BILLION)}


def recipe(folder: Path, tiny: bool, way: str) -> dict[str, Any]:
    """A model around the checkpoint in ``folder``."""
    encoder = {"name": "vit_tiny_patch16_224", "model_args": {"img_size": 32, "patch_size": 8, "depth": 2}}
    source: dict[str, Any] = {"config": decoder(tiny), "dtype": "bfloat16", "tokenizer": str(folder)}
    weights = {"language_model": str(folder)} if way == "weights" else {}
    source |= {} if weights else {"pretrained": str(folder)}
    return {
        "model": {
            "vision_encoder": {"class_path": "dslight.components.TimmEncoder", "init_args": encoder},
            "projector": {"class_path": "dslight.components.MLPProjector"},
            "stacking": {"class_path": "dslight.components.LowResolution"},
            "language_model": {"class_path": "dslight.components.HFCausalLM", "init_args": source},
        },
        "data": {"train": [], "views": {"class_path": "dslight.data.images.SingleView"}, "global_batch_size": 1},
        "weights": weights,
        "trainer": {"strategy": {"class_path": "dslight.train.Sharded"}} if way == "shares" else {},
    }


def write_checkpoint(folder: Path, tiny: bool) -> int:
    """A sharded checkpoint as transformers writes it, with random numbers; returns its bytes."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from data_prep.digits import write_tokenizer

    config = AutoConfig.for_model(**decoder(tiny))
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False).state_dict()
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    write_tokenizer(folder)
    files: list[dict[str, Any]] = [{}]
    for name, tensor in shapes.items():
        if sum(t.nbytes for t in files[-1].values()) > 4e8:
            files.append({})
        files[-1][name] = tensor
    names = {name: f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i, f in enumerate(files) for name in f}
    for file in files:
        made = {name: torch.randn(t.shape, dtype=t.dtype) * 0.02 for name, t in file.items()}
        save_file(made, folder / names[next(iter(file))], metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in shapes.values())
    index = {"metadata": {"total_size": size}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size


def resident() -> dict[str, int]:
    """Bytes of this process by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "VmRSS")))
    return {name: int(value.split()[0]) * 1024 for name, value in found.items()}


class Peak(threading.Thread):
    """The largest memory between its start and :meth:`stop`, above that at its start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.most, self.done = resident(), resident(), threading.Event()

    def run(self) -> None:
        """Sample."""
        while not self.done.wait(0.01):
            self.most = {name: max(self.most[name], value) for name, value in resident().items()}

    def stop(self) -> dict[str, int]:
        """Bytes by kind."""
        self.done.set()
        self.join()
        return {name: self.most[name] - self.before[name] for name in self.most}


def one_rank(folder: Path, way: str, tiny: bool) -> None:
    """Build, shard, read; write what it took beside the checkpoint."""
    import torch
    import torch.distributed as dist

    from dslight.recipe.build import build
    from dslight.train.parallel import materialise, shard

    dist.init_process_group("gloo")
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    peak, began = Peak(), time.perf_counter()
    peak.start()
    model: Any = build(recipe(folder, tiny, way), opens=None).model
    shard(model, model.parts(), mesh)
    materialise(model, torch.device("cpu"))
    if model.read_weights is not None:
        model.read_weights()
    found = peak.stop() | {"seconds": time.perf_counter() - began}
    total = sum(p.detach().to_local().float().square().sum() for p in model.language_model.parameters())
    dist.all_reduce(total)
    found["checksum"] = float(total)
    (folder / f"{way}-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def measure(ranks: int, tiny: bool) -> tuple[int, dict[str, list[dict[str, float]]]]:
    """Bytes of the checkpoint; by way, what each rank took."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "decoder"
        size = write_checkpoint(folder, tiny)
        found = {}
        for way in WAYS.values():
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            call = ["-m", "benchmarks.loading", "--one-rank", str(folder), way, *(["--tiny"] if tiny else [])]
            env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
            subprocess.run([*torchrun, *call], check=True, env=env, timeout=1800)
            found[way] = [json.loads((folder / f"{way}-{rank}.json").read_text()) for rank in range(ranks)]
    return size, found


def table(size: int, ranks: int, found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown."""
    lines = [
        f"| {size / 1e9:.2f} GB of weights, {ranks} processes | private memory | / weights | resident memory | s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, way in WAYS.items():
        private, all_of_it, seconds = (
            max(rank[key] for rank in found[way]) for key in ("RssAnon", "VmRSS", "seconds")
        )  # fmt: skip
        lines.append(
            f"| {name} | {private / 1e9:.2f} GB | {private / size:.2f} | {all_of_it / 1e9:.2f} GB | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--one-rank", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_rank:
        one_rank(Path(args.one_rank[0]), args.one_rank[1], args.tiny)
    else:
        size, found = measure(args.ranks, args.tiny)
        print(table(size, args.ranks, found))


if __name__ == "__main__":
    main()
