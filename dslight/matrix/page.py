"""``docs/models.md``: which kinds work, which are refused and why, as it was tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dslight.matrix.verdict import CRASHED, REFUSED, WORKS, WRONG, Verdict

HEAD = """# Models

What of other libraries works here, as `dslight models` tried it; `make matrix` remakes this page when a library moves.

## Decoders

Every type of transformers' causal-LM mapping, tiny and random, written as a checkpoint by transformers and read by
`HFCausalLM`. A type is refused before a weight is read. Checked are:

- (a) it builds;
- (b) a stack of zeros changes no bit, any other the columns at and behind it alone, at every layer up to the last
  that can be stacked at;
- (c) a row behind left padding is the row alone;
- (d) answers with a cache are those of whole passes, and a batch's those of its rows, wherever an image stands;
- (e) every slot of three stacks gets a gradient, and the same one with gradient checkpointing;
- (f) documents that share a row are the documents alone, or packing is refused.
"""


def page(verdicts: Sequence[Verdict], libraries: str) -> str:
    """The page.

    Args:
        verdicts: of all kinds.
        libraries: names and versions.
    """
    counts = Counter(verdict.verdict for verdict in verdicts)
    summary = ", ".join(f"{counts[name]} {said}" for name, said in _SAID.items() if counts[name])
    lines = [HEAD, f"With {libraries}: {len(verdicts)} types, {summary}.", ""]
    lines += ["| type | | checked | CPU seconds | |", "| --- | --- | --- | ---: | --- |"]
    for each in verdicts:
        said = each.said or "; ".join(each.notes)
        cells = (f"`{each.kind}`", _SAID[each.verdict], each.checked, f"{each.seconds:.1f}", _cell(said, each.kind))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


_SAID = {WORKS: "works", REFUSED: "refused", WRONG: "wrong", CRASHED: "crashes"}


def _cell(text: str, kind: str) -> str:
    """On one line, without what every line says, the most of it."""
    text = " ".join(text.split()).replace("|", "\\|")
    text = text.split(" cannot take visual tokens: ")[-1].replace(f"data.order.pack: {kind}: ", "not packed: ")
    text = text.removesuffix("; or do not pack")
    return text if len(text) <= 240 else f"{text[:237]}..."
