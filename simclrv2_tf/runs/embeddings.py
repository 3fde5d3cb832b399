"""Features of images in files for other programs: numpy's npz and Parquet."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from simclrv2_tf.data.sources import FileSource, Source


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A split and its features.

    Attributes:
        source: the images; what was found corrupt in it has no features.
        features: float32 ``[n, d]``.
        labels: int32 ``[n]``; −1: unknown.
    """

    source: Source
    features: np.ndarray
    labels: np.ndarray

    @property
    def name(self) -> str:
        """The split's."""
        return self.source.name.rpartition("/")[2]

    @property
    def paths(self) -> list[str] | None:
        """The images' files, where they are files. What is not UTF-8 in a name is escaped."""
        if not isinstance(self.source, FileSource):
            return None
        sound = (path for path in self.source.paths if path not in self.source.corrupt)
        return [os.fsencode(path).decode(errors="backslashreplace") for path in sound]


def write_npz(splits: Sequence[Embedded], path: pathlib.Path) -> None:
    """Of each split ``x_SPLIT [n, d]``, ``y_SPLIT [n]`` (−1: unknown) and ``path_SPLIT [n]``; and ``class_names``."""
    arrays = {"class_names": np.array(splits[0].source.class_names, str)}
    for split in splits:
        arrays |= {f"x_{split.name}": split.features, f"y_{split.name}": split.labels}
        if split.paths is not None:
            arrays[f"path_{split.name}"] = np.array(split.paths, str)
    np.savez(path, **arrays)


def write_parquet(splits: Sequence[Embedded], path: pathlib.Path) -> None:
    """A row an image: ``split``, ``path``, ``label``, ``class`` and ``features``; null where there is none."""
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
