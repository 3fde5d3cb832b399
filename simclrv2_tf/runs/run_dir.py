"""Records of a run beside its checkpoints: ``config.json``, ``metrics.csv``, TensorBoard files, ``result.json``."""

import contextlib
import csv
import functools
import io
import json
import math
import os
import pathlib
import re
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

import filelock
import numpy as np
import tensorflow as tf

from simclrv2_tf.distributed.devices import is_chief
from simclrv2_tf.errors import DamagedError, SettingError, first_line
from simclrv2_tf.files import refuse_link, replacing, write_atomically
from simclrv2_tf.interrupts import scratch_dir
from simclrv2_tf.schemas import read_events, read_record
from simclrv2_tf.settings.config import Config

FOLDERS = ("checkpoints", "checkpoints/best", "tensorboard", "figures")  # of a run that trains


@functools.cache
def writable_dir(model_dir: pathlib.Path, strategy: tf.distribute.Strategy) -> pathlib.Path:
    """Returns the directory that this process writes to: the model directory, or a scratch one.

    Only the chief writes to the model directory. The other workers run the same program, because all must reach the
    same collectives, and write to a scratch directory that is removed when they exit.
    """
    if is_chief(strategy):
        return model_dir
    return pathlib.Path(scratch_dir("simclrv2-worker-"))


class RunDirectory:
    """Records of one model directory. Creates the directory if it does not exist.

    Raises:
        SettingError: if it cannot be created.
    """

    def __init__(self, model_dir: pathlib.Path):
        self.model_dir = model_dir
        try:
            model_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(f"--model_dir={model_dir}: cannot be created ({error.strerror})") from None
        self._metrics = model_dir / "metrics.csv"
        self._unwritten: list[dict[str, str]] = []
        self._earlier_seconds, self._started = 0.0, time.perf_counter()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the directory for this process. The lock is released when the process ends, however it ends.

        Raises:
            SettingError: if another process holds the lock, the directory cannot be locked, or one of its folders is a
                link.
        """
        for name in FOLDERS:
            refuse_link(self.model_dir / name)
        path = self.model_dir / ".lock"
        lock = filelock.FileLock(path, timeout=0, on_acquired=_write_holder)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise SettingError(f"--model_dir={self.model_dir}: in use by {_read_holder(path)}") from None
        except OSError as error:
            reason = f"cannot be locked ({error.strerror or first_line(error)})"
            if path.is_symlink():  # its target, which may be any file, is not opened
                reason = "is a link; delete it if you trust the run"
            raise SettingError(f"--model_dir={self.model_dir}: .lock {reason}") from None
        try:
            yield
        finally:
            lock.release()

    @functools.cached_property  # creates a file, which reading and evaluating must not
    def _writer(self) -> tf.summary.SummaryWriter:
        return tf.summary.create_file_writer(str(self.model_dir / "tensorboard"))

    def write_config(self, config: Config, resolved: dict[str, Any]) -> None:
        """Writes ``config.json``: the settings, and under ``resolved`` the derived values. Deletes an old result."""
        (self.model_dir / "result.json").unlink(missing_ok=True)
        text = json.dumps({**json.loads(config.to_json()), "resolved": resolved}, indent=1)
        write_atomically(self.model_dir / "config.json", text)

    def write_row(self, row: dict[str, float]) -> None:
        """Appends a row to ``metrics.csv``, ``metrics.jsonl`` and TensorBoard, after rows that have failed."""
        self._unwritten.append({name: str(v) if isinstance(v, int) else f"{v:.6g}" for name, v in row.items()})
        self._write_rows([*self.rows(), *self._unwritten])
        self._unwritten.clear()
        # NumPy's numbers, because TensorFlow caches every Python number that it converts, forever.
        with self._writer.as_default(step=np.int64(row["step"])):
            for name, value in row.items():
                if name != "step":
                    tf.summary.scalar(name, np.float32(value))
        self._writer.flush()

    def _write_rows(self, rows: list[dict[str, str]]) -> None:
        lines = [json.dumps({name: _number(text) for name, text in row.items() if text}) + "\n" for row in rows]
        write_atomically(self.model_dir / "metrics.jsonl", "".join(lines))  # first: the table is what is read again
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(self._metrics, text.getvalue())

    def rewind(self, step: int) -> None:
        """Removes records of later steps than ``step``, at which the run resumes, so that none is written twice.

        Its ``seconds`` continue from those of the last checkpoint.
        """
        record = read_record(self.model_dir, "training_time.json") if step else None
        self._earlier_seconds = record["seconds"] if record else 0.0
        rows = self.rows()
        earlier = [row for row in rows if int(row["step"]) <= step]
        if len(earlier) < len(rows):
            self._write_rows(earlier)
        _rewind_events(self.model_dir / "tensorboard", step)

    def last_row_is_best(self, best: tuple[tuple[str, ...], bool]) -> bool:
        """Returns whether the last row is better than all earlier ones.

        Args:
            best: column names, of which the first one present counts, and whether a greater number is better.
        """
        names, greater = best
        values = [[float(row[n]) * (1 if greater else -1) for n in names if row.get(n)] for row in self.rows()]
        return bool(values) and all(values[-1] > earlier for earlier in values[:-1])

    def rows(self) -> list[dict[str, str]]:
        """Returns the rows of ``metrics.csv``."""
        return read_record(self.model_dir, "metrics.csv") or []

    def corrupt_images(self) -> list[str]:
        """Returns the corrupt images that were found before the last checkpoint."""
        return read_record(self.model_dir, "corrupt_images.json") or []

    def write_corrupt_images(self, paths: Iterable[str]) -> None:
        """Writes the corrupt images for a resumed run."""
        if sorted(paths) != self.corrupt_images():
            write_atomically(self.model_dir / "corrupt_images.json", json.dumps(sorted(paths), indent=1))

    @property
    def seconds(self) -> float:
        """Duration of the run: since the directory was opened, and until the checkpoint that it resumed from."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def write_seconds(self) -> None:
        """Writes the duration for a resumed run."""
        write_atomically(self.model_dir / "training_time.json", json.dumps({"seconds": round(self.seconds, 1)}))

    def write_images(self, name: str, images: np.ndarray, step: int) -> None:
        """Writes images ``[n, h, w, 3]`` in [0, 1] for TensorBoard."""
        with self._writer.as_default(step=step):
            tf.summary.image(name, images, max_outputs=len(images))
        self._writer.flush()

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes ``result.json``, the final numbers."""
        write_atomically(self.model_dir / "result.json", json.dumps(result, indent=1))

    def result(self) -> dict[str, Any] | None:
        """Returns the final numbers; None if the run has not ended."""
        return read_record(self.model_dir, "result.json")


def _write_holder(lock: int) -> None:
    """Writes this process's name to the lock file, unless the file is a hard link to another one."""
    if os.fstat(lock).st_nlink == 1:
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _read_holder(lock_path: pathlib.Path) -> str:
    """Returns the name of the process that holds a lock; "another run" if it cannot be read, as on Windows."""
    try:
        return lock_path.read_text(encoding="utf-8", errors="replace") or "another run"
    except OSError:
        return "another run"


