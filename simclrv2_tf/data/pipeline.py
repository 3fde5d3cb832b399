"""From a source to batches, as a function of (seed, step).

The training stream is one endless sequence of positions: position p is image ``shuffle(p mod n)`` of epoch ``p div n``.
Step s takes positions ``s·batch … (s+1)·batch − 1``, and the uniform numbers of its crops and augmentations come from
(seed, s). So a batch can be made again from its step alone, which is what makes a resumed run equal an uninterrupted
one, and neither the number of replicas nor where the augmentation runs changes a view. Of several workers each makes
its ``Part`` of every batch.
"""

import dataclasses
import os

import tensorflow as tf

from simclrv2_tf.data import augment
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.sources import ArraySource, FileSource, RecordSource, Source

Batch = dict[str, tf.Tensor]

# Graph code without tensor-dependent Python: converting it would only take time.
graph_code = tf.autograph.experimental.do_not_convert

# Other images to try, in turn, in the place of one that cannot be decoded.
SUBSTITUTES = 3


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of every batch that one worker makes: the ``index``-th of ``count`` equal parts."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> tuple[int, int]:
        """The first of its rows in a batch, and the first that is not."""
        size = batch_size // self.count
        return self.index * size, (self.index + 1) * size


WHOLE = Part()


@dataclasses.dataclass(frozen=True)
class TrainingInput:
    """Batches of augmented views.

    Attributes:
        source: the images.
        batch_size: images a step, over all replicas; at most the source's.
        num_views: 2 to pretrain, else 1.
        settings: what happens to a view.
        seed: of order, crops and augmentation.
        augment_on_host: compute the views here, not in the model's step.
        part: the rows of each batch that are made.
    """

    source: Source
    batch_size: int
    num_views: int
    settings: ViewSettings
    seed: int
    augment_on_host: bool = False
    part: Part = WHOLE

    def of(self, part: Part) -> "TrainingInput":
        """The same batches, of which only a part is made."""
        return dataclasses.replace(self, part=part)

    def batches(self, first_step: int, num_steps: int) -> tf.data.Dataset:
        """The batches of steps ``first_step … first_step + num_steps − 1``.

        Each is a dict: ``labels`` int32 ``[b]`` (−1: unknown) and what ``make_views`` takes.
        """
        steps = tf.data.Dataset.range(first_step, first_step + num_steps)
        if isinstance(self.source, ArraySource):
            data = steps.map(self._array_batch, tf.data.AUTOTUNE)
        else:
            data = self._decoded(first_step, num_steps, steps).batch(self._rows, drop_remainder=True)
        if self.augment_on_host:
            data = data.map(self._with_views, tf.data.AUTOTUNE)
        data = data.apply(tf.data.experimental.assert_cardinality(num_steps))
        return data.prefetch(tf.data.AUTOTUNE).with_options(_options())

    @property
    def _rows(self) -> int:
        return self.batch_size // self.part.count

    @graph_code
    def _with_views(self, batch: Batch) -> Batch:
        return {"views": make_views(batch, self.settings), "labels": batch["labels"]}

    @graph_code
    def _positions(self, step: tf.Tensor) -> tf.Tensor:
        """Indices int64 ``[rows]`` into the source; every epoch is a permutation of it."""
        total = self.source.num_examples
        positions = step * self.batch_size + tf.range(*self.part.rows(self.batch_size), dtype=tf.int64)
        first_epoch = positions[0] // total

        def shuffled(epoch: tf.Tensor) -> tf.Tensor:
            # Random bits for a seed, as the op reads only the low byte of each word; and eight rounds, as after its
            # usual four neighbours in a large data set still stay together.
            seed = tf.stack([tf.constant(self.seed, tf.int64), epoch])
            seed = tf.random.stateless_uniform([3], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
            return tf.raw_ops.RandomIndexShuffle(index=positions % total, seed=seed, max_index=total - 1, rounds=8)

        # a batch is at most as large as the source, so it touches two epochs at most
        return tf.where(positions // total == first_epoch, shuffled(first_epoch), shuffled(first_epoch + 1))

    @graph_code
    def _draws(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Uniform numbers in [0, 1) of a step: for crops ``[b, v, CROP_DRAWS]`` and the rest ``[b, v, NUM_DRAWS]``."""
        sizes = [augment.CROP_DRAWS, augment.NUM_DRAWS]
        seed = tf.stack([tf.constant(self.seed, tf.int64), step])
        shape = [self.batch_size, self.num_views, sum(sizes)]
        draws = tf.random.stateless_uniform(shape, seed, alg="philox")  # of all rows, as each depends on those before
        first, end = self.part.rows(self.batch_size)
        return tf.split(draws[first:end], sizes, axis=-1)

    @graph_code
    def _array_batch(self, step: tf.Tensor) -> Batch:
        images, labels = _tensors(self.source)
        index = self._positions(step)
        crops, draws = self._draws(step)
        boxes = augment.random_crop_boxes(crops, images.shape[1], images.shape[2], self.settings)
        return {
            "images": tf.gather(images, index),
            "labels": tf.gather(labels, index),
            "boxes": boxes,
            "draws": draws,
        }

    def _decoded(self, first_step: int, num_steps: int, steps: tf.data.Dataset) -> tf.data.Dataset:
        """Single images, decoded once and cropped into views here; colour and blur are left to the device."""
        draws = steps.map(self._draws).unbatch()
        if isinstance(self.source, FileSource):
            images = steps.map(self._positions).unbatch()
            images = _read_files(self.source, images, SUBSTITUTES).map(lambda image, label, _: (image, label))
        else:
            images = self._records(first_step * self.batch_size, num_steps * self.batch_size)
        return tf.data.Dataset.zip(images, draws).map(
            lambda example, draws: self._crop(*example, *draws), tf.data.AUTOTUNE
        )

    def _records(self, first: int, count: int) -> tf.data.Dataset:
        """``count`` decoded records from position ``first`` of the endless stream on; skipped ones are not decoded."""
        epochs = range(first // self.source.num_examples, (first + count - 1) // self.source.num_examples + 1)

        @graph_code
        def shuffled(epoch: tf.Tensor) -> tf.data.Dataset:
            tf.random.set_seed(1)  # of this graph alone: the order must not depend on the program's global seed
            return self.source.stream(self.seed * 1_000_003 + epoch)

        stream = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(shuffled)
        encoded = _rows_of(self.part, stream.skip(first % self.source.num_examples).take(count), self.batch_size)
        return encoded.map(lambda image, label: (decode(image), label), tf.data.AUTOTUNE)

    @graph_code
    def _crop(self, image: tf.Tensor, label: tf.Tensor, crops: tf.Tensor, draws: tf.Tensor) -> Batch:
        size = self.settings.image_size
        shape = tf.shape(image)
        boxes = augment.random_crop_boxes(crops, shape[0], shape[1], self.settings)
        views = []
        for y, x, height, width in (tf.unstack(boxes[v], num=4) for v in range(self.num_views)):
            crop = image[y : y + height, x : x + width]
            views.append(tf.image.resize(crop, (size, size), self.settings.resize_method))
        views = tf.cast(tf.clip_by_value(tf.round(tf.stack(views)), 0, 255), tf.uint8)
        return {"images": tf.ensure_shape(views, [self.num_views, size, size, 3]), "labels": label, "draws": draws}


def make_views(batch: Batch, settings: ViewSettings) -> tf.Tensor:
    """The augmented views of a batch: the one function that runs on the device or on the host.

    Args:
        batch: ``views``, if they are already made; else uint8 ``images`` and float32 ``draws`` ``[b, v, NUM_DRAWS]``,
            the images either whole, ``[b, height, width, 3]`` with int32 ``boxes`` ``[b, v, 4]``, or cropped,
            ``[b, v, size, size, 3]``.
        settings: what happens to a view.

    Returns:
        float32 ``[b, v, size, size, 3]`` in [0, 1].
    """
    if "views" in batch:
        return batch["views"]
    images, draws = batch["images"], batch["draws"]
    if "boxes" in batch:
        images = augment.crop_and_resize(images, batch["boxes"], settings.image_size, settings.resize_method)
    else:
        images = tf.cast(images, tf.float32) / 255
    shape = tf.shape(images)
    flat = tf.reshape(images, [-1, settings.image_size, settings.image_size, 3])
    flat = augment.augment_views(flat, tf.reshape(draws, [-1, augment.NUM_DRAWS]), settings)
    return tf.reshape(flat, shape)


def evaluation_batches(
    source: Source,
    batch_size: int,
    image_size: int,
    max_steps: int = 0,
    resize_method: str = "bicubic",
    part: Part = WHOLE,
) -> tf.data.Dataset:
    """Every image once, in order, centre-cropped; corrupt ones are counted and have no weight.

    Args:
        source: the images.
        batch_size: images a batch.
        image_size: pixels a side of the views.
        max_steps: batches at most; 0: all.
        resize_method: as of ``augment.center_crop_and_resize``.
        part: the rows of each batch that are made.

    Returns:
        Batches of one static shape, as many for each part: ``images`` float32 ``[b, size, size, 3]`` in [0, 1],
        ``labels`` int32 ``[b]`` (−1: unknown) and ``weights`` float32 ``[b]``: 1 for an image, 0 for a corrupt one and
        for what fills up the last batch.
    """
    steps = -(-source.num_examples // batch_size)
    steps = min(steps, max_steps) if max_steps else steps
    count = min(source.num_examples, steps * batch_size)
    if isinstance(source, RecordSource):
        data = _rows_of(part, source.stream().take(count), batch_size)
        data = data.map(graph_code(lambda image, label: (decode(image), label, True)), tf.data.AUTOTUNE)
    elif isinstance(source, FileSource):
        data = _read_files(source, _rows_of(part, tf.data.Dataset.range(count), batch_size), substitutes=0)
    else:
        images, labels = _tensors(source)
        data = _rows_of(part, tf.data.Dataset.range(count), batch_size).map(
            graph_code(lambda index: (images[index], labels[index], True))
        )

    @graph_code
    def prepare(image: tf.Tensor, label: tf.Tensor, readable: tf.Tensor) -> Batch:
        image = tf.image.convert_image_dtype(image, tf.float32)
        image = augment.center_crop_and_resize(image, (image_size, image_size), method=resize_method)
        return {"images": image, "labels": label, "weights": tf.cast(readable, tf.float32)}

    first, end = part.rows(batch_size)
    nothing = {"images": tf.zeros([image_size, image_size, 3]), "labels": 0, "weights": 0.0}
    padding = tf.data.Dataset.from_tensors(nothing).repeat()
    data = data.map(prepare, tf.data.AUTOTUNE).concatenate(padding).take(steps * (end - first))
    return data.batch(end - first, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(_options())


def _rows_of(part: Part, examples: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """The examples of a part's rows, out of those of whole batches."""
    if part.count == 1:
        return examples
    first, end = part.rows(batch_size)

    @graph_code
    def mine(number: tf.Tensor, _: object) -> tf.Tensor:
        return (number % batch_size >= first) & (number % batch_size < end)

    return examples.enumerate().filter(mine).map(lambda _, example: example)


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """JPEG, PNG, BMP or the first frame of a GIF, as uint8 ``[height, width, 3]``."""
    image = tf.ensure_shape(tf.io.decode_image(encoded, channels=3, expand_animations=False), [None, None, 3])
    is_bmp = tf.strings.substr(encoded, 0, 2) == "BM"
    return tf.cond(is_bmp, lambda: _through_palette(image, encoded), lambda: image)


def _through_palette(image: tf.Tensor, bmp: tf.Tensor) -> tf.Tensor:
    """The colours of an 8-bit BMP: ``decode_image`` takes the indices into its palette for grey values."""
    header_size = tf.io.decode_raw(tf.strings.substr(bmp, 14, 4), tf.int32)[0]
    bits = tf.io.decode_raw(tf.strings.substr(bmp, 28, 2), tf.int16)[0]
    palette = tf.io.decode_raw(tf.strings.substr(bmp, 14 + header_size, 1024), tf.uint8, fixed_length=1024)
    colours = tf.reshape(palette, [256, 4])[:, 2::-1]  # stored as blue, green, red, 0
    return tf.where(bits == 8, tf.gather(colours, tf.cast(image[..., 0], tf.int32)), image)


def _read_files(source: FileSource, indices: tf.data.Dataset, substitutes: int) -> tf.data.Dataset:
    """``(image, label, readable)`` for each index, in order; a corrupt file is reported and its neighbour tried.

    Graph code cannot catch an exception, but a data set can leave out the elements that raise one: each index becomes
    a small data set of candidates, of which the first that decodes is taken. A black image, not readable, stands for
    an index without any, so that later positions of the stream do not move.
    """
    labels = tf.constant(source.labels if source.labels is not None else [-1] * source.num_examples, tf.int32)
    contents = tf.constant([os.fsencode(path) for path in source.paths] if source.encoded is None else source.encoded)

    @graph_code
    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        content = contents[index] if source.encoded is not None else tf.io.read_file(contents[index])
        return decode(content), labels[index], index

    @graph_code
    def report(image: tf.Tensor, label: tf.Tensor, index: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, ...]:
        def corrupt() -> tf.Tensor:
            with tf.control_dependencies([tf.py_function(source.report_corrupt, [wanted], [])]):
                return index >= 0

        return image, label, tf.cond(index == wanted, lambda: True, corrupt)

    @graph_code
    def first_readable(wanted: tf.Tensor) -> tf.data.Dataset:
        candidates = tf.stack([(wanted + i) % source.num_examples for i in range(substitutes + 1)])
        readable = tf.data.Dataset.from_tensor_slices(candidates).map(read).ignore_errors()
        none = tf.data.Dataset.from_tensors((tf.zeros([1, 1, 3], tf.uint8), labels[wanted], tf.constant(-1, tf.int64)))
        return readable.concatenate(none).take(1).map(lambda *found: report(*found, wanted))

    return indices.interleave(first_readable, cycle_length=16, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _tensors(source: ArraySource) -> tuple[tf.Tensor, tf.Tensor]:
    labels = source.labels if source.labels is not None else [-1] * source.num_examples
    return tf.constant(source.images), tf.constant(labels, tf.int32)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
