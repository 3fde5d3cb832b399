"""Sampling: the images and the random numbers of each training batch, as functions of (seed, step).

Training walks through one endless sequence of positions: position p is image ``shuffle(p mod n)`` of epoch
``p div n``. Step s takes the positions ``s·batch … (s+1)·batch − 1``, and the uniform numbers of its crops and
augmentations come from (seed, s). A batch can therefore be rebuilt from its step alone, so that a resumed run equals an
uninterrupted one.
"""

import dataclasses

import tensorflow as tf

from simclrv2_tf.data.augment import NUM_BASE_DRAWS, NUM_DRAWS
from simclrv2_tf.data.cropping import CROP_DRAWS
from simclrv2_tf.data.decoding import graph_code


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of every batch that one worker produces: the ``index``-th of ``count`` equal parts."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> tuple[int, int]:
        """Returns the first row of the part in a batch, and the row after its last one."""
        size = batch_size // self.count
        return self.index * size, (self.index + 1) * size

    def select(self, examples: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        """Filters a data set of single examples, which form whole batches, down to the rows of the part."""
        if self.count == 1:
            return examples
        first, end = self.rows(batch_size)

        @graph_code
        def belongs(number: tf.Tensor, _: object) -> tf.Tensor:
            return (number % batch_size >= first) & (number % batch_size < end)

        return examples.enumerate().filter(belongs).map(lambda _, example: example)


WHOLE = Part()


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Image indices and random numbers of each step.

    Attributes:
        num_examples: images in the source, n.
        batch_size: images per step over all workers; at most n.
        num_views: views per image, v.
        seed: seed of the order, crops and augmentation.
        part: the rows of each batch that are produced here, b of them.
    """

    num_examples: int
    batch_size: int
    num_views: int
    seed: int
    part: Part = WHOLE

    @property
    def num_rows(self) -> int:
        """Rows of the part, b."""
        return self.batch_size // self.part.count

    def indices(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the image indices of a step, int64 ``[b]``; each epoch is another permutation of all images."""
        total = self.num_examples
        positions = step * self.batch_size + tf.range(*self.part.rows(self.batch_size), dtype=tf.int64)  # [b]
        first_epoch = positions[0] // total

        def shuffled(epoch: tf.Tensor) -> tf.Tensor:
            # The seed is hashed first, as the op reads only the low byte of each word. Eight rounds: after the
            # default four, neighbours in a large data set are still close to each other.
            seed = tf.stack([tf.constant(self.seed, tf.int64), epoch])
            seed = tf.random.stateless_uniform([3], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
            return tf.raw_ops.RandomIndexShuffle(index=positions % total, seed=seed, max_index=total - 1, rounds=8)

        # a batch is at most as large as the source, so it spans at most two epochs
        return tf.where(positions // total == first_epoch, shuffled(first_epoch), shuffled(first_epoch + 1))

    def draws(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a step's uniform numbers in [0, 1): float32 ``[b, v, CROP_DRAWS]`` and ``[b, v, NUM_DRAWS]``."""
        seed = tf.stack([tf.constant(self.seed, tf.int64), step])
        crops, draws = uniform_draws([self.batch_size, self.num_views], seed)  # of all parts, as rows depend on others
        first, end = self.part.rows(self.batch_size)
        return crops[first:end], draws[first:end]


def uniform_draws(shape: list[int], seed: tf.Tensor, num_draws: int = NUM_DRAWS) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns uniform numbers in [0, 1): float32 ``[*shape, CROP_DRAWS]`` and ``[*shape, num_draws]``.

    Draws after the first ``NUM_BASE_DRAWS`` have a stream of their own, so that a new one changes no other.
    """
    numbers = tf.random.stateless_uniform([*shape, CROP_DRAWS + NUM_BASE_DRAWS], seed, alg="philox")
    crops, draws = tf.split(numbers, [CROP_DRAWS, NUM_BASE_DRAWS], axis=-1)
    if num_draws > NUM_BASE_DRAWS:
        seed = tf.random.experimental.stateless_fold_in(seed, 1, alg="philox")
        appended = tf.random.stateless_uniform([*shape, num_draws - NUM_BASE_DRAWS], seed, alg="philox")
        draws = tf.concat([draws, appended], axis=-1)
    return crops, draws
