"""A heat map as a picture: one panel per stack, over the views that it was made of. Red speaks for the answer, blue
against it. Every panel has its own scale; the number below it says how much there is in all.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dslight.diagnostics.places import Panel

COLUMNS, SIDE, GAP, LINE = 4, 147, 10, 16  # as wide as a figure of the report
FOR, AGAINST = (214, 39, 40), (31, 90, 200)


def draw(images: Sequence[Sequence[Panel]], title: Callable[[Panel], str]) -> bytes:
    """A PNG: of every image, the picture itself and then its panels, ``COLUMNS`` side by side.

    Args:
        images: the panels of each.
        title: the lines below a panel.
    """
    lines: list[list[tuple[Image.Image, str]]] = []
    for each in images:
        whole = max((panel.picture for panel in each), key=lambda picture: picture.shape[1])
        cells = [(_resized(whole), "the image"), *((overlaid(panel), title(panel)) for panel in each)]
        lines += [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    width, height = SIDE + GAP, SIDE + GAP + 2 * LINE
    sheet = Image.new("RGB", (COLUMNS * width + GAP, len(lines) * height + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, cells in enumerate(lines):
        for j, (picture, text) in enumerate(cells):
            corner = (GAP + j * width, GAP + i * height)
            sheet.paste(picture, corner)
            pen.multiline_text((corner[0], corner[1] + SIDE + 3), text, fill="#444444", font=font, spacing=3)
    out = io.BytesIO()
    sheet.quantize(128).save(out, "PNG", optimize=True)
    return out.getvalue()


def overlaid(panel: Panel) -> Image.Image:
    """The heat over its picture, which is made grey and pale."""
    grey = np.asarray(_resized(panel.picture).convert("L"), np.float32)[..., None].repeat(3, 2)
    pale = 255 - (255 - grey) * 0.55
    heat = panel.heat.float()
    strength = heat.abs() / heat.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    alpha = np.asarray(Image.fromarray(strength.numpy()).resize((SIDE, SIDE), Image.Resampling.NEAREST))[..., None]
    sign = np.asarray(Image.fromarray(heat.sign().numpy()).resize((SIDE, SIDE), Image.Resampling.NEAREST))[..., None]
    colour = np.where(sign > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    return Image.fromarray((pale + (colour - pale) * 0.8 * alpha).round().astype(np.uint8))


def _resized(picture: Tensor) -> Image.Image:
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    how = Image.Resampling.NEAREST if max(image.size) < SIDE else Image.Resampling.BICUBIC
    return image.resize((SIDE, SIDE), how)
