"""Runs the program in child processes that are killed, interrupted or run out of disk space.

A fork server imports TensorFlow once, so that a child starts quickly.
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
import time
import traceback
from collections.abc import Callable
from types import FrameType

import numpy as np
import tensorflow as tf
import tiny

from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.runs.checkpoints import Checkpoints
from simclrv2_tf.runs.progress import Progress

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

PACKAGE = str(pathlib.Path(__file__).parents[1] / "simclrv2_tf")
SPEED = ("images_per_second",)  # columns that differ between bit-equal runs

Fault = contextlib.AbstractContextManager
NO_FAULT = contextlib.nullcontext()

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["children", "simclrv2_tf.modes"])


def run(settings: dict, log: pathlib.Path, fault: Fault = NO_FAULT) -> int:
    """Runs ``run.py`` in a child; returns its exit status, −n if signal n ended it.

    Args:
        settings: flags by name.
        log: file for its output.
        fault: context that is entered in the child.
    """
    child = start(log, program, settings, fault)
    child.join()
    return child.exitcode


def start(log: pathlib.Path, function: Callable[..., None], *args: object) -> multiprocessing.process.BaseProcess:
    """Starts a function of an importable module in a child with its output in the log."""
    child = context.Process(target=_logged, args=(log, function, *args))
    child.start()
    return child


def workers(count: int) -> list[dict[str, str]]:
    """Returns the environments of ``count`` workers on this machine."""
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
    """Runs ``run.py`` in this process."""
    os.environ |= environment or {}
    from simclrv2_tf import cli

    with fault:
        cli.main(["run.py", *(f"--{name}={value}" for name, value in settings.items())])


class SignalAt(Fault):
    """Sends the process a signal at the n-th function call in the package after the first training step.

    Args:
        call: n; 0: never.
        number: number of the signal.
        count_to: file for the number of calls.
        function: count only calls of functions with this name.
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
                self.call = 0  # only once
                os.kill(os.getpid(), self.number)


class Meter(Fault):
    """Writes the resource use of the process after the given steps to a JSON file: CPU, memory, files, threads, disk.

    Args:
        steps: steps after which it measures.
        path: path of the JSON file.
        folder: folder whose size is measured, kB, except logs and the files drawn from them, which grow with each row.
    """

    LOGS = ("metrics.csv", "metrics.jsonl", "run.log", "events.out.tfevents", "report.html", ".vl.json", ".png")

    def __init__(self, steps: set[int], path: pathlib.Path, folder: pathlib.Path):
        self.steps, self.path, self.folder, self.usage = steps, path, folder, []

    def __enter__(self) -> None:
        add = Progress.add

        def watched(progress: Progress, *args: object) -> None:
            add(progress, *args)
            if progress.step in self.steps:
                self.usage.append({"step": progress.step} | self._measure())

        Progress.add = watched

    def __exit__(self, *error: object) -> None:
        self.path.write_text(json.dumps(self.usage))

    def _measure(self) -> dict[str, float]:
        gc.collect()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        files, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
        sizes = {path: path.stat().st_size for path in self.folder.rglob("*") if path.is_file()}
        logs = sum(size for path, size in sizes.items() if any(text in path.name for text in self.LOGS))
        return {
            "cpu_seconds": round(time.process_time()),
            "megabytes": round(pages * resource.getpagesize() / 1e6, 1),
            "files": files,
            "threads": threads,
            "names_on_disk": len(sizes),
            "kilobytes_on_disk": round((sum(sizes.values()) - logs) / 1e3),
            "kilobytes_of_logs": round(logs / 1e3),
        }


class FileSizeLimit(Fault):
    """Limits the size of files: writes beyond the limit fail, as on a full disk.

    Args:
        size: the limit in bytes.
        fatal: kill the process in the middle of the first such write instead.
    """

    def __init__(self, size: int, fatal: bool = False):
        self.size, self.fatal = size, fatal

    def __enter__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if self.fatal else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))

    def __exit__(self, *error: object) -> None:
        """The limit ends with the process."""


