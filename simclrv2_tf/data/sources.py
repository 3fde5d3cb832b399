"""Sources of images: arrays, image files and (in ``records.py``) TFDS records, behind one interface.

A `Source` is a split of a data set: images, labels and class names, and the code that reads the images. Which images a
batch holds is decided by ``sampling.py``; ``catalog.py`` opens the source that ``--dataset`` names.
"""

import abc
import dataclasses
import functools
import itertools
import logging
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import tensorflow as tf

from simclrv2_tf.data import checks, cropping, decoding, reading
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.decoding import graph_code
from simclrv2_tf.data.fingerprints import content_digest, digest, file_statuses
from simclrv2_tf.data.sampling import Sampler
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)

MAX_CLASSES = 100_000  # a larger label is treated as an error
# Images that one core reads one after another: enough to make the overhead of a chunk negligible, few enough that a
# batch occupies all cores.
CHUNK = 32
SUBSTITUTES = 3  # images to try in place of a corrupt one

Dataset: TypeAlias = tf.data.Dataset
View = Callable[[tf.Tensor], tf.Tensor]
Select = Callable[[Dataset], Dataset]


class Source(abc.ABC):
    """A split of a data set: its images, their labels, and how they are read.

    Attributes:
        name: data set and split, for example ``digits/train``.
        num_examples: images, n.
        class_names: one per class; empty if the split has no labels.
        labels: int32 ``[n]``, −1 where unknown; None if there are none, or none were read yet (see `with_labels`).
        images: uint8 ``[n, height, width, 3]`` if the decoded images are in host memory, all of one size, so that
            they can be copied to the devices; else None.
        paths: the image files; None if the images are not files.
        in_memory: whether the images, decoded or not, are in the memory of this process, out of reach of others.
        corrupt: names of the images that turned out to be unreadable so far.
        skipped: number of files that were left out, by reason.
        notes: decisions about how the data are read, for the summary of a run.
    """

    name: str
    num_examples: int
    class_names: tuple[str, ...]
    labels: np.ndarray | None
    images: np.ndarray | None
    paths: tuple[str, ...] | None
    in_memory: bool
    corrupt: set[str]
    skipped: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Digest of the images and labels, by which a resumed run recognizes them."""

    @abc.abstractmethod
    def subset(self, indices: np.ndarray) -> Self:
        """Returns the source of the images at ``indices``, in that order."""

    def readable_subset(self, indices: np.ndarray) -> Self:
        """Like `subset`, with the row numbers of an evaluation, which leaves out the images in ``corrupt``."""
        return self.subset(indices)

    def sample(self, count: int) -> Self:
        """Returns at most ``count`` of the images, spread over the source; the same ones each time."""
        return self.subset(np.linspace(0, self.num_examples - 1, min(count, self.num_examples)).astype(int))

    def with_labels(self) -> Self:
        """Returns the source with ``labels`` read, which may take a pass over the data."""
        return self

    def mask_labels_except(self, indices: np.ndarray) -> Self:
        """Returns the source with all images, of which only those at ``indices`` keep their label; others get −1."""
        labels = np.full_like(self.labels, -1)
        labels[indices] = self.labels[indices]
        return dataclasses.replace(self, labels=labels)

    def check_corrupt(self) -> None:
        """Raises SettingError if more images turned out corrupt than the settings allow."""
        return

    def count_corrupt(self, batches: Dataset) -> Dataset:
        """Records the images named in the batches' ``corrupt`` and removes that entry; must run in this process."""
        return batches

    @abc.abstractmethod
    def training_batches(self, sampler: Sampler, steps: range, settings: ViewSettings, by_index: bool) -> Dataset:
        """Returns the batches of consecutive steps, before `count_corrupt`.

        Args:
            sampler: chooses images and crops.
            steps: the steps.
            settings: size and ranges of the crops.
            by_index: yield the ``index`` of the images instead of ``images``; only for a source with ``images``.

        Returns:
            Dicts of ``labels`` int32 ``[b]`` and the entries that ``input.make_views`` takes.
        """

    @abc.abstractmethod
    def evaluation_examples(self, view: View, select: Select) -> Dataset:
        """Returns one dict per image, in order: ``images``, int32 ``labels`` and float32 ``weights``, 0 if corrupt.

        Args:
            view: maps a uint8 image to the image that is returned.
            select: chooses a part of a data set of all examples.
        """

    def _label_tensor(self) -> tf.Tensor:
        labels = self.labels if self.labels is not None else np.full(self.num_examples, -1)
        return tf.constant(labels, tf.int32)


