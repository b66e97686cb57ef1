"""The pictures of a report, as SVG inside an HTML page: bars of the arms, learning curves, training loss, score against
cost, differences with their intervals.

Each takes rows of one metric and gives ``None`` when they have nothing to draw.

Decided here: every score of a run is drawn (a dot, a thin line), so that the reader sees how many there are; a mean is
drawn on top and never alone. Bars begin at zero. An arm keeps its colour (Okabe and Ito's palette, which colour-blind
readers tell apart), its marker and its dashes, and a legend stands below, in the order of the arms: nothing is drawn
that could be taken for data and is none. Ink and lines take the page's colours.
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

from dslight.report.rows import Row
from dslight.report.statistics import Estimate, Interval
from dslight.report.table import metric_name

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
MARKERS = "osD^vPX*"
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1, 1.5, 1)))
# stand-ins that matplotlib takes for colours and that the page's style sheet colours
INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", PAPER: "var(--card)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font, and can be searched
    "svg.hashsalt": "dslight",  # the same runs give the same file
    "text.parse_math": False,  # a name may hold dollars
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
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.columnspacing": 1.4,
}
WIDTH, HEIGHT = 5.7, 3.6  # inches of 72 points; about half of the page
SMOOTHING = 40
"""A point of a loss curve is the mean of the last 1/40 of those that were logged."""


def bars(table: Sequence[Row], references: Sequence[tuple[str, float]] = ()) -> str | None:
    """A bar per arm to its mean, a dot per run, the numbers beside; a dashed line per reference (label, score)."""
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
            _dots(axes, scores, place)
            axes.text(1.02, place, row.unit(row.mean), va="center", transform=axes.get_yaxis_transform())
        bottom = len(scored) - 0.5
        for level, (x, label) in enumerate(lines):
            y, left = -0.8 - 0.65 * (len(lines) - 1 - level), x > (low + high) / 2
            axes.plot([x, x], [bottom, y], color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
            at, ha = (-5 if left else 5, 0), "right" if left else "left"
            axes.annotate(f"{label} {x:.1f}", (x, y), at, textcoords="offset points", ha=ha, va="center", color=MUTED)
        axes.set_yticks(range(len(scored)), [row.label for _, row, _ in scored])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlim(low, high + 0.04 * (high - low))
        axes.set_ylim(bottom, -0.6 - 0.65 * len(lines))
        axes.set_xlabel(metric_name(table[0]))
        return _svg(figure)


def curves(table: Sequence[Row]) -> str | None:
    """Validation score against training step: a run is thin, the mean (at the steps that all runs have) is bold; and
    the final mean score, a marker that no line leads to: it may be of more questions.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(HEIGHT, "y")
        for i, row in enumerate(table):
            factor = row.unit.factor
            runs = [[(step, factor * y) for step, y in result.curves.get(row.headline, [])] for result in row.results]
            _lines(axes, i, row, runs)
            last = row.mean_of("steps")
            if last is not None and row.mean is not None and any(runs):
                axes.plot([last], [factor * row.mean], MARKERS[0], color=_colour(i), markerfacecolor=PAPER, zorder=4)
        return _finished(figure, axes, "training step", metric_name(table[0])) if axes.has_data() else None


def losses(table: Sequence[Row]) -> str | None:
    """Training loss against step: the running mean of the mean over runs."""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(HEIGHT, "y")
        for i, row in enumerate(table):
            mean = _mean([result.curves.get("train/loss", []) for result in row.results])
            window = 1 + len(mean) // SMOOTHING
            smooth = [statistics.fmean(y for _, y in mean[max(0, k + 1 - window) : k + 1]) for k in range(len(mean))]
            if mean:
                _lines(axes, i, row, [[(step, y) for (step, _), y in zip(mean, smooth, strict=True)]])
        return _finished(figure, axes, "training step", "training loss") if axes.has_data() else None


