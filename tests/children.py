"""Runs of the program in child processes, which may be killed, interrupted or denied the disk.

A fork server imports TensorFlow once, so that a child starts in a moment.
"""

import contextlib
import gc
import io
import json
import logging
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from types import FrameType

import numpy as np
import tensorflow as tf

from simclrv2_tf.runs.progress import Progress

PACKAGE = str(pathlib.Path(__file__).parents[1] / "simclrv2_tf")
SPEED = ("images_per_second",)  # what differs between two runs of the same bits
# A run of seconds that saves everything there is.
TOY = {
    "mode": "pretrain",
    "dataset": "digits",
    "recipe": "none",
    "resnet_depth": 10,
    "width_multiplier": 0.0625,
    "image_size": 8,
    "train_batch_size": 50,
    "train_steps": 11,
    "checkpoint_steps": 3,
    "eval_batch_size": 100,
    "eval_steps": 1,
    "memory_size": 100,
    "report": "false",
    "deterministic": "true",
}

Fault = contextlib.AbstractContextManager
NO_FAULT = contextlib.nullcontext()

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["children", "simclrv2_tf.modes"])


def run(settings: dict, log: pathlib.Path, fault: Fault = NO_FAULT) -> int:
    """Runs ``run.py`` with these settings to its end; returns its exit status, −n if signal n ended it.

    Args:
        settings: flags by name.
        log: file for what it writes.
        fault: entered in the child.
    """
    child = start(log, program, settings, fault)
    child.join()
    return child.exitcode


def start(log: pathlib.Path, function: Callable[..., None], *args: object) -> multiprocessing.process.BaseProcess:
    """Starts a function of an importable module in a child, whose output goes to the log."""
    child = context.Process(target=_logged, args=(log, function, *args))
    child.start()
    return child


