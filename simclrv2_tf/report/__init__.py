"""What people look at: the figures of a run, and the page that shows them."""

from simclrv2_tf.report.page import write_comparison, write_report
from simclrv2_tf.report.tables import facts, format_table

__all__ = ["facts", "format_table", "write_comparison", "write_report"]
