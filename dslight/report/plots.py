"""The pictures of a report, as SVG inside an HTML page: bars of the arms, learning curves, score against cost,
differences with their intervals.

Each takes rows of one metric and gives ``None`` when they have nothing to draw.

Decided here: every run is drawn (a dot, a thin line), so that the reader sees how many there are; a mean is drawn on
top and never alone. Bars begin at zero. An arm keeps its colour (Okabe and Ito's palette, which colour-blind readers
tell apart) and is labelled where it is drawn, so nothing depends on colour. Ink and lines take the page's colours.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dslight.report.table import Row, metric_name

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
MARKERS = "osD^vPX*"
# stand-ins that matplotlib takes for colours and that the page's style sheet colours
INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", PAPER: "var(--card)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font, and can be searched
    "svg.hashsalt": "dslight",  # the same runs give the same file
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}
WIDTH, HEIGHT = 5.7, 3.6  # inches of 72 points; about half of the page


def bars(table: Sequence[Row], references: Sequence[tuple[str, float]] = ()) -> str | None:
    """A bar per arm to its mean, a dot per run, a dashed line per reference (label, score)."""
    scored = [(i, row, [row.unit.factor * score for score in row.scores]) for i, row in enumerate(table) if row.scores]
    if not scored:
        return None
    lines = sorted(((table[0].unit.factor * score, label) for label, score in references), reverse=True)
    everything = [0.0, *(score for *_, scores in scored for score in scores), *(x for x, _ in lines)]
    low, high = min(everything), max(everything) or 1.0
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(0.85 + 0.36 * len(scored) + 0.24 * len(lines), "x")
        for place, (i, row, scores) in enumerate(scored):
            axes.barh(place, statistics.fmean(scores), height=0.62, color=_colour(i), alpha=0.85, linewidth=0)
            axes.scatter(scores, [place] * len(scores), s=22, color=PAPER, edgecolors=INK, linewidths=0.9, zorder=3)
            _write(axes, row.unit(row.mean), (max(scores), place), 9, box=True)
        bottom = len(scored) - 0.5
        for level, (x, label) in enumerate(lines):
            y = -0.8 - 0.65 * (len(lines) - 1 - level)
            axes.plot([x, x], [bottom, y], color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
            _write(axes, f"{label} {x:.1f}", (x, y), -5 if x > (low + high) / 2 else 5, color=MUTED)
        axes.set_yticks(range(len(scored)), [row.label for _, row, _ in scored])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlim(low, high + 0.14 * (high - low))
        axes.set_ylim(bottom, -0.6 - 0.65 * len(lines))
        axes.set_xlabel(metric_name(table[0]))
        return _svg(figure)


def curves(table: Sequence[Row]) -> str | None:
    """Validation score against training step: a run is thin, the mean (at the steps that all runs have) is bold."""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(HEIGHT, "y")
        ends: list[tuple[int, str, float, float]] = []
        for i, row in enumerate(table):
            runs = [dict(result.curves.get(row.headline, [])) for result in row.results]
            runs = [run for run in runs if run]
            common = sorted(set.intersection(*map(set, runs))) if runs else []
            if len(runs) > 1:
                for run in runs:
                    axes.plot(
                        list(run),
                        [row.unit.factor * y for y in run.values()],
                        color=_colour(i),
                        linewidth=0.9,
                        alpha=0.5,
                    )
            if common:
                mean = [row.unit.factor * statistics.fmean(run[step] for run in runs) for step in common]
                axes.plot(
                    common, mean, color=_colour(i), linewidth=2.2, marker="o" if len(common) < 3 else None, markersize=4
                )
                ends.append((i, row.label, common[-1], mean[-1]))
        if not ends:
            return None
        axes.set_xlim(left=0)
        _label_ends(axes, ends)
        axes.set_xlabel("training step")
        axes.set_ylabel(metric_name(table[0]))
        return _svg(figure)


def against(table: Sequence[Row], key: str, title: str) -> str | None:
    """Score against a cost, ``key`` of ``result.json``: a faint dot per run, a marker with a label per arm."""
    points = [
        (i, row, x, row.unit.factor * row.mean)
        for i, row in enumerate(table)
        if (x := row.mean_of(key)) is not None and row.mean is not None
    ]
    if len({x for _, _, x, _ in points}) < 2:  # no cost to trade the score against
        return None
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(HEIGHT, "both")
        for i, row, x, mean in points:
            scores = [row.unit.factor * score for score in row.scores]
            axes.scatter([x] * len(scores), scores, s=12, color=_colour(i), alpha=0.45, linewidths=0)
            axes.scatter([x], [mean], s=46, color=_colour(i), marker=MARKERS[i % len(MARKERS)], zorder=3, linewidths=0)
        largest = max(x for _, _, x, _ in points)
        axes.set_xlim(0, 1.15 * largest)
        axes.margins(y=0.16)
        _label_points(axes, [(row.label, x, y) for _, row, x, y in points])
        axes.set_xlabel(title)
        axes.set_ylabel(metric_name(table[0]))
        return _svg(figure)


Bounds = tuple[float, float]
"""Lower and upper end of an interval."""


def differences(arms: Sequence[tuple[str, float, Bounds, Bounds | None]], baseline: str) -> str | None:
    """Differences of scores to the baseline, in points: (arm, value, interval over questions, over questions and
    seeds); a dot, a thick and a thin line, next to zero.
    """
    if not arms:
        return None
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(0.85 + 0.36 * len(arms), "x")
        axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for place, (_, value, inner, outer) in enumerate(arms):
            for bounds, width in ((outer, 1.2), (inner, 5.0)):
                if bounds is not None:
                    axes.plot(
                        [100 * end for end in bounds], [place, place], color=PALETTE[0], linewidth=width, zorder=2
                    )
            axes.scatter([100 * value], [place], s=22, color=PAPER, edgecolors=INK, linewidths=0.9, zorder=3)
        axes.set_yticks(range(len(arms)), [label for label, *_ in arms])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(arms) - 0.5, -0.6)
        axes.set_xlabel(f"difference to {baseline} (points)")
        return _svg(figure)


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions in the order of ``wanted``, ``gap`` or more from each other, moved as little as that takes."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # runs of labels that touch: [sum of wanted starts, members]
    for i, index in enumerate(order):
        blocks.append([wanted[index] - i * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, members = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + members]
    starts = [total / members for total, members in blocks for _ in range(int(members))]
    placed = {index: start + i * gap for i, (index, start) in enumerate(zip(order, starts, strict=True))}
    return [placed[i] for i in range(len(wanted))]


def _axes(height: float, grid: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis=grid)  # type: ignore[arg-type]
    axes.tick_params(length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def _label_ends(axes: Axes, ends: Sequence[tuple[int, str, float, float]]) -> None:
    """The arms' names to the right of their last points, moved apart, in a margin that the layout leaves free."""
    low, high = axes.get_ylim()
    last = max(x for _, _, x, _ in ends)
    heights = apart([y for *_, y in ends], gap=0.068 * (high - low))
    for (i, label, x, y), height in zip(ends, heights, strict=True):
        axes.plot([x, 1.04 * last], [y, height], color=_colour(i), linewidth=0.9, clip_on=False)
        _write(axes, label, (1.04 * last, height), 3)
    axes.set_xlim(0, 1.01 * last)
    axes.set_ylim(min(low, *heights), max(high, *heights))


