"""Predictions: the most probable classes of image files, and their table as CSV, Parquet or JSON Lines."""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from simclrv2_tf.data.listing import IMAGE_SUFFIXES
from simclrv2_tf.data.sources import FileSource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.runs.embeddings import printable_path
from simclrv2_tf.runs.trained import TrainedModel

CHUNK = 20_000  # images whose probabilities of all classes are in memory at a time


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The k most probable classes of n image files.

    Attributes:
        paths: the files.
        class_names: one per class.
        classes: int32 ``[n, k]``, most probable first.
        probabilities: float32 ``[n, k]``; NaN for corrupt files.
    """

    paths: tuple[str, ...]
    class_names: tuple[str, ...]
    classes: np.ndarray
    probabilities: np.ndarray

    @property
    def is_read(self) -> np.ndarray:
        """Returns a mask of the files that could be read, bool ``[n]``."""
        return np.isfinite(self.probabilities[:, 0])

    @property
    def corrupt(self) -> list[str]:
        """Returns the paths of the files that could not be read."""
        return [path for path, is_read in zip(self.paths, self.is_read, strict=True) if not is_read]

    def columns(self) -> list[str]:
        """Returns the names of the table's columns."""
        ranks = ["", *(f"_{rank}" for rank in range(2, self.classes.shape[1] + 1))]
        return ["path", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability"))]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the table's rows; classes and probabilities of corrupt files are None."""
        columns, is_read = self.columns(), self.is_read
        for i, path in enumerate(self.paths):
            cells: list[Any] = [printable_path(path)]
            for number, probability in zip(self.classes[i], self.probabilities[i], strict=True):
                cells += [self.class_names[number], float(f"{probability:.6g}")] if is_read[i] else [None, None]
            yield dict(zip(columns, cells, strict=True))


def predict_images(model: TrainedModel, source: FileSource, count: int, batch_size: int) -> Predictions:
    """Predicts the ``count`` most probable classes of every image, in chunks.

    Raises:
        SettingError: if the network has diverged, no image can be read, or more are corrupt than ``source`` allows.
    """
    classes, probabilities = [], []
    for start in range(0, source.num_examples, CHUNK):
        indices = np.arange(start, min(start + CHUNK, source.num_examples))
        logits = model.image_outputs(source.subset(indices), "logits_sup", batch_size)
        largest = tf.math.top_k(tf.nn.softmax(logits), count)
        classes.append(largest.indices.numpy())
        probabilities.append(largest.values.numpy())
        if source.num_examples > CHUNK:
            print(f"{indices[-1] + 1:,} of {source.num_examples:,} images", flush=True)
    names = tuple(model.class_names)
    predictions = Predictions(source.paths, names, np.concatenate(classes), np.concatenate(probabilities))
    source.corrupt.update(predictions.corrupt)  # with those that other workers have read
    source.check_corrupt()
    if not predictions.is_read.any():
        raise SettingError(
            f"--images={source.name}: none of the {source.num_examples:,} files can be read as an image, for example "
            f"{printable_path(source.paths[0])}; give images of these formats: {', '.join(IMAGE_SUFFIXES)}"
        )
    return predictions


def write_csv(predictions: Predictions, path: pathlib.Path) -> None:
    """Writes a line per file; fields of corrupt files are empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, predictions.columns(), lineterminator="\n")
        table.writeheader()
        table.writerows(predictions.rows())


def write_jsonl(predictions: Predictions, path: pathlib.Path) -> None:
    """Writes a JSON object per line and file; fields of corrupt files are null."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions.rows())


def write_parquet(predictions: Predictions, path: pathlib.Path) -> None:
    """Writes a row per file; fields of corrupt files are null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_corrupt, names = ~predictions.is_read, pa.array(predictions.class_names, pa.string())
    columns = [pa.array(map(printable_path, predictions.paths), pa.string())]
    for numbers, probabilities in zip(predictions.classes.T, predictions.probabilities.T, strict=True):
        columns += [names.take(pa.array(numbers, mask=is_corrupt)), pa.array(probabilities, mask=is_corrupt)]
    pq.write_table(pa.table(columns, predictions.columns()), path)
