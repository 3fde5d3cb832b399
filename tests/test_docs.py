"""Tests the pages: the command line accepts every command and runs it at toy size if it can; links and names exist.

A command that is not run must match a line of ``NOT_RUN``, which gives the reason, so that none is skipped silently.
"""

import dataclasses
import pathlib
import re
import shlex
import string

import numpy as np
import pytest

from simclrv2_tf import cli, help
from simclrv2_tf.settings import official_flags
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.fields import STAGES
from simclrv2_tf.settings.merge import resolve

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "benchmarks/README.md", ROOT / "CONTRIBUTING.md"]

# Part of a command: why it is not run here. Its flags are checked anyway.
NOT_RUN = {
    r"^(cd|git|source) ": "changes the reader's own shell",
    r"^(sudo|pip|\S+/pip) ": "installs packages",
    r"^make ": "takes minutes; its target is checked",
    r"^gcloud |tpu_vm.sh": "needs an account and a TPU",
    r"^(docker|kubectl) ": "needs a container engine or a cluster",
    r"^sbatch ": "tests/distributed/test_slurm.py runs it",
    r"--tracker": "tests/runs/test_trackers.py runs it",
    r"^tensorboard ": "runs until it is stopped",
    r"--use_tpu|tpu_preflight": "needs a TPU, or libtpu",
    r"machine0|^srun |data[._]service": "needs several machines",
    r"gs://|runs/r(50|152)": "needs the published checkpoints, or runs that start from them",
    r"imagenet|cifar10|stl10": "needs data from the network",
    r"keras_hub:dinov2_": "needs weights from the network",
    r"--mode=semi_supervised": "takes five stages, which tests/modes/test_modes.py runs",
    r"runs/digits": "needs the five stages",
    r"--mode=benchmark": "measures for half a minute; tests/modes/test_benchmark.py runs it",
    r"--mode=check_devices": "takes a minute; tests/modes/test_check_devices.py runs it",
    r"--mode=preview": "takes as long as a run; tests/modes/test_modes.py runs it",
    r"--(help|recipe=help)$": "only prints; tests/test_cli.py and tests/settings/test_recipes.py check it",
}

# Flags of run.py that are not settings, and those of other programs that the pages mention.
OTHER_FLAGS = {
    "run.py": {"help", "helpfull", "version", "quiet", "v", "flagfile", "config", "completion"},
    "the official code": set(official_flags.TYPES),
    "containers and Slurm": {"gpus", "shm-size", "user", "nodes", "gpus-per-task", "server-side"},
    "tools and benchmarks": {
        *("topology", "address", "study", "case", "profile", "threads", "batch", "micro_batch", "rounds", "rows"),
        *("forms", "jax-python", "torch-python", "logdir", "signal"),
    },
}

# Flags that make a run small. They follow the command's own flags, and absl takes the last value of a flag.
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
    """A command of a page, as the words that a shell would pass on."""

    page: str
    words: tuple[str, ...]
    is_inline: bool = False  # only checked, not run

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def flags(self) -> list[str] | None:
        """The flags of ``run.py``, or those that a tool passes on to it; None for another program."""
        for position, word in enumerate(self.words):
            if pathlib.PurePath(word).name in ("run.py", "simclrv2-tf"):
                return list(self.words[position + 1 :])
            if word == "tools.tpu_preflight":
                return [flag for flag in self.words[position + 1 :] if not flag.startswith("--topology=")]
        return None

    @property
    def own_file(self) -> str:
        """The content of the file that the command runs, if the reader has saved it from the page; else ""."""
        page = next(path for path in PAGES if path.name == self.page) if self.page else None
        return dict(files_of(page)).get(self.words[1], "") if page and self.words[0] == "python" else ""

    @property
    def reasons_not_to_run(self) -> list[str]:
        """The patterns of ``NOT_RUN`` that match."""
        return [pattern for pattern in NOT_RUN if re.search(pattern, str(self))]


def code_blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def files_of(page: pathlib.Path) -> list[tuple[str, str]]:
    """Returns the Python files that the reader saves: code blocks after a line that names a file."""
    return re.findall(r"`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page: pathlib.Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def parse_commands(block: str) -> list[list[str]]:
    """Splits a block into commands as a shell does: comments, continued lines, multi-line quotes, variables."""
    commands, variables, pending = [], {}, ""
    for line in block.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quote is still open
            pending += "\n"
            continue
        pending = ""
        if words[:1] == ["export"]:
            del words[0]
        while words and re.fullmatch(r"\w+=.*", words[0], re.DOTALL):
            name, _, value = words.pop(0).partition("=")
            variables[name] = string.Template(value).safe_substitute(variables)
        if words:
            commands.append([string.Template(word).safe_substitute(variables) for word in words])
    assert not pending, f"unfinished command: {pending}"
    return commands


def commands_of(page: pathlib.Path) -> list[Command]:
    """Returns the commands in the page's code blocks, then those inline in its text and tables."""
    in_blocks = [words for block in code_blocks(page, "bash") for words in parse_commands(block)]
    inline = re.findall(r"`((?:python run\.py|simclrv2-tf) [^`…]*)`", prose(page))
    return [
        *(Command(page.name, tuple(words)) for words in in_blocks),
        *(Command(page.name, tuple(shlex.split(text)), is_inline=True) for text in inline),
    ]


COMMANDS = [command for page in PAGES for command in commands_of(page)]


def test_commands_are_parsed_as_a_shell_does():
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
    assert parse_commands(block) == expected
    assert Command("", ("srun", ".venv/bin/python", "run.py", "--quiet")).flags == ["--quiet"]
    assert len(COMMANDS) > 50 and len({command.page for command in COMMANDS}) > 5


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.flags is not None], ids=lambda c: f"{c.page}: {c}")
def test_flags_of_a_command_are_valid_together(command, caplog):
    if help.REQUESTS & set(command.flags):
        return
    settings = cli.parse(["run.py", *command.flags])
    assert "does not read" not in caplog.text
    if settings.get("recipe") == "help":
        return
    stages = STAGES if settings.get("mode") == "semi_supervised" else ("",)
    for stage in stages:
        parents = {"checkpoint": "runs/pretrained", "teacher": "runs/teacher"} if stage else {}
        assert isinstance(resolve(parents | settings, stage), Config)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_the_text_exist(page):
    settings = {field.name for field in dataclasses.fields(Config)}
    known = settings | {f"no{name}" for name in settings} | set().union(*OTHER_FLAGS.values())
    mentioned = {name for code in re.findall(r"`([^`]*)`", prose(page)) for name in re.findall(r"--([\w-]+)", code)}
    assert mentioned <= known, mentioned - known


