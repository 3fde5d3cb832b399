"""Records of a run beside its checkpoints: ``config.json``, ``metrics.csv``, TensorBoard files, ``result.json``."""

import atexit
import contextlib
import csv
import errno
import fcntl
import functools
import io
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from simclrv2_tf.distributed.devices import is_chief
from simclrv2_tf.errors import SettingError
from simclrv2_tf.files import replacing, write_atomically
from simclrv2_tf.settings.config import Config


@functools.cache
def writable_dir(model_dir: pathlib.Path, strategy: tf.distribute.Strategy) -> pathlib.Path:
    """Returns the directory that this process writes to: the model directory, or a scratch one.

    Only the chief writes to the model directory. The other workers run the same program, because all must reach the
    same collectives, and write to a scratch directory that is removed when they exit.
    """
    if is_chief(strategy):
        return model_dir
    scratch = tempfile.TemporaryDirectory(prefix="simclrv2-worker-")
    atexit.register(scratch.cleanup)
    return pathlib.Path(scratch.name)


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
        self._corrupt = model_dir / "corrupt_images.json"
        self._unwritten: list[dict[str, str]] = []

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the directory for this process. The lock is released when the process ends, however it ends.

        Raises:
            SettingError: if another process holds the lock, or the directory cannot be locked.
        """
        with self._open_lock() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise SettingError(f"--model_dir={self.model_dir}: in use by {file.read() or 'another run'}") from None
            except OSError as error:
                raise SettingError(f"--model_dir={self.model_dir}: cannot be locked ({error.strerror})") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def _open_lock(self) -> io.TextIOWrapper:
        """Opens the lock file, but no link under its name: the target, which may be any file, would be overwritten."""

        def open_no_link(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_NOFOLLOW, 0o666)

        try:
            return open(self.model_dir / ".lock", "a+", encoding="utf-8", opener=open_no_link)
        except OSError as error:
            reason = "is a link; delete it if you trust the run"
            if error.errno != errno.ELOOP:
                reason = f"cannot be opened ({error.strerror})"
            raise SettingError(f"--model_dir={self.model_dir}: .lock {reason}") from None

    @functools.cached_property  # creates a file, which reading and evaluating must not
    def _writer(self) -> tf.summary.SummaryWriter:
        return tf.summary.create_file_writer(str(self.model_dir / "tensorboard"))

    def write_config(self, config: Config, resolved: dict[str, Any]) -> None:
        """Writes ``config.json``: the settings, and under ``resolved`` the derived values. Deletes an old result."""
        (self.model_dir / "result.json").unlink(missing_ok=True)
        text = json.dumps({**json.loads(config.to_json()), "resolved": resolved}, indent=1)
        write_atomically(self.model_dir / "config.json", text)

    def write_row(self, row: dict[str, float]) -> None:
        """Appends a row to ``metrics.csv`` and TensorBoard, after any rows that could not be written before."""
        self._unwritten.append({name: str(v) if isinstance(v, int) else f"{v:.6g}" for name, v in row.items()})
        self._write_rows([*self.rows(), *self._unwritten])
        self._unwritten.clear()
        with self._writer.as_default(step=int(row["step"])):
            for name, value in row.items():
                if name != "step":
                    tf.summary.scalar(name, value)
        self._writer.flush()

    def _write_rows(self, rows: list[dict[str, str]]) -> None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(self._metrics, text.getvalue())

    def rewind(self, step: int) -> None:
        """Removes records of later steps than ``step``, at which the run resumes, so that none is written twice."""
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
        *before, last = ([float(row[n]) * (1 if greater else -1) for n in names if row.get(n)] for row in self.rows())
        return all(last > other for other in before)

    def rows(self) -> list[dict[str, str]]:
        """Returns the rows of ``metrics.csv``."""
        return self._read(self._metrics, _rows_of) or []

    def corrupt_images(self) -> list[str]:
        """Returns the corrupt images that were found before the last checkpoint."""
        return self._read(self._corrupt, json.loads) or []

    def write_corrupt_images(self, paths: Iterable[str]) -> None:
        """Writes the corrupt images for a resumed run."""
        if sorted(paths) != self.corrupt_images():
            write_atomically(self._corrupt, json.dumps(sorted(paths), indent=1))

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
        return self._read(self.model_dir / "result.json", json.loads)

    def _read(self, path: pathlib.Path, parse: Callable[[str], Any]) -> Any:
        """Returns the parsed content of a file; None if it does not exist, SettingError if it is damaged."""
        try:
            return parse(path.read_bytes().decode()) if path.is_file() else None
        except (ValueError, KeyError, TypeError, RecursionError, csv.Error):
            raise SettingError(f"--model_dir={self.model_dir}: {path.name} is damaged; delete or restore it") from None


def _rows_of(text: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    for row in rows:
        int(row["step"])  # raises ValueError or KeyError if the file is damaged
    if not text.endswith("\n") or any(None in row or None in row.values() for row in rows):
        raise ValueError("cut off")
    return rows


def _rewind_events(folder: pathlib.Path, step: int) -> None:
    """Merges TensorBoard's files into one, without events after ``step`` and images, which are written at the end."""
    names = os.listdir(folder) if folder.is_dir() else []
    files = [folder / name for name in sorted(names) if name.startswith("events.out.tfevents.")]
    if not files:
        return
    events = {}  # by record: after a kill, the merged file may lie beside the files that were merged
    for file in files:
        with contextlib.suppress(tf.errors.DataLossError):  # the last record of a killed run may be cut off
            for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                event = tf.compat.v1.Event.FromString(record)
                has_images = any(value.metadata.plugin_data.plugin_name == "images" for value in event.summary.value)
                if event.HasField("file_version") or (event.step <= step and not has_images):
                    events["version" if event.HasField("file_version") else record] = record
    with replacing(files[0]) as merged, tf.io.TFRecordWriter(str(merged)) as writer:
        for record in events.values():
            writer.write(record)
    for file in files[1:]:
        file.unlink()
