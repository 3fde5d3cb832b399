"""Wheel and sdist: version, entry point, requirements, metadata, completeness."""

import ast
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import simclrv2_tf
from simclrv2_tf import cli

EXTRAS = {"gpu", "tpu", "onnx", "hub", "heic", "umap", "mlflow", "wandb"}
ROOT = pathlib.Path(__file__).parents[1]
BUILD = """
import sys
from hatchling import build
build.build_sdist(sys.argv[1])
build.build_wheel(sys.argv[1])
"""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytest.importorskip("hatch_fancy_pypi_readme", reason="the packages that build the wheel are not installed")
pytest.importorskip("hatch_requirements_txt")


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here uses Keras."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Returns the sdist and the wheel, built from a copy of the repository; the build leaves no files in it."""
    place = tmp_path_factory.mktemp("release")

    def left_out(folder, names):
        at_root = ("runs", "tests") if folder == str(ROOT) else ()
        return [name for name in names if name[0] == "." or name in ("__pycache__", *at_root)]

    shutil.copytree(ROOT, place / "source", ignore=left_out)
    before = sorted((place / "source").rglob("*"))
    run = subprocess.run(
        [sys.executable, "-B", "-c", BUILD, str(place)], cwd=place / "source", capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert sorted((place / "source").rglob("*")) == before
    return [*place.glob("*.tar.gz"), *place.glob("*.whl")]


def requirements(name: str) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [line for line in lines if line]


def test_contents_and_metadata_of_the_wheel(built):
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
    needed = {str(Requirement(line)).replace("_", "-") for line in requirements("requirements.txt")}
    assert {line for line in asked if "extra" not in line} == needed
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS == set(PROJECT["optional-dependencies"])
    assert {"Programming Language :: Python :: 3.13"} < set(metadata.get_all("Classifier"))
    assert len(metadata.get_all("Project-URL")) == 2 and "SimCLR" in metadata["Keywords"]
    package = {path for path in (ROOT / "simclrv2_tf").rglob("*.*") if path.suffix != ".pyc"}
    assert {path.suffix for path in package} == {".py", ".html", ".css", ".js", ".json", ".typed"}
    assert {str(path.relative_to(ROOT)) for path in package} == {name for name in names if ".dist-info/" not in name}


def test_links_of_the_readme_work_on_a_package_index(built):
    with zipfile.ZipFile(built[1]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        readme = Parser().parsestr(archive.read(name).decode()).get_payload()
    targets = re.findall(r"\]\(([^)\s]+)\)", readme)
    assert targets and all(target.startswith(("https://", "#")) for target in targets)
    assert "Quickstart (`docs/quickstart.md`)" in readme


def test_the_development_requirements_agree_with_the_extras():
    extras = PROJECT["optional-dependencies"]
    assert {*extras["heic"], *extras["onnx"]} <= set(requirements("requirements-dev.txt"))


def test_the_constraints_pin_every_requirement_within_its_bounds():
    pins = {canonicalize_name(Requirement(line).name): Requirement(line) for line in requirements("constraints.txt")}
    for line in requirements("requirements.txt"):
        required = Requirement(line)
        (pin,) = pins[canonicalize_name(required.name)].specifier
        assert pin.operator == "==" and pin.version in required.specifier, line


@pytest.mark.parametrize(
    "name", ["tensorflow_datasets", "pyarrow", "mlflow", "wandb", "pillow_heif", "tf2onnx", "umap"]
)
def test_optional_packages_are_imported_only_where_they_are_used(name):
    for path in (ROOT / "simclrv2_tf").rglob("*.py"):
        at_import = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [alias.name for node in at_import for alias in node.names]
        names += [node.module or "" for node in at_import if isinstance(node, ast.ImportFrom)]
        assert name not in {each.partition(".")[0] for each in names}, path


def test_the_workflow_covers_every_supported_python():
    workflow = (ROOT / ".github/workflows/test.yml").read_text()
    supported = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert re.search(r"python: \[(.*)\]", workflow)[1] == ", ".join(f'"{version}"' for version in supported)
    assert "make test" in workflow and "constraints.txt" in workflow


def test_contents_of_the_sdist(built):
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"run.py", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/design.md"} <= names
    assert {path.name for path in ROOT.glob("requirements*.txt")} <= names
    assert {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.*")} <= names
