"""What a run says on the terminal, beside its progress bar."""

import shutil
import sys
import textwrap
from collections.abc import Mapping

from simclrv2_tf.report.tables import short


def box(title: str, facts: Mapping[str, str]) -> str:
    """Facts under a title: in a frame on a terminal, as plain lines in a file or a pipe."""
    indent = max(map(len, facts), default=0) + 2
    lines = [f"{name:{indent}}{text}" for name, text in facts.items()]
    if not (sys.stdout.isatty() and "utf" in (sys.stdout.encoding or "").lower()):
        return "\n".join([title, *(f"  {line}" for line in lines)])
    width = max(20, min(shutil.get_terminal_size().columns, 100) - 4)
    title = short(title, width - 1)
    lines = [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent=" " * indent)]
    width = max(map(len, [title, *lines]))
    frame = [f"╭─ {title} {'─' * (width - len(title) - 1)}╮", *(f"│ {line:{width}} │" for line in lines)]
    return "\n".join([*frame, f"╰{'─' * (width + 2)}╯"])
