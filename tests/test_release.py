"""What is built to be installed elsewhere: one version, the entry point, the requirements, nothing left out."""

import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser

import pytest

import simclrv2_tf
from simclrv2_tf import cli

ROOT = pathlib.Path(__file__).parents[1]
BUILD = """
import sys
from setuptools import build_meta
place = sys.argv[1]  # which setuptools changes
build_meta.build_sdist(place)
build_meta.build_wheel(place)
"""


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here gets as far as Keras."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist and the wheel, of a copy of what is in the repository."""
    place = tmp_path_factory.mktemp("release")
    shutil.copytree(
        ROOT,
        place / "source",
        ignore=lambda at, names: [n for n in names if n[0] == "." or (at == str(ROOT) and n in ("runs", "tests"))],
    )
    run = subprocess.run(
        [sys.executable, "-c", BUILD, str(place)], cwd=place / "source", capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return [*place.glob("*.tar.gz"), *place.glob("*.whl")]


def requirements(name: str) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [line for line in lines if line]


def test_the_wheel_says_what_it_is_and_needs(built):
    _, wheel = built
    assert wheel.name == f"simclrv2_tf-{simclrv2_tf.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert entry_points == "[console_scripts]\nsimclrv2-tf = simclrv2_tf.cli:main\n" and callable(cli.main)
    assert metadata["Version"] == simclrv2_tf.__version__ and metadata["License-Expression"] == "Apache-2.0"
    asked = metadata.get_all("Requires-Dist")
    assert [line for line in asked if "extra" not in line] == requirements("requirements.txt")
    extras = [line.partition(";")[0] for line in asked if "extra" in line]
    assert extras == requirements("requirements-heif.txt") + requirements("requirements-onnx.txt")
    package = {path for path in (ROOT / "simclrv2_tf").rglob("*.*") if path.suffix != ".pyc"}
    assert {path.suffix for path in package} == {".py", ".html", ".css", ".js", ".json"}
    assert {str(path.relative_to(ROOT)) for path in package} == {name for name in names if ".dist-info/" not in name}


def test_the_sdist_has_what_its_build_and_its_reader_need(built):
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"run.py", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/design.md"} <= names
    assert {path.name for path in ROOT.glob("requirements*.txt")} <= names
    assert {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.*")} <= names
