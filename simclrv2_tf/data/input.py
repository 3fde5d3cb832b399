"""Batches of a source: augmented views to train on as a function of (seed, step), and central crops to evaluate.

Neither the number of replicas nor whether the views are computed on the host or on the device changes a view. If
there are several workers, each produces its ``Part`` of every batch; so does each data service, on another machine.
"""

import dataclasses

import tensorflow as tf

from simclrv2_tf.data import augment, cropping
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.decoding import graph_code
from simclrv2_tf.data.sampling import WHOLE, Part, Sampler
from simclrv2_tf.data.sources import Source
from simclrv2_tf.errors import SettingError

Batch = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class TrainingInput:
    """Batches of augmented views.

    >>> source = ArraySource("noise", np.zeros([20, 32, 32, 3], "uint8"), labels=None, class_names=())
    >>> data = TrainingInput(source, batch_size=8, num_views=2, settings=ViewSettings(32), seed=0)
    >>> [make_views(batch, data.settings).shape for batch in data.batches(first_step=0, num_steps=1)]
    [TensorShape([8, 2, 32, 32, 3])]

    Attributes:
        source: the images.
        batch_size: images per step over all workers and replicas; at most the source's.
        num_views: 2 to pretrain, else 1.
        settings: crop and augmentation of a view.
        seed: seed of the order, crops and augmentation.
        augment_on_host: compute the views here, not in the model's step.
        part: the rows of each batch that are produced here, b of them.
        resident: a copy of the source's ``images`` in device memory, uint8 ``[n, height · width · 3]``. A batch then
            has the ``index`` of its images instead of them, see `completed`.
        services: addresses of data services, ``grpc://host:port``, that produce equal shares of those rows; without
            any, they are produced in this process.
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

    @property
    def sampler(self) -> Sampler:
        """The images and random numbers of each step."""
        return Sampler(self.source.num_examples, self.batch_size, self.num_views, self.seed, self.part)

    def of(self, part: Part) -> "TrainingInput":
        """Returns the input that produces only a part of the same batches."""
        return dataclasses.replace(self, part=part)

    def batches(self, first_step: int, num_steps: int) -> tf.data.Dataset:
        """Returns the batches of steps ``first_step … first_step + num_steps − 1``.

        Each is a dict of ``labels`` int32 ``[b]`` (−1: unknown) and the entries that `make_views` takes.
        """
        data = self._served(first_step, num_steps) if self.services else self._local(first_step, num_steps)
        data = self.source.count_corrupt(data)
        data = data.apply(tf.data.experimental.assert_cardinality(num_steps))
        return data.prefetch(tf.data.AUTOTUNE).with_options(ordered_options())

    def _local(self, first_step: int, num_steps: int) -> tf.data.Dataset:
        """Returns the batches, with the references of corrupt images that ``Source.count_corrupt`` removes."""
        steps, by_index = range(first_step, first_step + num_steps), self.resident is not None
        data = self.source.training_batches(self.sampler, steps, self.settings, by_index)
        return data.map(self._with_views, tf.data.AUTOTUNE) if self.augment_on_host else data

    def _served(self, first_step: int, num_steps: int) -> tf.data.Dataset:
        """Returns the batches from the services; each has a single worker, which keeps the order of the steps."""
        steps = tf.data.Dataset.range(first_step, first_step + num_steps)
        count, rows = len(self.services), self.sampler.num_rows
        if rows % count:
            raise SettingError(f"--data_service: {count} services cannot share a worker's {rows} images equally")
        shares = []
        for i, service in enumerate(self.services):
            share = self.of(Part(self.part.index * count + i, self.part.count * count))
            data = tf.data.Dataset.zip(steps, share._local(first_step, num_steps)).with_options(ordered_options())
            off = tf.data.experimental.service.ShardingPolicy.OFF
            shares.append(data.apply(tf.data.experimental.service.distribute(off, service, compression=None)))

        @graph_code
        def join(step: tf.Tensor, *shares: tuple[tf.Tensor, Batch]) -> Batch:
            steps, batches = zip(*shares, strict=True)
            in_order = tf.debugging.assert_equal(tf.stack(steps), step, "--data_service: a step is missing or doubled")
            with tf.control_dependencies([in_order]):
                return {name: tf.concat([batch[name] for batch in batches], axis=0) for name in batches[0]}

        return tf.data.Dataset.zip(steps, *shares).map(join)

    def completed(self, batch: Batch) -> Batch:
        """Adds the images to a batch that has their ``index``; called in the step, on the device with ``resident``."""
        if self.resident is None:
            return batch
        rest = {name: value for name, value in batch.items() if name != "index"}
        images = tf.gather(self.resident.read_value(), batch["index"])  # [b, height · width · 3]
        return rest | {"images": tf.reshape(images, [-1, *self.source.images.shape[1:]])}

    @property
    def resident_bytes(self) -> int:
        """Size of ``resident`` on each device."""
        return 0 if self.resident is None else self.source.images.nbytes

    @graph_code
    def _with_views(self, batch: Batch) -> Batch:
        rest: Batch = {name: batch[name] for name in ("labels", "corrupt") if name in batch}
        return {"views": make_views(batch, self.settings), **rest}


def make_views(batch: Batch, settings: ViewSettings) -> tf.Tensor:
    """Returns the augmented views of a batch; runs on the device or on the host.

    Args:
        batch: either ``views``, which are returned; or uint8 ``images`` and float32 ``draws`` ``[b, v, NUM_DRAWS]``,
            the images whole, ``[b, height, width, 3]`` with int32 ``boxes`` ``[b, v, 4]``, or cropped,
            ``[b, v, size, size, 3]``.
        settings: crop and augmentation of a view.

    Returns:
        float32 ``[b, v, size, size, 3]`` in [0, 1].
    """
    if "views" in batch:
        return batch["views"]
    images, draws = batch["images"], batch["draws"]
    if "boxes" in batch:
        images = cropping.crop_and_resize(images, batch["boxes"], settings.image_size, settings.resize_method)
    else:
        images = tf.cast(images, tf.float32) / 255
    shape = tf.shape(images)
    flat = tf.reshape(images, [-1, settings.image_size, settings.image_size, 3])  # [b · v, size, size, 3]
    flat = augment.augment_views(flat, tf.reshape(draws, [-1, augment.NUM_DRAWS]), settings)
    return tf.reshape(flat, shape)


def evaluation_input(
    source: Source,
    batch_size: int,
    image_size: int,
    max_steps: int = 0,
    resize_method: str = "bicubic",
    part: Part = WHOLE,
) -> tf.data.Dataset:
    """Returns every image once, in order, centre-cropped; corrupt ones are counted and have weight 0.

    Args:
        source: the images.
        batch_size: images per batch over all parts.
        image_size: height and width of the views, px.
        max_steps: batches at most; 0: all.
        resize_method: as in ``cropping.center_crop_and_resize``.
        part: the rows of each batch that are produced, b of them.

    Returns:
        Batches of one static shape, equally many for each part: ``images`` float32 ``[b, size, size, 3]`` in [0, 1],
        ``labels`` int32 ``[b]`` (−1: unknown) and ``weights`` float32 ``[b]``: 1 for an image, 0 for a corrupt one and
        for the zeros that fill the last batch.
    """
    steps = -(-source.num_examples // batch_size)
    steps = min(steps, max_steps) if max_steps else steps
    first, end = part.rows(batch_size)

    @graph_code
    def view(image: tf.Tensor) -> tf.Tensor:
        image = tf.image.convert_image_dtype(image, tf.float32)
        return cropping.center_crop_and_resize(image, (image_size, image_size), method=resize_method)

    def select(examples: tf.data.Dataset) -> tf.data.Dataset:
        return part.select(examples.take(steps * batch_size), batch_size)

    nothing = {"images": tf.zeros([image_size, image_size, 3]), "labels": 0, "weights": 0.0}
    padding = tf.data.Dataset.from_tensors(nothing).repeat()
    data = source.evaluation_examples(view, select).concatenate(padding).take(steps * (end - first))
    return data.batch(end - first, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(ordered_options())


def ordered_options() -> tf.data.Options:
    """Returns the options of data sets that yield their elements in order and are not sharded by TensorFlow."""
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
