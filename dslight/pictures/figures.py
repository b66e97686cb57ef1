"""Figures of matplotlib for a notebook: what a model sees of a picture, and where an answer came from."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

from torch import Tensor

from dslight.diagnostics.draw import overlaid
from dslight.diagnostics.groups import Groups
from dslight.pictures.look import look, titles

COLUMNS = 4


def shown(model: Any, image: Any) -> Any:
    """The views that a model sees of a picture, with their sizes and how many tokens it makes of them.

    Raises:
        ValueError: for what is no image.
    """
    views = model.processor.ask("", image).views
    slots = model.stacking.slot_layout(model.vision_encoder, model.projector)
    rows, cols = views.grids[0]
    height, width = views.pixels.shape[-2:]
    names = ["base view", *(f"crop {y + 1}, {x + 1}" for y in range(rows) for x in range(cols))]
    names += [f"fine crop {i + 1}" for i in range(len(views.pixels) - len(names))]
    cells = [(_array(pixels), name) for pixels, name in zip(views.stills, names, strict=True)]
    patches = model.vision_encoder.grid
    count = slots(views.grids[0], views.sizes[0] if views.sizes else None)
    title = (
        f"{len(views.pixels)} views of {height} x {width} pixels, {patches[0]} x {patches[1]} patches each; "
        f"{count} tokens in the sequence, {model.stacking.num_stacks} stacks"
    )
    return _sheet(cells, title)


def explained(model: Any, question: str, image: Any, answer: str | None = None) -> Any:
    """Heat maps, one per stack, over the views that it was made of: red speaks for the answer, blue against it.

    Raises:
        ValueError: for what is no image; where tokens show no place of it.
    """
    seen, named = look(model, question, image, answer), titles(Groups(model))
    if seen.note or not seen.panels:
        raise ValueError(f"explain: {seen.note or 'there is no image'}")
    cells = [
        (overlaid(panel), f"{named(panel.slot)}\nsum {panel.heat.sum():+.2g}, size {panel.heat.abs().sum():.2g}")
        for each in seen.panels
        for panel in each
    ]
    return _sheet(cells, f"{question}\nlog-likelihood {seen.log_likelihood:.2f} of: {seen.answer or '(nothing)'}")


def _sheet(cells: list[tuple[Any, str]], title: str) -> Any:
    import matplotlib.pyplot as plt

    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.4 * columns, 2.8 * rows), layout="constrained", squeeze=False)
    plt.close(figure)  # a notebook shows what a cell returns, and would show it twice
    for axis in axes.flat:
        axis.axis("off")
    for axis, (picture, text) in zip(axes.flat, cells, strict=False):
        axis.imshow(picture)
        axis.set_title(text, fontsize=8, parse_math=False)
    lines = [shorten(line, 32 * columns, placeholder=" ...") for line in title.splitlines()]
    figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)
    return figure


def _array(pixels: Tensor) -> Any:
    return pixels.permute(1, 2, 0).cpu().numpy()