def against(table: Sequence[Row], key: str, title: str) -> str | None:
    """Score against a cost, ``key`` of ``result.json``: a faint dot per run, a marker per arm."""
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
            marker = MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]
            axes.scatter([x], [mean], s=46, color=_colour(i), marker=marker, zorder=3, linewidths=0, label=row.label)
        axes.set_xlim(0, 1.1 * max(x for _, _, x, _ in points))
        axes.margins(y=0.12)
        return _finished(figure, axes, title, metric_name(table[0]))


def differences(arms: Sequence[tuple[str, Estimate]], baseline: str) -> str | None:
    """Differences of scores to the baseline, in points, next to zero: a dot, a thick line over other questions, a thin
    one over other seeds, too. What would make the others too small to read ends in an arrow at the border.
    """
    if not arms:
        return None
    near = [0.0, *(100 * end for _, one in arms for end in (one.over_questions.low, one.over_questions.high))]
    far = [*near, *(100 * end for _, one in arms if (again := one.over_seeds) for end in (again.low, again.high))]
    room = max(near) - min(near)
    left, right = max(min(far), min(near) - room), min(max(far), max(near) + room)
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(0.85 + 0.36 * len(arms), "x")
        axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for place, (_, one) in enumerate(arms):
            if one.over_seeds is not None:
                _interval(axes, place, one.over_seeds, 1.2)
                for beyond, edge, arrow in (
                    (100 * one.over_seeds.low < left, left, "<"),
                    (100 * one.over_seeds.high > right, right, ">"),
                ):
                    axes.plot([edge] * beyond, [place] * beyond, arrow, color=PALETTE[0], clip_on=False, zorder=2)
            _interval(axes, place, one.over_questions, 5.0)
            _dots(axes, [100 * one.value], place)
        axes.set_yticks(range(len(arms)), [label for label, _ in arms])
        axes.tick_params(axis="y", labelcolor=INK)
        margin = 0.03 * (right - left)
        axes.set_xlim(left - margin, right + margin)
        axes.set_ylim(len(arms) - 0.5, -0.6)
        axes.set_xlabel(f"difference to {baseline} (points)")
        return _svg(figure)


def _interval(axes: Axes, place: float, interval: Interval, width: float) -> None:
    ends = [100 * interval.low, 100 * interval.high]
    axes.plot(ends, [place, place], color=PALETTE[0], linewidth=width, zorder=2)


def _dots(axes: Axes, scores: Sequence[float], place: float) -> None:
    axes.scatter(scores, [place] * len(scores), s=22, color=PAPER, edgecolors=INK, linewidths=0.9, zorder=3)


Curve = Sequence[tuple[int, float]]
"""Steps and values."""


def _mean(runs: Sequence[Curve]) -> Curve:
    """At the steps that all runs have; those without any are left out."""
    values = [dict(run) for run in runs if run]
    common = sorted(set.intersection(*map(set, values))) if values else []
    return [(step, statistics.fmean(run[step] for run in values)) for step in common]


def _lines(axes: Axes, i: int, row: Row, runs: Sequence[Curve]) -> None:
    """The runs of an arm and their mean."""
    for run in runs if len(runs) > 1 else ():
        axes.plot(*zip(*run, strict=True), color=_colour(i), linewidth=0.9, alpha=0.5) if run else None
    if mean := _mean(runs):
        dashes, dot = DASHES[i // len(PALETTE) % len(DASHES)], "o" if len(mean) < 3 else None
        axes.plot(
            *zip(*mean, strict=True), color=_colour(i), linewidth=2.2, linestyle=dashes, marker=dot, label=row.label
        )


def _axes(height: float, grid: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis=grid)  # type: ignore[arg-type]
    axes.tick_params(length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def _finished(figure: Figure, axes: Axes, x: str, y: str) -> str:
    """With names of the axes, and a legend below."""
    axes.set_xlim(left=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    handles, labels = axes.get_legend_handles_labels()
    rows = -(-len(labels) // 3)
    figure.set_figheight(HEIGHT + 0.2 * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return _svg(figure)


def _colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg[svg.index("<svg") :]
