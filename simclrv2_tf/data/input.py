"""From a source to batches, as a function of (seed, step).

The training stream is one endless sequence of positions: position p is image ``shuffle(p mod n)`` of epoch ``p div n``.
Step s takes positions ``s·batch … (s+1)·batch − 1``, and the uniform numbers of its crops and augmentations come from
(seed, s). So a batch can be made again from its step alone, which is what makes a resumed run equal an uninterrupted
one, and neither the number of replicas nor where the augmentation runs changes a view. Of several workers each makes
its ``Part`` of every batch; and so does each of several data services, on other machines.
"""

import dataclasses

import tensorflow as tf

from simclrv2_tf.data import augment
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.decoding import SUBSTITUTES, cropped_views, decode, graph_code, read_files, read_records, report
from simclrv2_tf.data.sources import ArraySource, FileSource, RecordSource, Source
from simclrv2_tf.errors import SettingError

Batch = dict[str, tf.Tensor]

# Images that are read together, one after another on one core: enough that what a chunk costs does not count, few
# enough that a batch occupies all cores.
CHUNK = 32


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
        resident: the images of an ``ArraySource``, uint8 ``[n, height · width · 3]``, where they lie in the memory of
            the devices: then a batch has the ``index`` of its images instead of them, see ``completed``.
        services: addresses of data services, ``grpc://host:port``, that make equal parts of those rows; where there is
            none, they are made here.
    """

    source: Source
    batch_size: int
    num_views: int
    settings: ViewSettings
    seed: int
    augment_on_host: bool = False
    part: Part = WHOLE
    resident: tf.Variable | None = None
    services: tuple[str, ...] = ()

    def of(self, part: Part) -> "TrainingInput":
        """The same batches, of which only a part is made."""
        return dataclasses.replace(self, part=part)

    def batches(self, first_step: int, num_steps: int) -> tf.data.Dataset:
        """The batches of steps ``first_step … first_step + num_steps − 1``.

        Each is a dict: ``labels`` int32 ``[b]`` (−1: unknown) and what ``make_views`` takes.
        """
        make = self._served if self.services else self._made
        data = make(first_step, num_steps)
        if not isinstance(self.source, ArraySource):
            data = data.map(self._reported)
        data = data.apply(tf.data.experimental.assert_cardinality(num_steps))
        return data.prefetch(tf.data.AUTOTUNE).with_options(_options())

    def _made(self, first_step: int, num_steps: int) -> tf.data.Dataset:
        """What ``batches`` yields; and of images that are decoded ``corrupt`` ``[b]``, as `decoding.report` takes."""
        steps = tf.data.Dataset.range(first_step, first_step + num_steps)
        if isinstance(self.source, ArraySource):
            with tf.device("CPU:0"):  # made here, as a constant of a graph ends at 2 GB
                images = tf.constant(self.source.images) if self.resident is None else None
            data = steps.map(graph_code(lambda step: self._array_batch(step, images)), tf.data.AUTOTUNE)
        else:
            data = self._encoded_batches(first_step, num_steps, steps)
        return data.map(self._with_views, tf.data.AUTOTUNE) if self.augment_on_host else data

    def _served(self, first_step: int, num_steps: int) -> tf.data.Dataset:
        """As ``_made``, by the services. One has one worker, whose elements keep their order."""
        steps = tf.data.Dataset.range(first_step, first_step + num_steps)
        count = len(self.services)
        if self._rows % count:
            raise SettingError(f"--data_service: {count} services cannot share a worker's {self._rows} images equally")
        parts = []
        for i, service in enumerate(self.services):
            part = Part(self.part.index * count + i, self.part.count * count)
            mine = dataclasses.replace(self, part=part)._made(first_step, num_steps)
            data = tf.data.Dataset.zip(steps, mine).with_options(_options())
            off = tf.data.experimental.service.ShardingPolicy.OFF
            parts.append(data.apply(tf.data.experimental.service.distribute(off, service, compression=None)))

        @graph_code
        def joined(step: tf.Tensor, *parts: tuple[tf.Tensor, Batch]) -> Batch:
            steps, batches = zip(*parts, strict=True)
            in_order = tf.debugging.assert_equal(tf.stack(steps), step, "--data_service: a step is missing or doubled")
            with tf.control_dependencies([in_order]):
                return {name: tf.concat([batch[name] for batch in batches], axis=0) for name in batches[0]}

        return tf.data.Dataset.zip(steps, *parts).map(joined)

    @graph_code
    def _reported(self, batch: Batch) -> Batch:
        with tf.control_dependencies([report(self.source, batch["corrupt"])]):
            return {name: tf.identity(value) for name, value in batch.items() if name != "corrupt"}

    def completed(self, batch: Batch) -> Batch:
        """The batch with its images, for the step that computes where ``resident`` lies."""
        if self.resident is None:
            return batch
        rest = {name: value for name, value in batch.items() if name != "index"}
        images = tf.gather(self.resident.read_value(), batch["index"])
        return rest | {"images": tf.reshape(images, [-1, *self.source.images.shape[1:]])}

    @property
    def resident_bytes(self) -> int:
        """What ``resident`` takes on each device."""
        return 0 if self.resident is None else self.source.images.nbytes

    @property
    def _rows(self) -> int:
        return self.batch_size // self.part.count

    @graph_code
    def _with_views(self, batch: Batch) -> Batch:
        kept = {name: batch[name] for name in ("labels", "corrupt") if name in batch}
        return {"views": make_views(batch, self.settings), **kept}

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

    def _array_batch(self, step: tf.Tensor, images: tf.Tensor | None) -> Batch:
        index = self._positions(step)
        crops, draws = self._draws(step)
        boxes = augment.random_crop_boxes(crops, *self.source.images.shape[1:3], self.settings)
        batch = {"labels": tf.gather(_labels(self.source), index), "boxes": boxes, "draws": draws}
        return batch | ({"index": index} if images is None else {"images": tf.gather(images, index)})

    def _encoded_batches(self, first_step: int, num_steps: int, steps: tf.data.Dataset) -> tf.data.Dataset:
        """Images decoded once and cropped into views here; colour and blur are left to the device."""
        size = max(n for n in range(1, CHUNK + 1) if self._rows % n == 0)
        chunks = self._rows // size

        @graph_code
        def in_chunks(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
            request = self._positions(step), self._draws(step)[0]
            return tuple(tf.reshape(rows, [chunks, size, *rows.shape[1:]]) for rows in request)

        @graph_code
        def whole(read: tuple[tf.Tensor, ...], step: tf.Tensor) -> Batch:
            views, labels, _, corrupt = (tf.reshape(part, [self._rows, *part.shape[2:]]) for part in read)
            return {"images": views, "labels": labels, "draws": self._draws(step)[1], "corrupt": corrupt}

        requests = steps.map(in_chunks, tf.data.AUTOTUNE).unbatch()
        if isinstance(self.source, FileSource):
            read = read_files(self.source, requests, self._views, SUBSTITUTES)
        else:
            records = self._records(first_step * self.batch_size, num_steps * self.batch_size).batch(size)
            requests = tf.data.Dataset.zip(records, requests).map(lambda record, request: (*record, request[1]))
            read = read_records(self.source, requests, self._views, SUBSTITUTES)
        return tf.data.Dataset.zip(read.batch(chunks, drop_remainder=True), steps).map(whole)

    @graph_code
    def _views(self, encoded: tf.Tensor, crops: tf.Tensor) -> tf.Tensor:
        return cropped_views(encoded, crops, self.settings)

    def _records(self, first: int, count: int) -> tf.data.Dataset:
        """``count`` encoded records from position ``first`` of the endless stream on."""
        epochs = range(first // self.source.num_examples, (first + count - 1) // self.source.num_examples + 1)

        @graph_code
        def shuffled(epoch: tf.Tensor) -> tf.data.Dataset:
            tf.random.set_seed(1)  # of this graph alone: the order must not depend on the program's global seed
            return self.source.stream(self.seed * 1_000_003 + epoch)

        stream = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(shuffled)
        return _rows_of(self.part, stream.skip(first % self.source.num_examples).take(count), self.batch_size)


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
    wanted = _rows_of(part, tf.data.Dataset.range(count), batch_size)

    @graph_code
    def view(image: tf.Tensor) -> tf.Tensor:
        image = tf.image.convert_image_dtype(image, tf.float32)
        return augment.center_crop_and_resize(image, (image_size, image_size), method=resize_method)

    def decoded(encoded: tf.Tensor) -> tf.Tensor:
        return view(decode(encoded))

    @graph_code
    def reported(*read: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.control_dependencies([report(source, read[3])]):
            return tuple(tf.identity(part) for part in read[:3])

    if isinstance(source, RecordSource):
        records = _rows_of(part, source.stream().take(count), batch_size).batch(CHUNK)
        data = read_records(source, records, decoded, substitutes=0).map(reported).unbatch()
    elif isinstance(source, FileSource):
        data = read_files(source, wanted.batch(CHUNK), decoded, substitutes=0).map(reported).unbatch()
    else:
        images, labels = tf.constant(source.images), _labels(source)
        data = wanted.map(graph_code(lambda index: (view(images[index]), labels[index], True)), tf.data.AUTOTUNE)

    @graph_code
    def weighted(image: tf.Tensor, label: tf.Tensor, readable: tf.Tensor) -> Batch:
        return {"images": image, "labels": label, "weights": tf.cast(readable, tf.float32)}

    first, end = part.rows(batch_size)
    nothing = {"images": tf.zeros([image_size, image_size, 3]), "labels": 0, "weights": 0.0}
    padding = tf.data.Dataset.from_tensors(nothing).repeat()
    data = data.map(weighted).concatenate(padding).take(steps * (end - first))
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


def _labels(source: ArraySource) -> tf.Tensor:
    return tf.constant(source.labels if source.labels is not None else [-1] * source.num_examples, tf.int32)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
