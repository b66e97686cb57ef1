"""What the tests of the model share: numbers of the authors' code, and tiny real models.

Heavy libraries are imported where they are used: pytest-xdist's main process reads this file too, and runs no test.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # for the modules here that are no tests


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """What is imported stays: the garbage collector need not look through it, which takes a tenth of all the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000, 10, 10)
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Everything here is so small that threads wait for each other."""
    import torch

    torch.set_num_threads(1)
    # autograd begins here, where there is no device but the CPU: with another it starts a thread for each, and then no
    # process that is forked later can compute a gradient
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """Tests behind one that leaves its group would wait for ranks that are gone, in some orders and not in others."""
    yield
    dist = sys.modules.get("torch.distributed")
    if dist and dist.is_initialized():
        dist.destroy_process_group()
        pytest.fail("left a process group of torch.distributed behind")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line per fault that was tried; from here, because the main process of pytest-xdist reads no other conftest."""
    from tally import lines

    outcomes = {"passed": ["call"], "failed": ["call"], "error": ["setup", "teardown"]}
    tried = lines([(o, r) for o, when in outcomes.items() for r in terminalreporter.stats.get(o, []) if r.when in when])
    if tried:
        terminalreporter.section("faults")
        terminalreporter.write("\n".join([*tried, ""]))


@dataclass(frozen=True)
class Goldens:
    """The folder that ``golden/deepstack_vl/README.md`` describes, or the one that ``DSLIGHT_GOLDENS`` names."""

    root: Path

    def config(self, case: str) -> dict[str, Any]:
        return json.loads(self._path(f"{case}/config.json").read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(self._path(name))

    def _path(self, name: str) -> Path:
        if not (self.root / name).exists():
            pytest.skip(f"{name} is not in this folder of goldens (DSLIGHT_GOLDENS)")
        return self.root / name

    def outputs(self, case: str) -> dict[str, Tensor]:
        return self.tensors(f"{case}/outputs.safetensors")

    def grids(self, case: str) -> list[tuple[int, int]]:
        return [(grid["rows"], grid["columns"]) for grid in self.config(case)["grids"]]

    def weights(self, prefix: str, extra: str | None = None) -> dict[str, Tensor]:
        """The weights whose names start with ``prefix``, without it."""
        state = self.tensors("weights.safetensors") | (self.tensors(extra) if extra else {})
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    def projector(self) -> torch.nn.Sequential:
        """The authors' projector, out of torch's own modules."""
        import torch

        net = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.GELU(), torch.nn.Linear(48, 48))
        net.load_state_dict(self.weights("model.mm_projector."))
        return net.requires_grad_(False)


@pytest.fixture(scope="session")
def golden() -> Goldens:
    return Goldens(Path(os.environ.get("DSLIGHT_GOLDENS", Path(__file__).parent / "golden" / "deepstack_vl")))


@pytest.fixture(scope="session")
def same() -> Callable[..., None]:
    """``same(ours, golden)``: equal up to ``atol``."""
    import torch

    def check(ours: Tensor, expected: Tensor, atol: float = 2e-4) -> None:
        torch.testing.assert_close(ours.detach(), expected, atol=atol, rtol=0)

    return check


DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 48},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 48},
    "phi3": {"num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0},
    "gemma3_text": {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8, "sliding_window": 8},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
"""Architectures of transformers that differ in how layers are called, embeddings scaled and positions made."""


@pytest.fixture
def tiny_lm() -> Callable[..., Any]:
    """``tiny_lm(kind, **config)``: a random decoder of 4 layers, width 32, 64 ids, that no token id stops; ``None``
    leaves a field out."""
    import torch

    from dslight.components import HFCausalLM

    def make(kind: str = "llama", attention: str = "sdpa", **config: Any) -> HFCausalLM:
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 64}
        ends = {"bos_token_id": 1, "eos_token_id": None}
        settings = {**shape, **ends, **DECODERS.get(kind, {}), **config}
        known = {name: value for name, value in settings.items() if value is not None or name in ends}
        lm = HFCausalLM(config={"model_type": kind, **known}, attention=attention)
        with torch.no_grad():  # transformers' init (0.02) leaves all logits nearly equal at this size
            for parameter in lm.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=0.2)
        return lm.eval()

    return make


@pytest.fixture
def tiny_encoder() -> Callable[..., Any]:
    """``tiny_encoder(name, **model_args)``: 4 random layers, width 16, 16 x 16 pixels in patches of 4."""
    import torch

    from dslight.components import TimmEncoder

    def make(name: str = "vit_tiny_patch16_224", **model_args: Any) -> TimmEncoder:
        torch.manual_seed(0)
        shape = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
        encoder = TimmEncoder(name, model_args={**shape, **model_args})
        with torch.no_grad():
            for parameter in encoder.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=0.2)
        return encoder.eval()

    return make


@pytest.fixture
def make_views() -> Callable[..., Any]:
    """``make_views(grids)``: random 16 x 16 views; ``fine``: with n x n fine crops of each."""
    import torch

    from dslight.types import Views

    def make(grids: list[tuple[int, int]], seed: int = 0, fine: int = 0) -> Views:
        count = sum(1 + rows * cols for rows, cols in grids) * (1 + fine**2)
        generator = torch.Generator().manual_seed(seed)
        return Views(torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator), grids, fine)

    return make


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> Path:
    """The quickstart's data at tiny size: ``train`` (48 pages), ``val`` (3 pages, 24 questions), ``tokenizer``."""
    from data_prep.digits import main

    root = tmp_path_factory.mktemp("pages")
    main(["--out", str(root), "--train-pages", "48", "--val-pages", "3"])
    return root


@pytest.fixture(scope="session")
def write_varied() -> Callable[[Path], Path]:
    """``write_varied(root)``: shards ``a`` (120) and ``b`` (70) of conversations of 7 to 30 positions, every third
    without an image.
    """
    import numpy as np

    from data_prep.digits import png
    from dslight.data.shards import ShardWriter

    def write(root: Path) -> Path:
        rng = np.random.default_rng(0)
        for name, count in (("a", 120), ("b", 70)):
            with ShardWriter(root / name, shard_records=9) as writer:
                for i in range(count):
                    images = [] if i % 3 == 0 else [png(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))]
                    question = "<image>" * len(images) + "A1 " * int(rng.integers(1, 12))
                    answer = "7" * int(rng.integers(1, 5))
                    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
                    writer.write(f"{name}-{i:03d}", images, {"conversations": turns})
        return root

    return write
