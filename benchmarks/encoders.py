"""Every name of timm, and every vision kind of transformers, tried on the meta device: does it work, through which
class, or what is the refusal?

    python -m benchmarks.encoders               # goes on where it was stopped, then writes docs/encoders.md
    python -m benchmarks.encoders cait_s24_224  # only these, again; the page stays as it is
    python -m benchmarks.encoders --page        # the page, of what was tried so far

A line of ``runs/encoders/*.jsonl``, a file for each version of a library, is a name's verdict; the last one counts. No
weight is read.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.encoders_page import pages

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "runs" / "encoders"
PAGES = ROOT / "docs"
SIDE = 224


def of_timm(name: str) -> Any:
    """The encoder of a name of timm, through the class that reads it."""
    from dslight.components.vision_encoders.timm_features import TimmFeatureMaps
    from dslight.components.vision_encoders.timm_vit import MAPS, TimmEncoder

    try:
        return TimmEncoder(name)
    except ValueError as refusal:
        if not str(refusal).endswith(MAPS):
            raise
    return TimmFeatureMaps(name)


def of_transformers(kind: str) -> Any:
    """The encoder of a kind of transformers, at the sizes that its configuration begins with; images of ``SIDE`` pixels
    where it says nothing of them."""
    from dslight.components import vision_encoders
    from dslight.components.vision_encoders.hf_models import OF_ANY_SIZE

    name = next((name for name, kinds in OF_ANY_SIZE.items() if kind in kinds), "HFVisionEncoder")
    make = partial(getattr(vision_encoders, name), config={"model_type": kind})
    try:
        return make()
    except ValueError as refusal:
        if "says no image_size" not in str(refusal) or "vision part" in str(refusal):
            raise
    return make(image_size=SIDE)


def timm_names() -> list[str]:
    """All of timm; one of each family first, so that a run that is stopped has seen all kinds."""
    import timm

    seen: dict[str, int] = {}
    turns = []
    for name in timm.list_models():
        family = name.split("_")[0]
        seen[family] = seen.get(family, 0) + 1
        turns.append((seen[family], name))
    return [name for _, name in sorted(turns)]


def transformers_kinds() -> list[str]:
    """Models of transformers that have an image processor, or vision in their name."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    from dslight.components.vision_encoders.hf_models import OF_ANY_SIZE

    known = {k for k in MODEL_MAPPING_NAMES if k in IMAGE_PROCESSOR_MAPPING_NAMES or "vision" in k}
    return sorted(known.union(*OF_ANY_SIZE.values()))


def tried(name: str, make: Callable[[str], Any]) -> dict[str, Any]:
    """What became of one: ``class``, or only what was ``said``, or ``crashed``; and the seconds of CPU."""
    import torch

    warnings.filterwarnings("ignore")
    found: dict[str, Any] = {"name": name}
    start = time.process_time()
    try:
        with torch.device("meta"):
            encoder = make(name)
        facts = {"layers": encoder.depth, "prefix": encoder.prefix_tokens, "width": encoder.width}
        found |= {"class": type(encoder).__name__, **facts, "grid": encoder.grid, "pixels": encoder.image_size}
    except ValueError as refusal:
        found["said"] = " ".join(str(refusal).split())
    except Exception as error:
        found["crashed"] = f"{type(error).__name__}: {error}"
    return found | {"seconds": round(time.process_time() - start, 2)}


def verdicts(
    library: str, names: Sequence[str], make: Callable[[str], Any], again: bool = False, results: Path = RESULTS
) -> Iterator[dict[str, Any]]:
    """Those of ``names``, tried now unless they were before with this version."""
    file = results_of(library, results)
    known = read(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        if again or name not in known:
            known[name] = json.loads(json.dumps(tried(name, make)))
            with file.open("a") as log:
                log.write(json.dumps(known[name]) + "\n")
        yield known[name]


def results_of(library: str, results: Path = RESULTS) -> Path:
    """The file of verdicts with the versions that are installed."""
    return results / f"{library}-{version(library)}-torch-{version('torch')}.jsonl"


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Name -> its last verdict."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def main(wanted: list[str]) -> int:
    """Try them and write the page; 1 where one ended in a traceback."""
    import timm  # noqa: F401
    import torch

    import dslight.components.language_model  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # what was imported stays; looking through it again and again takes as long as the passes
    libraries = {"timm": (timm_names(), of_timm), "transformers": (transformers_kinds(), of_transformers)}
    found: dict[str, list[dict[str, Any]]] = {}
    for library, (names, make) in libraries.items():
        if wanted == ["--page"]:
            known = read(results_of(library))
            found[library] = [known[name] for name in names if name in known]
            continue
        found[library] = []
        chosen = [name for name in names if not wanted or name in wanted]
        for row in verdicts(library, chosen, make, again=bool(wanted)):
            said = row.get("crashed") or row.get("said", "")
            print(f"{row['name']:<48}{row.get('class', 'refused'):<16}{said}", flush=True)
            found[library].append(row)
    if wanted in ([], ["--page"]):
        counts = {library: len(names) for library, (names, _) in libraries.items()}
        made = pages(found, counts, {name: version(name) for name in (*libraries, "torch")})
        for file, text in made.items():
            (PAGES / file).write_text(text)
    return 1 if any("crashed" in row for rows in found.values() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
