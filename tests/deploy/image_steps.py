"""Runs the steps of a Dockerfile without a container engine: files go to a folder, packages to a venv.

``python tests/deploy/image_steps.py Dockerfile FOLDER [ARGUMENTS …]`` builds it and runs the entry point with the
arguments, by default those of CMD. The user of the image is not created.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass
class Image:
    """Instructions of a Dockerfile.

    Attributes:
        steps: name and arguments of each instruction, in order.
    """

    steps: list[tuple[str, str]]

    @classmethod
    def read(cls, path: pathlib.Path) -> "Image":
        """Reads a Dockerfile of one stage, without comments and continued lines."""
        lines = re.sub(r"\\\n\s*", " ", path.read_text()).splitlines()
        return cls([tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")])

    def last(self, name: str) -> str:
        """Returns the arguments of the last instruction of this name."""
        return [arguments for step, arguments in self.steps if step == name][-1]


def build(image: Image, folder: pathlib.Path) -> dict[str, str]:
    """Runs COPY, ENV, WORKDIR and RUN; returns the environment variables of the image."""
    venv.create(folder / "venv", with_pip=True)
    environment = {"PATH": f"{folder}/venv/bin:{os.environ['PATH']}", "HOME": str(folder)}
    place = folder
    for name, arguments in image.steps:
        if name == "ENV":
            environment |= dict(pair.split("=", 1) for pair in arguments.split())
        elif name == "WORKDIR":
            place = folder / arguments.lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                _copy(ROOT / source, place / target if len(sources) == 1 and target != "./" else place / source)
        elif name == "RUN" and "useradd" not in arguments:
            subprocess.run(["/bin/sh", "-c", arguments], cwd=place, env=environment, check=True)
    return environment


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def main() -> None:
    path, folder, *arguments = sys.argv[1:]
    image, place = Image.read(pathlib.Path(path)), pathlib.Path(folder).absolute()
    environment = build(image, place)
    command = [*json.loads(image.last("ENTRYPOINT")), *(arguments or json.loads(image.last("CMD")))]
    program = shutil.which(command[0], path=environment["PATH"])
    work = place / image.last("WORKDIR").lstrip("/")
    sys.exit(subprocess.run([program, *command[1:]], cwd=work, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
