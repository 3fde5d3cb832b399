"""Runs of the program in child processes, which may be killed, interrupted or denied the disk.

A fork server imports TensorFlow once, so that a child starts in a moment.
"""

import contextlib
import json
import multiprocessing
import os
import pathlib
import resource
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import numpy as np
import tensorflow as tf

from simclrv2_tf.training.progress import Progress

PACKAGE = str(pathlib.Path(__file__).parents[1] / "simclrv2_tf")
SPEED = ("images_per_second",)  # what differs between two runs of the same bits

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
    """``run.py`` with these settings, in the child, and with half of a ResNet-18's blocks."""
    os.environ |= environment or {}
    from simclrv2_tf import cli
    from simclrv2_tf.nets import resnet

    resnet.BLOCKS_PER_GROUP[18] = (1, 1, 1, 1)

    with fault:
        cli.main(["run.py", *(f"--{name}={value}" for name, value in settings.items())])


class SignalAt(Fault):
    """Sends the process a signal at the n-th call that the package makes after its first training step."""

    def __init__(self, call: int, number: signal.Signals = signal.SIGKILL, count_to: pathlib.Path | None = None):
        self.call, self.number, self.count_to = call, number, count_to

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
            self.calls += 1
            if self.calls == self.call:
                os.kill(os.getpid(), self.number)


class FileSizeLimit(Fault):
    """No file may grow beyond so many bytes: every write past them fails, as on a full disk."""

    def __init__(self, size: int):
        self.size = size

    def __enter__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))

    def __exit__(self, *error: object) -> None:
        """The limit ends with the process."""


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


def assert_same_records(model_dir: pathlib.Path, other: pathlib.Path) -> None:
    one, two = records(model_dir), records(other)
    np.testing.assert_equal(one["variables"], two["variables"])
    assert one["rows"] == two["rows"]
    assert one["events"] == two["events"]
