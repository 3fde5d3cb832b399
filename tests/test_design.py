"""The links of the walk through a training step in docs/design.md lead to the right lines."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs/design.md"
LINK = re.compile(r"\[`(\w+)`\]\(\.\./(simclrv2_tf/[\w/]+\.py)#L(\d+)\)")
LINKS = LINK.findall(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here uses Keras."""


def definition_line(path: str, name: str) -> int:
    """Returns the number of the line that defines a function or class, from 1."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return next(n for n, line in enumerate(lines, 1) if re.match(rf"\s*(def|class) {name}\b", line))


def test_the_walk_is_short():
    assert len({path for _, path, _ in LINKS}) <= 9
    assert len({name for name, _, _ in LINKS}) <= 25


@pytest.mark.parametrize(("name", "path", "line"), LINKS)
def test_each_link_leads_to_the_definition_it_names(name, path, line):
    assert int(line) == definition_line(path, name), "run python tests/test_design.py"


if __name__ == "__main__":
    update = lambda link: link[0].replace(f"#L{link[3]}", f"#L{definition_line(link[2], link[1])}")  # noqa: E731
    PAGE.write_text(LINK.sub(update, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
