"""The pages: every command is read by the real command line and run at toy size if it can be; links lead somewhere.

A command that is not run must match a line of ``NOT_RUN``, which says why, so that none slips through untested.
"""

import dataclasses
import pathlib
import re
import shlex
import string

import numpy as np
import pytest

from simclrv2_tf import cli
from simclrv2_tf.settings.config import STAGES, Config
from simclrv2_tf.settings.merge import resolve

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "benchmarks/README.md", ROOT / "CONTRIBUTING.md"]

# What a command holds: why it is not run here. Its flags are read all the same.
NOT_RUN = {
    r"^(cd|git|source) ": "the reader's own shell",
    r"^(sudo|pip|\S+/pip) ": "installs packages",
    r"^make ": "takes minutes; that the Makefile has it is tested",
    r"^gcloud ": "needs an account and a TPU",
    r"^tensorboard ": "serves until it is stopped",
    r"--use_tpu|tpu_preflight": "needs a TPU, or libtpu",
    r"machine0|^srun ": "needs several machines",
    r"gs://|runs/r(50|152)": "needs the published checkpoints or what came from them",
    r"imagenet|cifar10|stl10": "needs data from the network",
    r"--mode=semi_supervised": "five stages, which tests/modes/test_modes.py runs",
    r"runs/digits": "needs the five stages",
    r"--mode=benchmark": "measures for half a minute; tests/modes/test_benchmark.py runs it",
    r"--mode=preview": "takes as long as a run; tests/modes/test_modes.py runs it",
    r"--(help|recipe=help)$": "only prints; tests/test_cli.py and tests/settings/test_recipes.py read it",
}

