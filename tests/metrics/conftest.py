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

FOLDER = Path(os.environ.get("DSLIGHT_METRIC_GOLDENS", Path(__file__).parents[1] / "golden" / "metrics"))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], list[dict[str, Any]]]:
    def read(name: str) -> list[dict[str, Any]]:
        cases = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines() if line]
        assert len(cases) >= 50
        return cases

    return read