def workers(count: int) -> list[dict[str, str]]:
    """Environments of workers on this machine that will find each other."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    tasks = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}} for i in range(count)]
    return [{"TF_CONFIG": json.dumps(task)} for task in tasks]


def _logged(log: pathlib.Path, function: Callable[..., None], *args: object) -> None:
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    function(*args)


def program(settings: dict, fault: Fault = NO_FAULT, environment: dict[str, str] | None = None) -> None:
    """Runs ``run.py`` with these settings in the child."""
    os.environ |= environment or {}
    from simclrv2_tf import cli

    with fault:
        cli.main(["run.py", *(f"--{name}={value}" for name, value in settings.items())])


class SignalAt(Fault):
    """Sends the process a signal at the n-th call that the package makes after its first training step.

    Args:
        call: n; 0: never.
        number: the signal.
        count_to: file for the number of calls.
        function: count only calls of functions of this name.
    """

    def __init__(
        self,
        call: int,
        number: signal.Signals = signal.SIGKILL,
        count_to: pathlib.Path | None = None,
        function: str = "",
    ):
        self.call, self.number, self.count_to, self.function = call, number, count_to, function

    def __enter__(self) -> None:
        add = Progress.add

        def watched(progress: Progress, *args: object) -> None:
            Progress.add = add
            sys.setprofile(self._watch)
            add(progress, *args)

        self.calls = 0
        Progress.add = watched

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        if self.count_to is not None:
            self.count_to.write_text(str(self.calls))

    def _watch(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(PACKAGE):
            self.calls += not self.function or (event == "call" and frame.f_code.co_name == self.function)
            if self.calls == self.call > 0:
                os.kill(os.getpid(), self.number)


class Meter(Fault):
    """Notes what the process uses when it has done so many steps."""

    def __init__(self, steps: set[int], told: pathlib.Path):
        self.steps, self.told, self.found = steps, told, []

    def __enter__(self) -> None:
        add = Progress.add

        def watched(progress: Progress, *args: object) -> None:
            add(progress, *args)
            if progress.step in self.steps:
                gc.collect()
                pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
                files, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
                megabytes = round(pages * resource.getpagesize() / 1e6, 1)
                self.found.append({"step": progress.step, "megabytes": megabytes, "files": files, "threads": threads})

        Progress.add = watched

    def __exit__(self, *error: object) -> None:
        self.told.write_text(json.dumps(self.found))


class FileSizeLimit(Fault):
    """No file may grow beyond so many bytes: every write past them fails, as on a full disk.

    Args:
        size: so many.
        fatal: the first of these writes kills the process instead, in its middle.
    """

    def __init__(self, size: int, fatal: bool = False):
        self.size, self.fatal = size, fatal

    def __enter__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if self.fatal else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))

    def __exit__(self, *error: object) -> None:
        """The limit ends with the process."""


class FullDisk(Fault):
    """The disk is full as soon as the program is about to change something in a folder that is not yet known.

    From then on no file can grow, whether Python or TensorFlow writes to it: the limit is the kernel's.

    Args:
        folder: where changes are watched.
        known: the changes that have met a full disk before, or were let through; they are added to.
        stride: the disk fills up at every ``stride``-th new change.
    """

    def __init__(self, folder: pathlib.Path, known: dict[str, None], stride: int):
        self.folder, self.known, self.stride, self.full_at = folder, known, stride, ""

    def __enter__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.limits, self.watching = resource.getrlimit(resource.RLIMIT_FSIZE), True
        sys.addaudithook(self._watch)

    def __exit__(self, *error: object) -> None:
        self.watching = False  # a hook cannot be taken away
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)

    def _watch(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not self.watching or self.full_at or not (writes or event in ("os.rename", "os.mkdir", "os.remove")):
            return
        change = re.sub(r"\d+", "N", f"{event} {arguments[0]}")  # whatever the step or the process
        if str(self.folder) in str(arguments[0]) and change not in self.known:
            self.known[change] = None
            if len(self.known) % self.stride == 0:
                self.full_at = change
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, self.limits[1]))


def run_on_full_disks(settings: dict, stride: int, told: pathlib.Path) -> None:
    """In the child: the same command until it succeeds, on a disk that is full from another change on each time.

    Writes a list to ``told``: of each run its exit status, the change, its output, and what then lies in the directory.
    """
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it would tell of many runs in one process
    known: dict[str, None] = {}
    runs = []
    while not runs or runs[-1]["status"]:
        output, status, disk = io.StringIO(), 0, FullDisk(settings["model_dir"], known, stride)
        with disk, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                program(settings)
            except SystemExit as end:
                status = end.code
            except BaseException as error:
                traceback.print_exception(error)
                status = 1
        steps = sorted(int(path.stem[5:]) for path in settings["model_dir"].glob("checkpoints/step-*.index"))
        temporary = [path.name for path in settings["model_dir"].rglob(".*tmp*")]
        runs.append(dict(status=status, full_at=disk.full_at, output=output.getvalue(), steps=steps, left=temporary))
        told.write_text(json.dumps(runs))


def records(model_dir: pathlib.Path) -> dict[str, object]:
    """What a run has left that must not depend on how often it was stopped: weights, rows, TensorBoard, result."""
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints"))
    header, *rows = [line.split(",") for line in (model_dir / "metrics.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(header) if name not in SPEED]
    return {
        "variables": {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())},
        "rows": [[row[i] for i in kept] for row in (header, *rows)],
        "events": [event for event in events(model_dir) if event[1] not in SPEED],
    }


def events(model_dir: pathlib.Path) -> list[tuple[int, str, bytes]]:
    """Step, tag and value of everything that TensorBoard would read, in its order."""
    found = []
    for file in sorted((model_dir / "tensorboard").glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            found += [(event.step, value.tag, value.tensor.SerializeToString()) for value in event.summary.value]
    return found


def assert_same_records(model_dir: pathlib.Path, other: pathlib.Path, pictures: bool = True) -> None:
    """With ``pictures=False`` but for the views, which only a run with a report shows in TensorBoard."""
    one, two = records(model_dir), records(other)
    np.testing.assert_equal(one["variables"], two["variables"])
    assert one["rows"] == two["rows"]
    assert [e for e in one["events"] if pictures or e[1] != "views"] == two["events"]
