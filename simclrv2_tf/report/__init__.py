"""Figures and HTML pages about runs, and the text form of their numbers."""

from simclrv2_tf.report.page import (
    draw_figures,
    write_comparison,
    write_predictions,
    write_preview,
    write_report,
    write_selection,
)
from simclrv2_tf.report.tables import format_accuracies, format_table, format_value, run_summary

__all__ = [
    "draw_figures",
    "format_accuracies",
    "format_table",
    "format_value",
    "run_summary",
    "write_comparison",
    "write_predictions",
    "write_preview",
    "write_report",
    "write_selection",
]
