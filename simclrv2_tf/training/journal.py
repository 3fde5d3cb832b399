"""What a run leaves on disk beside its checkpoints: ``config.json``, ``metrics.csv``, TensorBoard, ``result.json``.

Every file is written whole and renamed into place, so that a kill leaves the old one or the new one.
"""

import csv
import functools
import io
import json
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from simclrv2_tf.config import Config, SettingError


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file's text at once."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class Journal:
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

    @functools.cached_property  # its file is made with it, and who only reads or evaluates leaves none
    def _writer(self) -> tf.summary.SummaryWriter:
        return tf.summary.create_file_writer(str(self.model_dir / "tensorboard"))

    def write_config(self, config: Config, resolved: dict[str, Any]) -> None:
        """``config.json``: every setting, and under ``resolved`` what followed from them."""
        text = json.dumps({**json.loads(config.to_json()), "resolved": resolved}, indent=1)
        write_atomically(self.model_dir / "config.json", text)

    def write_row(self, row: dict[str, float]) -> None:
        """Adds a row to ``metrics.csv`` and to TensorBoard; rows of its ``step`` and later ones give way to it."""
        rows = [old for old in self.rows() if int(old["step"]) < row["step"]]
        rows.append({name: _short(value) for name, value in row.items()})
        names = list(dict.fromkeys(name for old in rows for name in old))
        text = io.StringIO()
        table = csv.DictWriter(text, names, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(self._metrics, text.getvalue())
        with self._writer.as_default(step=int(row["step"])):
            for name, value in row.items():
                if name != "step":
                    tf.summary.scalar(name, value)
        self._writer.flush()

    def rows(self) -> list[dict[str, str]]:
        """What ``metrics.csv`` holds."""
        if not self._metrics.is_file():
            return []
        with self._metrics.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

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
        path = self.model_dir / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
