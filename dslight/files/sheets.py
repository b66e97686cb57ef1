"""Cells of CSV files that people open in a spreadsheet, which takes some texts for formulas and calculates them."""

from __future__ import annotations

from typing import Any

_BEGINS = tuple("=+-@\t\r\n＝＋－＠")


def cell(value: Any) -> Any:
    """A value as a cell: a text that a spreadsheet would calculate gets a quote in front; a number stays one."""
    if not isinstance(value, str) or not value.startswith(_BEGINS):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
