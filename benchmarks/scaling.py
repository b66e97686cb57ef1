"""Where a run becomes communication-bound: the bytes and FLOPs of a step, from ``dslight plan``, over assumed links.

    python -m benchmarks.scaling            # prints the tables of docs/scaling.md
    python -m benchmarks.scaling --write    # puts them there

Nothing is simulated and no latency is counted: a step takes the longer of its computation and of its communication, and
each of these is a quotient. What is assumed is in ``ASSUMED``, and in the head of the document.
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "scaling.md"
RECIPES = {"7B": "recipes/paper/table1/deepstack_l_7b.yaml", "13B": "recipes/paper/table1/deepstack_l_13b.yaml"}
TEXT_TOKENS = 256
GPUS = (8, 64, 512)
PER_NODE = 8


@dataclass(frozen=True)
class Assumed:
    """A GPU and its links, bytes per second in one direction, as they are reached."""

    flops: float = 0.5 * 989e12  # H100 SXM, dense bfloat16, at half of its peak
    inside: float = 0.8 * 450e9  # NVLink 4, per GPU
    fast: float = 0.8 * 400e9  # per node: a 400 Gb/s adapter for each of 8 GPUs
    slow: float = 0.8 * 25e9  # per node: one adapter of 200 Gb/s
    gathered: int = 2  # bytes per parameter: param_dtype bfloat16
    reduced: int = 4  # reduce_dtype float32
    kept: int = (
        16  # per trained parameter: float32 weight, gradient, two states of AdamW; a frozen one keeps its weight
    )


ASSUMED = Assumed()


@dataclass(frozen=True)
class Model:
    """What the plan says, in billions.

    Attributes:
        name: of the size.
        parameters: of all parts.
        passed: of parts that gradients pass through, whose parameters are gathered a second time.
        trained: that learn.
        flops: of one sample, forward and backward.
        batch: samples that a GPU takes at once.
    """

    name: str
    parameters: float
    passed: float
    trained: float
    flops: float
    batch: int


def planned(name: str) -> Model:
    """Ask the plan. A backward pass takes as much as the forward pass for what passes through, and as much again for
    what trains.
    """
    from dslight.recipe.compose import compose
    from dslight.run.plan import plan

    found = plan(compose(ROOT / RECIPES[name], []), text_tokens=TEXT_TOKENS)
    order = {part.name: part for part in found.parts}
    flops, passed, flows = 0.0, 0, False
    for part in (order[key] for key in ("vision_encoder", "projector", "stacking", "language_model")):
        flows = flows or part.trainable > 0
        flops += (part.forward_flops or 0) * (1 + flows + bool(part.trainable))
        passed += part.parameters if flows else 0
    totals = sum(part.parameters for part in found.parts), sum(part.trainable for part in found.parts)
    numbers = (round(value / 1e9, 3) for value in (totals[0], passed, totals[1], flops))
    return Model(name, *numbers, found.micro_batch_size)


@dataclass(frozen=True)
class Step:
    """A step on so many GPUs: bytes through each GPU, seconds, and bytes of weights and states that it keeps."""

    gathered: float
    reduced: float
    compute: float
    fast: float
    slow: float
    kept: float


def step(model: Model, gpus: int, hybrid: bool, assumed: Assumed = ASSUMED) -> Step:
    """Fully sharded, or (hybrid) a copy per node.

    A node takes in what its GPUs do not hold through its adapters, and NVLink hands it to each of them: the slower of
    the two counts. In hybrid sharding gradients are summed inside of the node first, and each GPU's share is then
    summed over nodes (a ring: twice the bytes); inside and between come one after the other.
    """
    nodes, shared = gpus // PER_NODE, PER_NODE if hybrid else gpus
    gathered = (model.parameters + model.passed) * 1e9 * assumed.gathered
    reduced = model.trained * 1e9 * assumed.reduced
    inside = (gathered + reduced) * (1 - 1 / shared) / assumed.inside
    away = (2 * reduced if hybrid else gathered + reduced) * (1 - 1 / nodes)
    times = [
        inside + away / between if hybrid else max(inside, away / between) for between in (assumed.fast, assumed.slow)
    ]
    kept = model.trained * 1e9 * assumed.kept + (model.parameters - model.trained) * 4e9
    compute = model.batch * model.flops * 1e9 / assumed.flops
    return Step(gathered, reduced, compute, times[0], times[1], kept / shared)


def models_table(models: list[Model]) -> str:
    """What the plan says."""
    lines = [
        "| model | parameters | gathered twice | trained | TFLOPs per sample | samples per GPU |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for m in models:
        row = f"{m.parameters:.3f} B | {m.passed:.3f} B | {m.trained:.3f} B | {m.flops / 1e3:.3f}"
        lines.append(f"| {m.name} | {row} | {m.batch} |")
    return "\n".join(lines)


def steps_table(models: list[Model]) -> str:
    """What follows; bold where communication takes longer than computation."""
    lines = [
        "| model | GPUs | copies | kept per GPU | through a GPU | compute | fast links | slow links | hidden from |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model in models:
        for gpus in GPUS:
            for hybrid in (False, True) if gpus > PER_NODE else (False,):
                s = step(model, gpus, hybrid)
                each = s.compute / model.batch
                times = [f"**{t:.2f} s**" if t > s.compute else f"{t:.2f} s" for t in (s.fast, s.slow)]
                needed = [str(max(1, math.ceil(t / each))) for t in (s.fast, s.slow)]
                alone = gpus == PER_NODE
                row = [model.name, str(gpus), "one per node" if hybrid else "one", f"{s.kept / 1e9:.1f} GB"]
                row += [f"{(s.gathered + s.reduced) / 1e9:.0f} GB", f"{s.compute:.2f} s", times[0]]
                row += ["–" if alone else times[1], needed[0] if alone else " / ".join(needed)]
                lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def read_models(document: str) -> list[Model]:
    """The first table of the document, read back."""
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) B \| ([\d.]+) B \| ([\d.]+) B \| ([\d.]+) \| (\d+) \|$", document, re.M)
    return [Model(n, float(p), float(g), float(t), round(float(f) * 1e3, 3), int(b)) for n, p, g, t, f, b in rows]


def main() -> None:
    """Print, or write into the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    models = [planned(name) for name in RECIPES]
    tables = {"plan": models_table(models), "steps": steps_table(models)}
    if parser.parse_args().write:
        text = DOCUMENT.read_text()
        for name, table in tables.items():
            text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{table}\n\g<2>", text, flags=re.S)
        DOCUMENT.write_text(text)
    else:
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
