r"""The table of the paper in LaTeX, with nothing but booktabs.

One file for both uses: compiled by itself it is a document, and ``\input`` into one it is a ``table``. LaTeX redefines
``\documentclass`` once a document has one, by which the file knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from dslight.report.benchmarks import LIKELY, RETRAINED, Benchmarks
from dslight.report.paper import paper_table

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
    "Δ": r"$\Delta$",
    LIKELY: r"$^{\dagger}$",
    RETRAINED: r"$^{\ddagger}$",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def to_latex(made: Benchmarks, caption: str, notes: Sequence[str]) -> str:
    """The table, its caption, and the notes below it."""
    table = paper_table(made, _cell, escape)
    rows = "\n".join(f"{' & '.join(line)} \\\\" for line in table.rows)
    return rf"""% \input this into a document with \usepackage{{booktabs}}, or compile it as it is
\expandafter\ifx\csname @twoclasseserror\endcsname\documentclass\else
\def\tablebegins{{\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}}}
\def\tableends{{\end{{document}}}}
\expandafter\tablebegins\fi
\begin{{table}}
\centering\small\setlength{{\tabcolsep}}{{4pt}}
\caption{{{escape(caption)}}}
\begin{{tabular}}{{l{"r" * (len(table.head) - 1)}}}
\toprule
{" & ".join(table.head)} \\
\midrule
{rows}
\bottomrule
\end{{tabular}}

\medskip\footnotesize\raggedright {" ".join(map(escape, notes))}
\end{{table}}
\ifdefined\tableends\expandafter\tableends\fi
"""


def escape(text: str) -> str:
    """Text as LaTeX sets it."""
    return "".join(_TEX.get(character, character) for character in text)


def _cell(score: str, delta: str, mark: str, best: bool) -> str:
    shown = rf"\textbf{{{escape(score)}}}" if best else escape(score)
    return shown + (rf" {{\footnotesize({escape(delta)}{escape(mark)})}}" if delta else "")
