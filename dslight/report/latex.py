r"""A table of the report in LaTeX, with nothing but booktabs.

One file for both uses: compiled by itself it is a document, and ``\input`` into one it is a ``table``. LaTeX redefines
``\documentclass`` once a document has one, by which the file knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup

from dslight.report.page import Table
from dslight.report.rows import LIKELY, RETRAINED

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


_TAGS = {"<strong>": r"\textbf{", "</strong>": "}", '<span class="small">': r"{\footnotesize ", "</span>": "}"}


def to_latex(table: Table, title: str, notes: Sequence[str]) -> str:
    """The table under its title, and the notes below it."""
    head, *rows = (f"{' & '.join(map(_cell, line))} \\\\" for line in (table.head, *table.rows))
    body = "\n".join(rows)
    return rf"""% \input this into a document with \usepackage{{booktabs}}, or compile it as it is
\expandafter\ifx\csname @twoclasseserror\endcsname\documentclass\else
\def\tablebegins{{\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}}}
\def\tableends{{\end{{document}}}}
\expandafter\tablebegins\fi
\begin{{table}}
\centering\small\setlength{{\tabcolsep}}{{4pt}}
\caption{{{escape(title)}}}
\begin{{tabular}}{{l{"r" * (len(table.head) - 1)}}}
\toprule
{head}
\midrule
{body}
\bottomrule
\end{{tabular}}

\medskip\footnotesize\raggedright {" ".join(map(escape, notes))}
\end{{table}}
\ifdefined\tableends\expandafter\tableends\fi
"""


def escape(text: str) -> str:
    """Text as LaTeX sets it."""
    return "".join(_TEX.get(character, character) for character in text)


def _cell(cell: str) -> str:
    if not isinstance(cell, Markup):
        return escape(cell)
    pieces = re.split("(<[^>]*>)", cell)  # every second one is a tag
    return "".join(_TAGS.get(one, "") if i % 2 else escape(Markup(one).unescape()) for i, one in enumerate(pieces))
