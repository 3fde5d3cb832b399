"""TFDS data sets: small images of one size are loaded into memory, others are read as encoded records."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import tensorflow as tf

from simclrv2_tf.data import checks, decoding
from simclrv2_tf.data.decoding import graph_code
from simclrv2_tf.data.fingerprints import digest, read_digest
from simclrv2_tf.data.layouts import choose_splits, prepared_by_tfds, split_error
from simclrv2_tf.data.listing import list_names
from simclrv2_tf.data.pixels import as_images
from simclrv2_tf.data.sampling import Sampler
from simclrv2_tf.data.sources import ArraySource, Dataset, EncodedSource, Source, take
from simclrv2_tf.errors import SettingError, first_line
from simclrv2_tf.settings.config import Config

IN_MEMORY_BYTES = 4 * 2**30  # decoded images of one size are loaded into memory up to this size
SHUFFLE_BUFFER = 8192  # encoded records
REQUIRED_FEATURES = "image: Image, label: ClassLabel"


@dataclasses.dataclass(frozen=True)
class RecordSource(EncodedSource):
    """Records of a TFDS data set, which can only be read in sequence.

    They are shuffled as in the official code: first the order of the files, then a buffer.

    Attributes:
        builder: the TFDS builder of the data set.
        split: its split or split expression.
        cache: keep the encoded records in memory after the first pass.
        keep: for each record in file order, whether it belongs to this subset; None: all of them.
        labels: as in `Source`; None: those stored in the records.
    """

    name: str
    builder: Any
    split: str
    num_examples: int
    class_names: tuple[str, ...]
    cache: bool = False
    keep: np.ndarray | None = None
    labels: np.ndarray | None = None

    NOT_CORRUPT = b""
    paths = None
    in_memory = False

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the version of the data set, of its files (names, sizes, contents) and of the labels."""
        info, place = self.builder.info, self.builder.data_dir
        paths = [str(part.filename) for part in info.splits[self.split].file_instructions]
        try:
            sizes = np.array([tf.io.gfile.stat(path).length for path in paths])  # also on gs://
        except tf.errors.OpError as error:
            raise SettingError(f"--dataset={info.name}: cannot be read from {place} ({first_line(error)})") from None
        contents = read_digest(paths, sizes, lambda path: tf.io.gfile.GFile(path, "rb"))
        names = (info.full_name, self.split, *map(os.path.basename, paths), *self.class_names)
        return digest(self.num_examples, self.keep, self.labels, sizes, contents, *names)

    @functools.cached_property
    def _file_order(self) -> Dataset:
        """Data set of ``(encoded image, label)`` in file order; built once, as it owns the cache."""
        with tf.init_scope():  # not in the graph of the first epoch that uses it
            data = self._open(None)
            if self.keep is not None:
                keep = tf.constant(self.keep)
                data = data.enumerate().filter(lambda i, _: keep[i]).map(lambda _, record: record)
            if self.labels is not None:
                labels = tf.constant(self.labels)
                data = data.enumerate().map(lambda i, record: (record[0], labels[i]))
            return data.cache() if self.cache else data

    def _open(self, file_seed: tf.Tensor | None) -> Dataset:
        import tensorflow_datasets as tfds

        data = self.builder.as_dataset(
            split=self.split,
            decoders={"image": tfds.decode.SkipDecoding()},
            shuffle_files=file_seed is not None,
            read_config=tfds.ReadConfig(try_autocache=False, shuffle_seed=file_seed),
        )
        has_labels = bool(self.class_names)
        return data.map(lambda example: (example["image"], tf.cast(example["label"] if has_labels else -1, tf.int32)))

    def stream(self, seed: tf.Tensor | None = None) -> Dataset:
        """Returns one epoch of ``(encoded image, label)``.

        Args:
            seed: int64 scalar; None: file order. The order of the files is shuffled only if neither a subset nor the
                cache depends on it; the records are always shuffled in a buffer.
        """
        if seed is None:
            return self._file_order
        is_plain = self.keep is None and self.labels is None and not self.cache
        data = self._open(seed) if is_plain else self._file_order
        return data.shuffle(min(self.num_examples, SHUFFLE_BUFFER), seed=seed, reshuffle_each_iteration=False)

    def subset(self, indices: np.ndarray) -> Self:
        """Returns the records at ``indices``, in file order."""
        keep = np.zeros(self.num_examples, bool) if self.keep is None else np.zeros_like(self.keep)
        keep[indices if self.keep is None else np.flatnonzero(self.keep)[indices]] = True
        labels = take(self.labels, np.unique(indices))
        return dataclasses.replace(self, keep=keep, labels=labels, num_examples=int(keep.sum()))

    def sample(self, count: int) -> Self:
        """Returns the first records, because later ones cannot be read without these."""
        return self.subset(np.arange(min(count, self.num_examples)))

    def with_labels(self) -> Self:
        """Returns the source with all labels read; the images stay encoded."""
        labels = [int(label) for _, label in self.stream().prefetch(64)]
        return dataclasses.replace(self, labels=np.array(labels, np.int32))

    def _name_of(self, reference: bytes) -> str:
        return f"{self.name} {hashlib.blake2b(reference, digest_size=8).hexdigest()}, {len(reference)} bytes"

    def _references(self) -> Iterator[bytes]:
        return (image or b"empty" for image, _ in self.stream().as_numpy_iterator())

    def _sample(self) -> Iterator[bytes]:
        if self.builder.info.features["image"].np_dtype == np.uint16:
            yield from (image for image, _ in self._open(None).take(checks.NUM_SAMPLED).as_numpy_iterator())

    def _in_order(self) -> Dataset:
        return self.stream()

    def _training_chunks(self, sampler: Sampler, steps: range, size: int) -> Dataset:
        first, count = steps.start * sampler.batch_size, len(steps) * sampler.batch_size
        first_epoch, last_epoch = first // self.num_examples, (first + count - 1) // self.num_examples

        @graph_code
        def shuffled(epoch: tf.Tensor) -> Dataset:
            tf.random.set_seed(1)  # for this graph alone: the order must not depend on the program's global seed
            return self.stream(sampler.seed * 1_000_003 + epoch)

        records = Dataset.range(first_epoch, last_epoch + 1).flat_map(shuffled)
        records = records.skip(first % self.num_examples).take(count)
        return sampler.part.select(records, sampler.batch_size).batch(size)

    def _read(self, chunks: Dataset, view: Callable[..., tf.Tensor], substitutes: int) -> Dataset:
        """Reads as the base class does. Substitutes come from the same chunk, as others would have to be read first."""

        @graph_code
        def read(records: tuple[tf.Tensor, tf.Tensor], *arguments: tf.Tensor) -> dict[str, tf.Tensor]:
            contents, labels = records

            def read_view(index: tf.Tensor, *arguments: tf.Tensor) -> tf.Tensor:
                return view(contents[index], *arguments)

            indices = tf.range(tf.size(contents, tf.int64))
            chunk, is_corrupt = decoding.read_chunk(read_view, indices, arguments, labels, substitutes)
            references = tf.where(contents == "", "empty", contents)
            return chunk | {"corrupt": tf.where(is_corrupt, references, self.NOT_CORRUPT)}

        return chunks.map(read, tf.data.AUTOTUNE)


