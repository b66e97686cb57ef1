"""Every name of timm, tried on the meta device: does it work, through which class, or what is the refusal?

    python -m benchmarks.encoders               # goes on where it was stopped; then writes docs/encoders.md
    python -m benchmarks.encoders cait_s24_224  # only these, again; the page is written where all names are there

A line of ``runs/encoders/timm-VERSION.jsonl`` is a name's verdict, the last one counts. No weight is read.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "runs" / "encoders"


def tried(name: str) -> dict[str, Any]:
    """What became of one name: ``class`` or ``refused`` or ``crashed``, what it is, and the seconds of CPU."""
    import torch

    from dslight.components.vision_encoders.timm_features import TimmFeatureMaps
    from dslight.components.vision_encoders.timm_vit import MAPS, TimmEncoder

    warnings.filterwarnings("ignore")
    found: dict[str, Any] = {"name": name}
    start = time.process_time()
    try:
        with torch.device("meta"):
            encoder: Any = TimmEncoder(name)
        found |= {"class": "TimmEncoder", "layers": encoder.depth, "prefix": encoder.prefix_tokens}
    except ValueError as refusal:
        found["said"] = " ".join(str(refusal).split())
        encoder = None
    except Exception as error:
        return found | {"crashed": f"{type(error).__name__}: {error}"}
    try:
        if encoder is None and found["said"].endswith(MAPS):
            with torch.device("meta"):
                encoder = TimmFeatureMaps(name)
            found["class"] = "TimmFeatureMaps"
    except Exception as error:
        return found | {"crashed": f"{type(error).__name__}: {error}"}
    if encoder is not None:
        found |= {"width": encoder.width, "grid": encoder.grid, "pixels": encoder.image_size}
    return found | {"seconds": round(time.process_time() - start, 2)}


def verdicts(names: Sequence[str], again: bool = False, results: Path = RESULTS) -> Iterator[dict[str, Any]]:
    """Those of ``names``, tried now unless they were before with this version of timm."""
    file = results / f"timm-{version('timm')}.jsonl"
    known = read(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        if again or name not in known:
            known[name] = tried(name)
            with file.open("a") as log:
                log.write(json.dumps(known[name]) + "\n")
        yield json.loads(json.dumps(known[name]))


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Name -> its last verdict."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def _mixed(names: Sequence[str]) -> list[str]:
    """One of each family first, so that a run that is stopped has seen all kinds."""
    seen: dict[str, int] = {}
    turns = []
    for name in names:
        family = name.split("_")[0]
        seen[family] = seen.get(family, 0) + 1
        turns.append((seen[family], name))
    return [name for _, name in sorted(turns)]


def main(wanted: list[str]) -> int:
    """Try the names and write the page; 1 where one ended in a traceback."""
    import timm
    import torch

    torch.set_num_threads(1)
    crashed = 0
    for row in verdicts(wanted or _mixed(timm.list_models()), again=bool(wanted)):
        crashed += "crashed" in row
        said = row.get("crashed") or row.get("said", "")
        print(f"{row['name']:<48}{row.get('class', 'refused'):<16}{said}", flush=True)
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
