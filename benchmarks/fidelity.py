"""Measures how close every module is to the official code; writes the tables of ``docs/fidelity.md``.

    python benchmarks/fidelity.py

Runs every test, slow ones too, that compares with recorded numbers through the fixture ``parity`` of
``tests/conftest.py``, and collects the deviations. Writes nothing if a test fails.
"""

import os
import pathlib
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import pytest

from benchmarks.page import ROOT, origin, write


class Deviation(NamedTuple):
    """The largest deviation of a case, in multiples of a unit."""

    test_file: str
    case: str
    precision: str
    numbers: int
    deviation: float
    tolerance: float
    unit: str

    @property
    def module(self) -> str:
        return pathlib.PurePath(self.test_file).stem.removeprefix("test_").replace("_", " ")

    @property
    def nearness(self) -> float:
        """Ratio of deviation and tolerance."""
        return self.deviation / self.tolerance if self.tolerance else 0.0

    def __or__(self, other: "Deviation") -> "Deviation":
        """Returns the deviation that is closer to its tolerance, with the count of both."""
        return max(self, other, key=lambda one: one.nearness)._replace(numbers=self.numbers + other.numbers)


class Collector:
    """Pytest plugin that runs the tests that use ``parity`` and keeps the largest deviation of each case."""

    def __init__(self) -> None:
        self.cases: dict[tuple[str, str, str], Deviation] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if "parity" in item.fixturenames]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "parity":
                measured = Deviation(report.nodeid.partition("::")[0], *value)
                key = (measured.test_file, measured.case, measured.precision)
                self.cases[key] = self.cases[key] | measured if key in self.cases else measured


def table(deviations: list[Deviation], first: str) -> str:
    """Formats deviations as a Markdown table."""
    lines = [f"| {first} | precision | numbers | largest deviation | tolerance | unit |", "|---|---|---|---|---|---|"]
    for one in deviations:
        name = one.case if first == "case" else f"[{one.module}](../{one.test_file})"
        lines.append(
            f"| {name} | {one.precision} | {one.numbers:,} | {one.deviation:.2g} | {one.tolerance:.2g} | {one.unit} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures the deviations and writes the page."""
    os.chdir(ROOT)
    collector = Collector()
    arguments = ["tests", "-n", "0", "-m", "slow or not slow", "--tb=short"]
    if status := pytest.main(arguments, plugins=[collector]):
        sys.exit(int(status))
    cases = sorted(collector.cases.values(), key=lambda one: one.test_file)
    modules: dict[tuple[str, str, str], Deviation] = {}
    for one in cases:
        key = (one.test_file, one.precision, one.unit)
        modules[key] = modules[key] | one if key in modules else one
    text = [origin("python benchmarks/fidelity.py"), "", table(list(modules.values()), "module")]
    for file in dict.fromkeys(one.test_file for one in cases):
        of_file = [one for one in cases if one.test_file == file]
        text += ["", f"### {of_file[0].module.capitalize()}", "", table(of_file, "case")]
    write("fidelity.md", "deviations", "\n".join(text))


if __name__ == "__main__":
    main()
