"""What a run leaves on disk beside its checkpoints: ``config.json``, ``metrics.csv``, TensorBoard, ``result.json``."""

import atexit
import contextlib
import csv
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
from simclrv2_tf.files import write_atomically
from simclrv2_tf.settings.config import Config


@functools.cache
def writable_dir(model_dir: pathlib.Path, strategy: tf.distribute.Strategy) -> pathlib.Path:
    """Returns the directory that this process writes to: the model directory, or a scratch one.

    Of several workers only the chief writes to the model directory. All run the same program, so that they meet at the
    same collectives; the others write to a scratch directory, which is removed when they exit.
    """
    if is_chief(strategy):
        return model_dir
    scratch = tempfile.TemporaryDirectory(prefix="simclrv2-worker-")
    atexit.register(scratch.cleanup)
    return pathlib.Path(scratch.name)


class RunDirectory:
    """The records of one model directory, which is made if it is not there.

    Raises:
        SettingError: if it cannot be made.
    """

    def __init__(self, model_dir: pathlib.Path):
        self.model_dir = model_dir
        try:
            model_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(f"--model_dir={model_dir}: cannot be made ({error.strerror})") from None
        self._metrics = model_dir / "metrics.csv"
        self._corrupt = model_dir / "corrupt_images.json"
        self._unwritten: list[dict[str, str]] = []

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While it is entered, no other process can enter it. The lock ends with the process, however that ends.

        Raises:
            SettingError: if another process is in it.
        """
        with (self.model_dir / ".lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise SettingError(f"--model_dir={self.model_dir}: in use by {file.read() or 'another run'}") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    @functools.cached_property  # its file is made with it, and who only reads or evaluates leaves none
    def _writer(self) -> tf.summary.SummaryWriter:
        return tf.summary.create_file_writer(str(self.model_dir / "tensorboard"))

    def write_config(self, config: Config, resolved: dict[str, Any]) -> None:
        """``config.json``: every setting, and under ``resolved`` what followed from them. An earlier result is void."""
        (self.model_dir / "result.json").unlink(missing_ok=True)
        text = json.dumps({**json.loads(config.to_json()), "resolved": resolved}, indent=1)
        write_atomically(self.model_dir / "config.json", text)

    def write_row(self, row: dict[str, float]) -> None:
        """Adds a row to ``metrics.csv`` and to TensorBoard; and the rows that could not be written before."""
        self._unwritten.append({name: _short(value) for name, value in row.items()})
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
        """Forgets what was written after ``step``, where a run goes on: nothing will be there twice."""
        rows = self.rows()
        kept = [row for row in rows if int(row["step"]) <= step]
        if len(kept) < len(rows):
            self._write_rows(kept)
        _rewind_events(self.model_dir / "tensorboard", step)

    def last_row_is_best(self, best: tuple[tuple[str, ...], bool]) -> bool:
        """Whether no earlier row is as good as the last one.

        Args:
            best: the column, the first of these that there is, and whether a greater number is better.
        """
        names, greater = best
        *before, last = ([float(row[n]) * (1 if greater else -1) for n in names if row.get(n)] for row in self.rows())
        return all(last > other for other in before)

    def rows(self) -> list[dict[str, str]]:
        """What ``metrics.csv`` holds."""
        return self._read(self._metrics, _rows_of) or []

    def corrupt_images(self) -> list[str]:
        """The images that were found corrupt until the last checkpoint."""
        return self._read(self._corrupt, json.loads) or []

    def write_corrupt_images(self, paths: Iterable[str]) -> None:
        """Remembers them for when the run goes on."""
        if sorted(paths) != self.corrupt_images():
            write_atomically(self._corrupt, json.dumps(sorted(paths), indent=1))

    def write_images(self, name: str, images: np.ndarray, step: int) -> None:
        """Images ``[n, h, w, 3]`` in [0, 1] for TensorBoard."""
        with self._writer.as_default(step=step):
            tf.summary.image(name, images, max_outputs=len(images))
        self._writer.flush()

    def write_result(self, result: dict[str, Any]) -> None:
        """``result.json``: the final numbers."""
        write_atomically(self.model_dir / "result.json", json.dumps(result, indent=1))

    def result(self) -> dict[str, Any] | None:
        """The final numbers, if the run has ended."""
        return self._read(self.model_dir / "result.json", json.loads)

    def _read(self, path: pathlib.Path, parse: Callable[[str], Any]) -> Any:
        """What a file holds, None if there is none; SettingError if that cannot be told."""
        try:
            return parse(path.read_bytes().decode()) if path.is_file() else None
        except (ValueError, KeyError, TypeError, RecursionError, csv.Error):
            raise SettingError(f"--model_dir={self.model_dir}: {path.name} is damaged; delete or restore it") from None


def _rows_of(text: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    for row in rows:
        int(row["step"])  # or ValueError, KeyError: damaged
    return rows


def _rewind_events(folder: pathlib.Path, step: int) -> None:
    """Makes one of TensorBoard's files, of what came up to ``step`` but pictures, which come after the last step."""
    files = sorted(folder.glob("events.out.tfevents.*"))
    if not files:
        return
    events = {}  # by their bytes: a kill in here may have left the merged file beside those that went into it
    for file in files:
        with contextlib.suppress(tf.errors.OpError):  # the last record of a killed run may be cut off
            for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                event = tf.compat.v1.Event.FromString(record)
                pictures = any(value.metadata.plugin_data.plugin_name == "images" for value in event.summary.value)
                if event.HasField("file_version") or (event.step <= step and not pictures):
                    events["version" if event.HasField("file_version") else record] = record
    merged = folder / ".merged.tmp"
    with tf.io.TFRecordWriter(str(merged)) as writer:
        for record in events.values():
            writer.write(record)
    os.replace(merged, files[0])
    for file in files[1:]:
        file.unlink()


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
