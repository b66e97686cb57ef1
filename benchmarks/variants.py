"""The page of all variants: what each is, its command, and what it reads and costs, as ``dslight plan`` says.

    python -m benchmarks.variants      # writes docs/variants.md

Nothing is trained here and no weight is read: the numbers are those of the shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dslight.recipe.compose import compose
from dslight.run.plan import Plan, plan

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "variants.md"
FOLDERS = {"The paper's first table": "recipes/paper/table1", "What others made of it, and rivals": "recipes/variants"}
INTRO = """# Variants

Each is a recipe, with the numbers that `dslight plan` finds for it: of one image with the largest grid of crops, and
64 tokens of text. The page is made by `python -m benchmarks.variants`; no model of these sizes was trained here. What
equals somebody else's code on the same weights is in `tests/equal_to` and `tests/golden_model`.
"""


def page() -> str:
    """All of it, as markdown."""
    return "\n".join([INTRO, *(line for title, folder in FOLDERS.items() for line in _section(title, ROOT / folder))])


def _section(title: str, folder: Path) -> Iterator[str]:
    yield f"## {title}\n"
    plans = {file: plan(compose(file)) for file in sorted(folder.glob("*.yaml"))}
    yield "| recipe | tokens read | context | parameters | trained | forward FLOPs |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for file, made in plans.items():
        total, trained = (sum(getattr(part, key) for part in made.parts) for key in ("parameters", "trainable"))
        numbers = f"{made.visual_tokens:,} | {made.context_length:,} | {_short(total)} | {_short(trained)}"
        yield f"| [{file.stem}](#{_anchor(title, file)}) | {numbers} | {_short(made.forward_flops)} |"
    yield ""
    for file, made in plans.items():
        yield from _variant(title, file, made)


def _variant(title: str, file: Path, made: Plan) -> Iterator[str]:
    yield f"### {file.stem} {{ #{_anchor(title, file)} }}\n"
    head = [line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#")]
    commands = [line for line in head if line.startswith("torchrun")]
    yield " ".join(line for line in head if line and line not in commands).replace("*", r"\*") + "\n"
    yield "\n".join(["```bash", f"dslight plan {file.relative_to(ROOT)}", *commands, "```\n"])
    for part, layer, what in made.placements:
        yield f"- {part.replace('_', ' ')}, layer {layer}: {what.removeprefix('+ ')}"
    yield ""


def _anchor(title: str, file: Path) -> str:
    return f"{title.split()[0].lower()}-{file.stem}"


def _short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


if __name__ == "__main__":
    PAGE.write_text(page())