def _label_points(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside the points, from the top down, each at the first free place around its point, or else the freest."""
    points = sorted(points, key=lambda point: -point[2])
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    width, height, line = 62.0 * WIDTH, 54.0 * HEIGHT, 14.0  # of the axes and of a line of text, in points, roughly
    at = [(width * (x - left) / (right - left), height * (y - low) / (high - low)) for _, x, y in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    for (label, *point), (x, y) in zip(points, at, strict=True):
        long = 6.2 * len(label)
        places = [(shift, lines * line) for lines in (0, -1, 1, -2, 2, -3, 3) for shift in (9.0, -9.0)]
        corners = [(x + (shift if shift > 0 else shift - long), y + up - line / 2) for shift, up in places]
        boxes: list[Box] = [(a, b, a + long, b + line) for a, b in corners]
        page = (0.0, 0.0, width + 10, height)
        costs = [sum(_overlap(box, other) for other in taken) + long * line - _overlap(box, page) for box in boxes]
        best = min(range(len(places)), key=lambda place: (round(costs[place]), place))
        taken.append(boxes[best])
        shift, up = places[best]
        _write(axes, label, (point[0], point[1]), shift, up=up)


Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _write(
    axes: Axes, text: str, at: tuple[float, float], shift: float, up: float = 0.0, color: str = INK, box: bool = False
) -> None:
    """Text ``shift`` points right (or left) of a place in the axes and ``up`` points above it; also outside of them."""
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkB": 3, "relpos": (float(shift < 0), 0.5)}
    axes.annotate(
        text,
        at,
        (shift, up),
        textcoords="offset points",
        ha="left" if shift > 0 else "right",
        va="center",
        color=color,
        annotation_clip=False,
        arrowprops=line if up else None,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5} if box else None,
        zorder=4,
    )


def _colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg[svg.index("<svg") :]
