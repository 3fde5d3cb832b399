"""Writes the features of images to files for other programs: NumPy archives and Parquet."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from simclrv2_tf.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A split and the features of its images.

    Attributes:
        source: the images; those that turned out corrupt have no features.
        features: float32 ``[n, d]``.
        labels: int32 ``[n]``; −1: unknown.
        rows: int64 ``[n]``: the positions of the n images in the source.
    """

    source: Source
    features: np.ndarray
    labels: np.ndarray
    rows: np.ndarray

    @property
    def name(self) -> str:
        """Name of the split."""
        return self.source.name.rpartition("/")[2]

    @property
    def paths(self) -> list[str] | None:
        """Paths of the n images, if they are files; bytes that are not UTF-8 are escaped."""
        if self.source.paths is None:
            return None
        return [printable_path(self.source.paths[row]) for row in self.rows]


def printable_path(path: str) -> str:
    """Returns a path as UTF-8 text; other bytes are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def write_npz(splits: Sequence[Embedded], path: pathlib.Path) -> None:
    """Writes per split ``x_SPLIT [n, d]``, ``y_SPLIT [n]`` (−1: unknown), ``path_SPLIT [n]``; and ``class_names``."""
    arrays = {"class_names": np.array(splits[0].source.class_names, str)}
    for split in splits:
        arrays |= {f"x_{split.name}": split.features, f"y_{split.name}": split.labels}
        if split.paths is not None:
            arrays[f"path_{split.name}"] = np.array(split.paths, str)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def write_parquet(splits: Sequence[Embedded], path: pathlib.Path) -> None:
    """Writes one row per image: ``split``, ``path``, ``label``, ``class`` and ``features``; null if unknown."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def table(split: Embedded) -> pa.Table:
        count, width = split.features.shape
        labels = pa.array(split.labels, pa.int32(), mask=split.labels < 0)
        names = pa.array(split.source.class_names, pa.string())
        columns = {
            "split": pa.repeat(split.name, count),
            "path": pa.array(split.paths, pa.string()) if split.paths is not None else pa.nulls(count, pa.string()),
            "label": labels,
            "class": names.take(labels),
            "features": pa.FixedSizeListArray.from_arrays(split.features.reshape(-1), width),
        }
        return pa.table(columns)

    pq.write_table(pa.concat_tables(map(table, splits)), path)