def test_a_run_starts_from_a_run_of_the_pages():
    settings = [cli.parse(["run.py", *c.flags]) for c in COMMANDS if c.flags and not help.REQUESTS & set(c.flags)]
    run_dirs = {resolve(flags).run_dir for flags in settings if flags.get("recipe") != "help"}
    run_dirs |= {"runs/digits-seed0", "runs/digits-seed1"}  # make demo, make demo SEED=1
    for flags in settings:
        for start in (flags.get("checkpoint"), flags.get("teacher"), *flags.get("compare", "").split(",")):
            is_known = not start or start.startswith("gs://")
            assert is_known or any(f"{start}/".startswith(f"{run_dir}/") for run_dir in run_dirs), start


def test_other_programs_are_listed_and_their_files_exist():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    for command in COMMANDS:
        if command.flags is None and not command.own_file:
            assert command.reasons_not_to_run, f"{command.page}: {command}: run it, or add the reason to NOT_RUN"
        if command.words[0] == "make":
            assert {word for word in command.words[1:] if "=" not in word} <= set(targets), command
        if command.words[0] == "python" and command.words[1].endswith(".py") and not command.own_file:
            assert (ROOT / command.words[1]).is_file(), command
        if command.words[:2] == ("python", "-m"):
            path = ROOT / command.words[2].replace(".", "/")
            assert path.with_suffix(".py").is_file() or path.is_dir(), command


def test_every_reason_not_to_run_is_used():
    used = {pattern for command in COMMANDS if not command.is_inline for pattern in command.reasons_not_to_run}
    assert used == set(NOT_RUN)


# Running


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the images and examples that the pages assume, and the commands that have already run in it."""
    import tensorflow as tf

    place = tmp_path_factory.mktemp("reader")
    (place / "examples").symlink_to(ROOT / "examples")
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
    (place / "data/new").symlink_to(unlabelled)
    return place, set()


def runnable_commands(page):
    commands = [c for c in commands_of(page) if c.flags is not None or c.own_file]
    return [c for c in commands if not c.is_inline and not c.reasons_not_to_run]


# The tests above check their commands, and those of the modes run them.
SLOW = {"README.md", "modes.md", "own_data.md", "design.md", "foundation_models.md"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else (), id=page.name)
        for page in PAGES
        if (runnable_commands(page) or code_blocks(page, "python")) and page.name != "library.md"  # see test_library.py
    ],
)
def test_commands_of_a_page_run_in_order(page, place, monkeypatch):
    import keras

    directory, done = place
    monkeypatch.chdir(directory)
    for name, block in files_of(page):
        pathlib.Path(name).write_text(block)
    for command in runnable_commands(page):
        if str(command) in done:
            continue
        keras.backend.clear_session()  # the reader runs each command in a new process
        if command.own_file:
            exec(compile(command.own_file, page.name, "exec"), {})
            continue
        mode = cli.parse(["run.py", *command.flags]).get("mode", "pretrain")
        flags = [flag.replace("/data/", f"{directory}/data/") for flag in command.flags]
        cli.main(["run.py", *flags, *TOY.get(mode, [])])
        done.add(str(command))
    for block in code_blocks(page, "python"):
        exec(compile(block.replace("/data/", f"{directory}/data/"), page.name, "exec"), {})


# Links and names


def anchors(page: pathlib.Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub names them."""
    names: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        count = 0
        while (name := f"{slug}-{count}" if count else slug) in names:
            count += 1
        names.add(name)
    return names


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_existing_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if line := re.fullmatch(r"L(\d+)", anchor):
            assert int(line[1]) <= len(file.read_text().splitlines()), target
        else:
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_and_benchmarks_that_a_page_names_exist(page):
    tests = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    names = set(re.findall(r"(?:def|class) (\w+)", "\n".join(tests.values())))
    for code in re.findall(r"`([^`]*)`", prose(page)):
        for path in re.findall(r"(?:tests|benchmarks|examples)/[\w/]+\.\w+", code):
            assert (ROOT / path).is_file(), path
        for name in re.findall(r"\b(test_\w+|Test\w+)(?![\w/])", code):
            assert name in names or f"{name}.py" in tests, name


def test_the_index_lists_every_page():
    index = (ROOT / "docs/README.md").read_text()
    for page in PAGES:
        assert page.name == "README.md" or f"({page.name})" in index, page.name
