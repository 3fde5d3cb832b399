"""Writes the tables of the benchmarks into the pages of ``docs/``, with the command, machine and date."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import sys

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


def write(page: str | pathlib.Path, section: str, text: str) -> None:
    """Replaces the text between ``<!-- section -->`` and ``<!-- end of section -->`` in ``docs/page``, or a path."""
    path, begin, end = ROOT / "docs" / page, f"<!-- {section} -->", f"<!-- end of {section} -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"{path}: has no section {begin} … {end}")
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
    print(f"{path}: {section} written")
