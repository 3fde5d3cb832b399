"""Summary boxes printed at the start and end of a run."""

import shutil
import sys
import textwrap
from collections.abc import Mapping

from simclrv2_tf.errors import shorten


def box(title: str, facts: Mapping[str, str]) -> str:
    """Formats facts under a title: framed on a terminal, as plain lines in a file or a pipe."""
    indent = max(map(len, facts), default=0) + 2
    lines = [f"{name:{indent}}{text}" for name, text in facts.items()]
    if not (sys.stdout.isatty() and "utf" in (sys.stdout.encoding or "").lower()):
        return "\n".join([title, *(f"  {line}" for line in lines)])
    width = max(20, min(shutil.get_terminal_size().columns, 100) - 4)
    title = shorten(title, width - 1)
    lines = [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent=" " * indent)]
    width = max(map(len, [title, *lines]))
    body = [f"│ {line:{width}} │" for line in lines]
    return "\n".join([f"╭─ {title} {'─' * (width - len(title) - 1)}╮", *body, f"╰{'─' * (width + 2)}╯"])
