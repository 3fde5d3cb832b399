"""Benchmarks and tools are not run by the tests, but what they import from this repository must exist."""

import ast
import importlib
import importlib.util
import pathlib

import pytest

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
