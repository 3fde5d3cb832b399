"""Benchmarks and tools are not run by the tests, but their imports must exist, and pages contain their results."""

import ast
import importlib
import importlib.util
import pathlib
import shutil
import sys

import pytest

sys.path.insert(0, "benchmarks")
import peer

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py"), *(ROOT / "tools").rglob("*.py")]
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_imported_names_exist(file):
    imports = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        if node.module.split(".")[0] == "simclrv2_tf":
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                exists = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}") is not None
                assert exists, f"{file.name}:{node.lineno}: {node.module} has no {name}"


def test_the_pages_hold_the_results_beside_the_peer(tmp_path):
    pages = ("README.md", "docs/results.md")
    (tmp_path / "docs").mkdir()
    for page in pages:
        shutil.copy(ROOT / page, tmp_path / page)
    peer.draw(tmp_path)
    for page in pages:
        assert (tmp_path / page).read_text() == (ROOT / page).read_text()
