"""The report of an ablation: a table, pictures, and a page that holds them; made from run folders alone."""

from dslight.report.write import Report, report

__all__ = ["Report", "report"]
