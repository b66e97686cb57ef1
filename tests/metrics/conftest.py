"""The golden cases: inputs with the scores that the official evaluators (and other kits) gave them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for metric_cases

COMMITTED = Path(__file__).parents[1] / "golden" / "metrics"
FOLDER = Path(os.environ.get("DSLIGHT_METRIC_GOLDENS", COMMITTED))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], list[dict[str, Any]]]:
    def read(name: str) -> list[dict[str, Any]]:
        path = FOLDER / f"{name}.jsonl"
        if not path.is_file():  # a folder that is older than this benchmark
            path = COMMITTED / path.name
        cases = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
        assert len(cases) >= 50
        return cases

    return read