# What makes a run a toy, after its own flags; absl takes the last one.
STEPS = ["--train_steps=2", "--checkpoint_steps=2", "--train_batch_size=8", "--noreport"]
SMALL = ["--image_size=16", "--resnet_depth=10", "--width_multiplier=0.0625"]
TOY = {
    "pretrain": STEPS + SMALL,
    "supervised": STEPS + SMALL,
    "linear_eval": STEPS,
    "finetune": STEPS,
    "distill": STEPS + SMALL[1:],
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page, its words as the shell would pass them on."""

    page: str
    words: tuple[str, ...]
    in_text: bool = False  # which is read, not run

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def flags(self) -> list[str] | None:
        """Of ``run.py``; None for another program."""
        for position, word in enumerate(self.words):
            if pathlib.PurePath(word).name in ("run.py", "simclrv2-tf"):
                return list(self.words[position + 1 :])
        return None

    @property
    def why_not_run(self) -> list[str]:
        """The lines of ``NOT_RUN`` that it matches."""
        return [pattern for pattern in NOT_RUN if re.search(pattern, str(self))]


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page: pathlib.Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands_in(block: str) -> list[list[str]]:
    """Comments, continued lines, quotations over several lines and variables as in a shell."""
    found, variables, pending = [], {}, ""
    for line in block.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation is still open
            pending += "\n"
            continue
        pending = ""
        if words[:1] == ["export"]:
            del words[0]
        while words and re.fullmatch(r"\w+=.*", words[0], re.DOTALL):
            name, _, value = words.pop(0).partition("=")
            variables[name] = string.Template(value).safe_substitute(variables)
        if words:
            found.append([string.Template(word).safe_substitute(variables) for word in words])
    assert not pending, f"a command without an end: {pending}"
    return found


def commands_of(page: pathlib.Path) -> list[Command]:
    """Those of its blocks, then those that stand whole in a line of text or in a table."""
    in_blocks = [words for block in blocks(page, "bash") for words in commands_in(block)]
    inline = re.findall(r"`((?:python run\.py|simclrv2-tf) [^`…]*)`", prose(page))
    return [
        *(Command(page.name, tuple(words)) for words in in_blocks),
        *(Command(page.name, tuple(shlex.split(text)), in_text=True) for text in inline),
    ]


COMMANDS = [command for page in PAGES for command in commands_of(page)]


def test_commands_are_found_as_a_shell_would_see_them():
    block = """
# a comment
NAME=r50 RUN=runs/$NAME
python run.py --mode=evaluate \\
  --checkpoint=$RUN   # and why
ssh host --command='
  one && two'
"""
    expected = [
        ["python", "run.py", "--mode=evaluate", "--checkpoint=runs/r50"],
        ["ssh", "host", "--command=\n  one && two"],
    ]
    assert commands_in(block) == expected
    assert Command("", ("srun", ".venv/bin/python", "run.py", "--quiet")).flags == ["--quiet"]
    assert len(COMMANDS) > 50 and len({command.page for command in COMMANDS}) > 5


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.flags is not None], ids=lambda c: f"{c.page}: {c}")
def test_every_flag_is_one_and_the_settings_agree(command):
    if cli.HELP & set(command.flags):
        return
    explicit = cli.parse(["run.py", *command.flags])
    if explicit.get("recipe") == "help":
        return
    stages = STAGES if explicit.get("mode") == "semi_supervised" else ("",)
    for stage in stages:
        starting = {"checkpoint": "runs/pretrained", "teacher": "runs/teacher"} if stage else {}
        assert isinstance(resolve(starting | explicit, stage), Config)


def test_a_run_starts_from_one_that_the_pages_make():
    explicit = [cli.parse(["run.py", *c.flags]) for c in COMMANDS if c.flags and not cli.HELP & set(c.flags)]
    made = {resolve(said).run_dir for said in explicit if said.get("recipe") != "help"}
    made |= {"runs/digits-seed0", "runs/digits-seed1"}  # make demo, make demo SEED=1
    for said in explicit:
        for start in (said.get("checkpoint"), said.get("teacher"), *said.get("compare", "").split(",")):
            known = not start or start.startswith("gs://")
            assert known or any(f"{start}/".startswith(f"{run}/") for run in made), start


def test_other_programs_are_named_and_their_files_are_there():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    for command in COMMANDS:
        if command.flags is None:
            assert command.why_not_run, f"{command.page}: {command}: run it, or say in NOT_RUN why not"
        if command.words[0] == "make":
            assert {word for word in command.words[1:] if "=" not in word} <= set(targets), command
        if command.words[0] == "python" and command.words[1].endswith(".py"):
            assert (ROOT / command.words[1]).is_file(), command


def test_every_reason_not_to_run_is_needed():
    used = {pattern for command in COMMANDS if not command.in_text for pattern in command.why_not_run}
    assert used == set(NOT_RUN)


# Running


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the birds that the pages suppose, and the commands that have run in it and need not again."""
    import tensorflow as tf

    place = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    for name in ("robin", "wren"):
        folder = place / "data/birds" / name
        folder.mkdir(parents=True)
        for index in range(16):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            (folder / f"{index}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    unlabelled = place / "data/unlabelled"
    unlabelled.mkdir()
    for path in (place / "data/birds").rglob("*.png"):
        (unlabelled / f"{path.parent.name}{path.name}").symlink_to(path)
    return place, set()


def runnable(page):
    return [c for c in commands_of(page) if c.flags is not None and not c.in_text and not c.why_not_run]


# Its commands are read by the tests above, and its modes run by those of the modes.
SLOW = {"modes.md"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else (), id=page.name)
        for page in PAGES
        if runnable(page) or blocks(page, "python")
    ],
)
def test_a_page_runs_from_its_first_command_to_its_last(page, place, monkeypatch):
    import keras

    directory, ran = place
    monkeypatch.chdir(directory)
    for command in runnable(page):
        if str(command) in ran:
            continue
        keras.backend.clear_session()  # each command has a process of its own
        mode = cli.parse(["run.py", *command.flags]).get("mode", "pretrain")
        flags = [flag.replace("/data/", f"{directory}/data/") for flag in command.flags]
        cli.main(["run.py", *flags, *TOY.get(mode, [])])
        ran.add(str(command))
    for block in blocks(page, "python"):
        exec(compile(block.replace("/data/", f"{directory}/data/"), page.name, "exec"), {})


# Links


def anchors(page: pathlib.Path) -> set[str]:
    """As GitHub names them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        count = 0
        while (name := f"{slug}-{count}" if count else slug) in found:
            count += 1
        found.add(name)
    return found


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_index_names_every_page():
    index = (ROOT / "docs/README.md").read_text()
    for page in PAGES:
        assert page.name == "README.md" or f"({page.name})" in index, page.name
