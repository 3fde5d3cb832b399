"""What people look at: the figures of a run, and the page that shows them."""

from simclrv2_tf.report.page import write_comparison, write_preview, write_report
from simclrv2_tf.report.tables import cell, facts, format_table, scores

__all__ = ["cell", "facts", "format_table", "scores", "write_comparison", "write_preview", "write_report"]