class FullDisk(Fault):
    """Fills the disk when the program is about to make a change in a folder that earlier runs have not made.

    From then on no file can grow, whether Python or TensorFlow writes it, because the kernel enforces the limit.

    Args:
        folder: folder in which changes are watched.
        known: changes made by earlier runs; new ones are added.
        stride: the disk fills up at every ``stride``-th new change.
    """

    def __init__(self, folder: pathlib.Path, known: dict[str, None], stride: int):
        self.folder, self.known, self.stride, self.full_at = folder, known, stride, ""

    def __enter__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.limits, self.watching = resource.getrlimit(resource.RLIMIT_FSIZE), True
        sys.addaudithook(self._watch)

    def __exit__(self, *error: object) -> None:
        self.watching = False  # a hook cannot be removed
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)

    def _watch(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not self.watching or self.full_at or not (writes or event in ("os.rename", "os.mkdir", "os.remove")):
            return
        change = re.sub(r"\.simclrv2-\w+|\d+", "N", f"{event} {arguments[0]}")  # the same for every step and process
        if str(self.folder) in str(arguments[0]) and change not in self.known:
            self.known[change] = None
            if len(self.known) % self.stride == 0:
                self.full_at = change
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, self.limits[1]))


class KillAtChange(Fault):
    """Kills the process when it is about to make its n-th change of a file in a folder."""

    def __init__(self, folder: pathlib.Path, moment: int):
        self.folder, self.moment, self.changes = folder, moment, 0

    def __enter__(self) -> None:
        sys.addaudithook(self._watch)

    def __exit__(self, *error: object) -> None:
        self.moment = 0  # a hook cannot be removed

    def _watch(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            self.changes += str(self.folder) in str(arguments[0])
            if self.changes == self.moment:
                os.kill(os.getpid(), signal.SIGKILL)


def tiny_classification() -> Method:
    """Builds a compiled classifier."""
    return tiny.compiled(ClassificationModel(tiny.network(), tiny.VIEWS))


def rewrite_checkpoint(model_dir: pathlib.Path, step: int, moment: int) -> None:
    """Writes a checkpoint whose classifier has biases of 1; the process is killed at the n-th change of a file."""
    model = tiny_classification()
    model.network.classifier.dense.bias.assign([1] * tiny.CLASSES)
    checkpoints = Checkpoints(model_dir, model, keep=1)
    with KillAtChange(model_dir, moment):
        checkpoints.save(step)


def run_on_full_disks(settings: dict, stride: int, path: pathlib.Path) -> None:
    """Repeats a command in this process until it succeeds; each time the disk fills up at another change.

    Writes a JSON list to ``path``: per run its exit status, the change, its output, and the content of the directory.
    """
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # hides warnings about many runs in one process
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
        temporary = [path.name for path in settings["model_dir"].rglob(".simclrv2-*")]
        runs.append(dict(status=status, full_at=disk.full_at, output=output.getvalue(), steps=steps, left=temporary))
        path.write_text(json.dumps(runs))


def records(model_dir: pathlib.Path) -> dict[str, object]:
    """Returns the records of a run that must not depend on interruptions: weights, rows and TensorBoard events."""
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints"))
    header, *rows = [line.split(",") for line in (model_dir / "metrics.csv").read_text().splitlines()]
    columns = [i for i, name in enumerate(header) if name not in SPEED]
    return {
        "variables": {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())},
        "rows": [[row[i] for i in columns] for row in (header, *rows)],
        "events": [event for event in events(model_dir) if event[1] not in SPEED],
    }


def events(model_dir: pathlib.Path) -> list[tuple[int, str, bytes]]:
    """Returns step, tag and value of every TensorBoard event, in order."""
    values = []
    for file in sorted((model_dir / "tensorboard").glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            values += [(event.step, value.tag, value.tensor.SerializeToString()) for value in event.summary.value]
    return values


def assert_same_records(model_dir: pathlib.Path, other: pathlib.Path, pictures: bool = True) -> None:
    """Compares two runs; ``pictures=False`` ignores the views, which only a run with a report writes."""
    one, two = records(model_dir), records(other)
    np.testing.assert_equal(one["variables"], two["variables"])
    assert one["rows"] == two["rows"]
    assert [e for e in one["events"] if pictures or e[1] != "views"] == two["events"]
