"""A small source, and programs run as a user runs them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from processes import completed, module

sys.path.insert(0, str(Path(__file__).parent))  # for sources
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))  # for clips

from sources import chat, encode, environment
from sources import command as command_of


@pytest.fixture
def program(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``program("llava", "--json", ...)``: ``python -m data_prep.llava --json ...`` in a process of its own, forked, or
    with ``command=True`` as a shell would start it.
    """

    def run(name: str, *arguments: object, command: bool = False) -> subprocess.CompletedProcess[str]:
        if command:
            call = command_of(name, *arguments)
            return subprocess.run(call, capture_output=True, text=True, check=False, env=environment())
        return completed(module, f"data_prep.{name}", *map(str, arguments), folder=tmp_path)

    return run


@pytest.fixture
def small(tmp_path) -> Path:
    """A source of 40 entries on 12 images, every eighth of text only: ``data.json`` and ``images/``."""
    rng = np.random.default_rng(1)
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for i in range(12):
        pixels = rng.integers(0, 255, (16, 20, 3), dtype=np.uint8)
        kind = ("JPEG", "PNG")[i % 2]
        (tmp_path / "images" / "sub" / f"{i}.{kind.lower()}").write_bytes(encode(pixels, kind))
    names = sorted(path.name for path in (tmp_path / "images" / "sub").iterdir())
    entries = []
    for i in range(40):
        entry: dict[str, object] = {"id": f"e{i}", "conversations": chat(f"<image>\nQ{i}", f"A{i}")}
        if i % 8:
            entry["image"] = f"sub/{names[i % 12]}"
        else:
            entry["conversations"] = chat(f"Q{i}", f"A{i}")
        entries.append(entry)
    (tmp_path / "data.json").write_text(json.dumps(entries))
    return tmp_path