def _number(text: str) -> int | float | None:
    """Returns the number in a cell of ``metrics.csv``; None, which JSON can express, if it is not finite."""
    value = float(text)
    return None if not math.isfinite(value) else int(text) if re.fullmatch(r"-?[0-9]+", text) else value


def _rewind_events(folder: pathlib.Path, step: int) -> None:
    """Merges TensorBoard's files into one, without events after ``step`` and images, which are written at the end.

    TensorBoard reads files in the order of their names, which begin with the time. The name of the merged file is the
    first, so that the file of the resumed run follows it, even if the clock was set back.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    files = [folder / name for name in sorted(names) if name.startswith("events.out.tfevents.")]
    if not files:
        return
    events = {}  # by record: after a kill, the merged file and its sources may both exist
    for file in files:
        try:
            for record, event in read_events(file):
                has_images = any(value.metadata.plugin_data.plugin_name == "images" for value in event.summary.value)
                if event.HasField("file_version") or (event.step <= step and not has_images):
                    events["version" if event.HasField("file_version") else record] = record
        except DamagedError as error:
            where = f"--model_dir={folder.parent}: {folder.name}/{file.name}"
            raise SettingError(f"{where} is damaged ({error}); delete or restore it") from None
    # by step, as the names of the files are times, which need not be in order: clocks are set back
    ordered = sorted(events.values(), key=lambda record: tf.compat.v1.Event.FromString(record).step)
    merged = folder / "events.out.tfevents.0000000000.merged"
    with replacing(merged) as path, tf.io.TFRecordWriter(str(path)) as writer:
        for record in ordered:
            writer.write(record)
    for file in files:
        if file != merged:
            file.unlink()