def open_tfds(config: Config, split: str) -> Source:
    """Opens a TFDS data set; see ``catalog.open_source``."""
    where = f"--dataset={config.dataset}"
    builder = _prepared_builder(config)
    if not set(split) & set("[+"):  # else a split expression, such as train[:90%]
        split = "+".join(choose_splits(config, split, tuple(builder.info.splits)))
    try:
        num_examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise split_error(config, split, f"not a split of TFDS ({first_line(error)})") from None
    if not num_examples:
        raise split_error(config, split, "has no images")
    name, (class_names, notes) = f"{config.dataset}/{split}", _class_names(builder)
    shape = builder.info.features["image"].shape
    if None in shape or num_examples * int(np.prod(shape)) > IN_MEMORY_BYTES:
        source = RecordSource(name, builder, split, num_examples, class_names, config.cache_dataset, notes=notes)
        return dataclasses.replace(source, max_corrupt_share=config.max_corrupt_share, image_bits=config.image_bits)
    import tensorflow_datasets as tfds

    try:
        arrays = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    except tf.errors.OpError as error:
        raise SettingError(f"{where}: cannot be read from {builder.data_dir} ({first_line(error)})") from None
    labels = arrays["label"].astype(np.int32) if class_names else None
    if class_names and (labels < 0).all():  # for example STL-10's unlabelled split
        labels, class_names, notes = None, (), (f"all labels of {split} are -1: no labels",)
    return ArraySource(name, as_images(arrays["image"], where, config.image_bits), labels, class_names, notes)


def _prepared_builder(config: Config) -> Any:
    """Returns the builder of a data set, which is downloaded if needed."""
    import tensorflow_datasets as tfds

    where = f"--dataset={config.dataset}"
    try:
        builder = tfds.builder(config.dataset, data_dir=config.data_dir or None)
    except Exception as error:  # TFDS raises many kinds for an unknown name
        hint = _suggest_data_set(config.dataset)
        raise SettingError(f"{where}: TFDS has no such data set ({first_line(error)}){hint}") from None
    features = builder.info.features
    names = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    if not isinstance(names.get("image"), tfds.features.Image):
        actual = list_names([f"{name}: {_describe(feature)}" for name, feature in names.items()]) or _describe(features)
        raise SettingError(f"{where}: needs the features {REQUIRED_FEATURES}, but has {actual}")
    try:
        builder.download_and_prepare()
    except Exception as error:  # no network, full disk, manual download needed: all user-fixable
        raise SettingError(f"{where}: could not be prepared in {builder.data_dir} ({first_line(error)})") from None
    return builder


def _suggest_data_set(dataset: str) -> str:
    """Returns a hint for a data set that is the path of a file or folder without a prefix; "" for any other."""
    path = os.path.expanduser(dataset)
    if os.path.isdir(path):
        prepared = prepared_by_tfds(pathlib.Path(path))
        return f"; say {prepared}" if prepared else f"; for a folder of images say folder:{dataset}"
    return f"; for a file of arrays say npz:{dataset}" if os.path.isfile(path) else ""


def _class_names(builder: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of the classes, () without labels, and a note if there are labels of another kind."""
    import tensorflow_datasets as tfds

    label = dict(builder.info.features.items()).get("label")
    if isinstance(label, tfds.features.ClassLabel):
        return tuple(label.names), ()
    actual = f"label is {_describe(label)}" if label is not None else "there is no label"
    return (), (f"no labels: {actual}, needed are {REQUIRED_FEATURES}",)


def _describe(feature: Any) -> str:
    """Describes the type of a feature, for example "Sequence(ClassLabel)"."""
    inner = getattr(feature, "feature", None)
    return f"{type(feature).__name__}({_describe(inner)})" if inner is not None else type(feature).__name__
