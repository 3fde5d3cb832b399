"""Writes the tables of the benchmarks into the pages of ``docs/``, with the command, machine and date."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]


def machine() -> str:
    """Returns the processors of this machine."""
    processors = pathlib.Path("/proc/cpuinfo")
    models = [line for line in processors.read_text().splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} shared cores of {models[0].partition(': ')[2] if models else platform.processor()}"


def origin(command: str) -> str:
    """Returns one line: command, machine, date, versions."""
    packages = ("tensorflow", "keras", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"`{command}`; {machine()}, {datetime.date.today()}; Python {platform.python_version()}, {versions}."


def stamp() -> dict[str, str]:
    """Returns the date and the machine, for a line of results."""
    return {"date": str(datetime.date.today()), "device": machine()}


def read_lines(path: pathlib.Path) -> list[dict]:
    """Returns the results in a file of JSON lines; none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append_line(path: pathlib.Path, line: dict) -> None:
    """Adds a result to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


def stamps(lines: Sequence[dict]) -> str:
    """Returns the machines and dates of the lines, each once."""
    return ", ".join(sorted({f"{line['device']}, {line['date']}" for line in lines}))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; its first row is its head."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def spread(values: Sequence[float], sign: str = "") -> str:
    """Formats mean and standard deviation in %; a single value has none."""
    mean = f"{100 * statistics.mean(values):{sign}.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def write(page: str | pathlib.Path, section: str, text: str) -> None:
    """Replaces the text between ``<!-- section -->`` and ``<!-- end of section -->`` in ``docs/page``, or a path."""
    path, begin, end = ROOT / "docs" / page, f"<!-- {section} -->", f"<!-- end of {section} -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"{path}: has no section {begin} … {end}")
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
    print(f"{path}: {section} written")