@dataclasses.dataclass(frozen=True)
class ArraySource(Source):
    """Decoded images of one size, uint8 ``[n, height, width, 3]``, in host memory.

    >>> source = ArraySource("noise/train", np.zeros([6, 8, 8, 3], "uint8"), np.arange(6) % 2, ("even", "odd"))
    >>> source.subset(np.array([1, 3])).labels
    array([1, 1])
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    paths = None
    in_memory = True
    skipped = types.MappingProxyType({})

    @property
    def num_examples(self) -> int:
        return len(self.images)

    @property
    def corrupt(self) -> set[str]:
        return set()

    @functools.cached_property  # because all images are hashed
    def fingerprint(self) -> str:
        return digest(self.num_examples, self.images, self.labels, *self.class_names)

    def subset(self, indices: np.ndarray) -> Self:
        return dataclasses.replace(self, images=self.images[indices], labels=take(self.labels, indices))

    def training_batches(self, sampler: Sampler, steps: range, settings: ViewSettings, by_index: bool) -> Dataset:
        height, width = self.images.shape[1:3]
        with tf.device("CPU:0"):  # created outside the graph, in which a constant is limited to 2 GB
            labels, images = self._label_tensor(), None if by_index else tf.constant(self.images)

        @graph_code
        def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
            indices, (crops, draws) = sampler.indices(step), sampler.draws(step)
            boxes = cropping.random_crop_boxes(crops, height, width, settings)  # [b, v, 4]
            pixels = {"index": indices} if by_index else {"images": tf.gather(images, indices)}
            return {"labels": tf.gather(labels, indices), "boxes": boxes, "draws": draws} | pixels

        return Dataset.range(steps.start, steps.stop).map(batch, tf.data.AUTOTUNE)

    def evaluation_examples(self, view: View, select: Select) -> Dataset:
        with tf.device("CPU:0"):
            images, labels = tf.constant(self.images), self._label_tensor()

        @graph_code
        def example(index: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"images": view(images[index]), "labels": labels[index], "weights": tf.constant(1.0)}

        return select(Dataset.range(self.num_examples)).map(example, tf.data.AUTOTUNE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedSource(Source):
    """Images that are decoded whenever they are read; some may turn out to be corrupt.

    Attributes:
        max_corrupt_share: fraction of all images that may be corrupt.
        image_bits: bits in use of images with 16 bits per channel, see ``decoding.decode``; 0: all 16.
        warnings: names of the warnings about the images that have been given.
    """

    max_corrupt_share: float = 1.0
    image_bits: int = 0
    corrupt: set[str] = dataclasses.field(default_factory=set, compare=False)
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    warnings: set[str] = dataclasses.field(default_factory=set, compare=False)

    images = None
    NOT_CORRUPT: ClassVar[int | bytes]  # stands for a readable image among the references of corrupt ones

    @abc.abstractmethod
    def _name_of(self, reference: int | bytes) -> str:
        """Returns the name that a corrupt image is reported by; its reference is an index or its content."""

    @abc.abstractmethod
    def _references(self) -> Iterator[int | bytes]:
        """Yields the reference of each image, in order."""

    @abc.abstractmethod
    def _in_order(self) -> Dataset:
        """Returns a data set of one element per image, chunks of which `_read` takes."""

    @abc.abstractmethod
    def _training_chunks(self, sampler: Sampler, steps: range, size: int) -> Dataset:
        """Returns a data set of the chunks of the sampled images, ``size`` images each."""

    @abc.abstractmethod
    def _read(self, chunks: Dataset, view: Callable[..., tf.Tensor], substitutes: int) -> Dataset:
        """Reads images chunk by chunk, in order.

        Args:
            chunks: tuples of a chunk of images, and chunks ``[c, ...]`` of further arguments of ``view``.
            view: maps an encoded image and further arguments to a tensor of static shape.
            substitutes: images to try in place of a corrupt one.

        Returns:
            The dicts of ``decoding.read_chunk``, and references of the corrupt images in ``corrupt``.
        """

    @abc.abstractmethod
    def _sample(self) -> Iterable[bytes]:
        """Returns the content of at most ``checks.NUM_SAMPLED`` images that may have 16 bits per channel."""

    def _check_bits(self) -> None:
        """Warns once about images that need ``image_bits``."""
        if not self.image_bits and "image_bits" not in self.warnings:
            self.warnings.add("image_bits")
            checks.warn_of_unused_bits(self.name, self._sample())

    def readable_subset(self, indices: np.ndarray) -> Self:
        if not self.corrupt:
            return self.subset(indices)
        readable = (i for i, image in enumerate(self._references()) if self._name_of(image) not in self.corrupt)
        positions = np.fromiter(itertools.islice(readable, indices.max(initial=-1) + 1), np.int64)
        return self.subset(positions[indices])

    def report_corrupt(self, reference: int | bytes) -> None:
        """Adds an image to ``corrupt`` and logs it, once."""
        if (name := self._name_of(reference)) not in self.corrupt:
            self.corrupt.add(name)
            log.warning("corrupt image %s (%d so far), skipped", name, len(self.corrupt))

    def check_corrupt(self) -> None:
        if len(self.corrupt) > self.max_corrupt_share * self.num_examples:
            raise SettingError(
                f"--max_corrupt_share={self.max_corrupt_share}: {len(self.corrupt)} of {self.num_examples} images of "
                f"{self.name} are corrupt, for example {max(self.corrupt)}"
            )

    def count_corrupt(self, batches: Dataset) -> Dataset:
        def report(references: tf.Tensor) -> None:
            for reference in references.numpy():
                self.report_corrupt(reference)

        @graph_code
        def count(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            references = batch["corrupt"]
            references = tf.boolean_mask(references, references != self.NOT_CORRUPT)
            call = lambda: tf.group(tf.py_function(report, [references], []))  # noqa: E731
            with tf.control_dependencies([tf.cond(tf.size(references) > 0, call, tf.no_op)]):
                return {name: tf.identity(value) for name, value in batch.items() if name != "corrupt"}

        return batches.map(count)

    def training_batches(self, sampler: Sampler, steps: range, settings: ViewSettings, by_index: bool) -> Dataset:
        """Decodes and crops the images on the host; colour and blur are left to the device."""
        self._check_bits()
        rows = sampler.num_rows
        size = max(n for n in range(1, CHUNK + 1) if rows % n == 0)

        @graph_code
        def crops(step: tf.Tensor) -> tf.Tensor:
            draws = sampler.draws(step)[0]  # [b, v, CROP_DRAWS]
            return tf.reshape(draws, [rows // size, size, *draws.shape[1:]])

        @graph_code
        def views(encoded: tf.Tensor, crops: tf.Tensor) -> tf.Tensor:
            return decoding.cropped_views(encoded, crops, settings, self.image_bits)

        @graph_code
        def batch(chunks: dict[str, tf.Tensor], step: tf.Tensor) -> dict[str, tf.Tensor]:
            names = ("images", "labels", "corrupt")
            merged = {name: tf.reshape(chunks[name], [rows, *chunks[name].shape[2:]]) for name in names}
            return merged | {"draws": sampler.draws(step)[1]}

        numbers, chunks = Dataset.range(steps.start, steps.stop), self._training_chunks(sampler, steps, size)
        chunks = Dataset.zip(chunks, numbers.map(crops, tf.data.AUTOTUNE).unbatch())
        chunks = self._read(chunks, views, SUBSTITUTES)
        return Dataset.zip(chunks.batch(rows // size, drop_remainder=True), numbers).map(batch)

    def evaluation_examples(self, view: View, select: Select) -> Dataset:
        self._check_bits()

        @graph_code
        def decoded(encoded: tf.Tensor) -> tf.Tensor:
            return view(decoding.decode(encoded, self.image_bits))

        chunks = Dataset.zip((select(self._in_order()).batch(CHUNK),))
        return self.count_corrupt(self._read(chunks, decoded, substitutes=0)).unbatch()


@dataclasses.dataclass(frozen=True)
class FileSource(EncodedSource):
    """Image files.

    Attributes:
        encoded: content of the files, object ``[n]``, if it is cached in memory.
        max_file_mb: maximum size of a file in MB. A larger one counts as corrupt and is never opened, like anything
            that is not a regular file.
    """

    name: str
    paths: tuple[str, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    encoded: np.ndarray | None = None
    max_file_mb: int = 200

    NOT_CORRUPT = -1

    @classmethod
    def from_settings(cls, config: Config, name: str, paths: Sequence[str], **fields: Any) -> Self:
        """Builds a source with the settings for reading files: bits, sizes, fraction of corrupt ones, cached or not.

        Args:
            config: the settings; ``image_bits``, ``max_file_mb``, ``max_corrupt_share``, ``cache_dataset`` are used.
            name: name of the source.
            paths: paths of the files.
            **fields: other fields, such as ``labels`` and ``class_names``; without these it is unlabelled.
        """
        names = ("image_bits", "max_file_mb", "max_corrupt_share")
        settings = {name: getattr(config, name) for name in names}
        source = cls(name, tuple(paths), **{"labels": None, "class_names": (), **fields, **settings})
        return source.cached() if config.cache_dataset else source

    @property
    def num_examples(self) -> int:
        return len(self.paths)

    @property
    def in_memory(self) -> bool:
        return self.encoded is not None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of names, sizes, contents and labels of the files, wherever their folder is; see `fingerprints`."""
        root, sizes = os.path.commonpath(self.paths), np.maximum(self._statuses[:, 0], 0)
        names = (os.path.relpath(path, root) for path in self.paths)
        contents = content_digest(self.paths, self._statuses)
        return digest(self.num_examples, self.labels, sizes, contents, *names, *self.class_names)

    def subset(self, indices: np.ndarray) -> Self:
        return dataclasses.replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            labels=take(self.labels, indices),
            encoded=take(self.encoded, indices),
        )

    def cached(self) -> Self:
        """Returns the source with the content of all files in memory."""
        contents = [
            reading.read_file(path, self._max_bytes, decoding.HEAD_BYTES, decoding.may_be_image) for path in self.paths
        ]
        return dataclasses.replace(self, encoded=np.array(contents, dtype=object))

    @property
    def _max_bytes(self) -> int:
        return self.max_file_mb * 10**6

    @functools.cached_property
    def _statuses(self) -> np.ndarray:
        """`file_statuses`, sizes first; cached, because they take a system call per file."""
        return file_statuses(self.paths)

    def _sample(self) -> Iterator[bytes]:
        for i in range(0, self.num_examples, max(1, -(-self.num_examples // checks.NUM_SAMPLED))):
            yield self.encoded[i] if self.in_memory else checks.read_if_deep(self.paths[i], self._max_bytes)

    def _name_of(self, reference: int) -> str:
        return self.paths[reference]

    def _references(self) -> Iterator[int]:
        return iter(range(self.num_examples))

    def _in_order(self) -> Dataset:
        return Dataset.range(self.num_examples)

    def _training_chunks(self, sampler: Sampler, steps: range, size: int) -> Dataset:
        @graph_code
        def indices(step: tf.Tensor) -> tf.Tensor:
            return tf.reshape(sampler.indices(step), [sampler.num_rows // size, size])

        return Dataset.range(steps.start, steps.stop).map(indices, tf.data.AUTOTUNE).unbatch()

    def _read(self, chunks: Dataset, view: Callable[..., tf.Tensor], substitutes: int) -> Dataset:
        labels = self._label_tensor()
        if self.in_memory:
            files = tf.constant(self.encoded)
        else:  # no file has the path "", so a file that must not be opened counts as corrupt
            sizes = zip(self.paths, self._statuses[:, 0].tolist(), strict=True)
            files = tf.constant([os.fsencode(path) if 0 < size <= self._max_bytes else b"" for path, size in sizes])

        def read_view(index: tf.Tensor, *arguments: tf.Tensor) -> tf.Tensor:
            return view(files[index] if self.in_memory else tf.io.read_file(files[index]), *arguments)

        @graph_code
        def read(indices: tf.Tensor, *arguments: tf.Tensor) -> dict[str, tf.Tensor]:
            chunk, is_corrupt = decoding.read_chunk(read_view, indices, arguments, labels, substitutes)
            return chunk | {"corrupt": tf.where(is_corrupt, indices, tf.constant(self.NOT_CORRUPT, tf.int64))}

        return chunks.map(read, tf.data.AUTOTUNE)


def take(values: np.ndarray | None, indices: np.ndarray) -> np.ndarray | None:
    """Indexes an array; None stays None."""
    return None if values is None else values[indices]
