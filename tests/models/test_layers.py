"""The max-pool for XLA equals TensorFlow's; rematerialised blocks equal plain ones."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.models import BatchNorm, BatchNormSettings, ResNet
from simclrv2_tf.models.layers import max_pool
from simclrv2_tf.models.resnet import BlockGroup


class TestMaxPool:
    @staticmethod
    def value_and_gradient(pool, x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = pool(x)
        return y, tape.gradient(y, x, dy)

    @classmethod
    def reference(cls, x, dy):
        return cls.value_and_gradient(lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME"), x, dy)

    @staticmethod
    def draw(sides, dtype, ties):
        """Returns an input and an upstream gradient; with ties, values ≤ 0, where padding must not be the maximum."""
        rng = np.random.default_rng(0)
        shape = (2, *sides, 3)
        x = rng.integers(-2, 1, shape) if ties else rng.permutation(np.prod(shape)).reshape(shape) / 8 - 20
        return tf.cast(x, dtype), tf.cast(rng.normal(size=(2, *(-(-side // 2) for side in sides), 3)), dtype)

    @pytest.mark.parametrize("xla", [False, True], ids=["", "xla"])
    @pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
    @pytest.mark.parametrize("sides", [(8, 8), (7, 9), (6, 5), (1, 2)], ids=str)
    def test_value_and_gradient_equal_tensorflows(self, sides, ties, xla):
        x, dy = self.draw(sides, "float32", ties)
        compute = tf.function(lambda x, dy: self.value_and_gradient(max_pool, x, dy), jit_compile=xla)
        y, dx = compute(x, dy)
        expected_y, expected_dx = self.reference(x, dy)
        np.testing.assert_array_equal(y, expected_y)
        np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
    def test_gradients_of_a_pixel_are_summed_in_float32_at_least(self, dtype):
        """Up to four windows contribute; the sum is rounded once."""
        x, dy = self.draw((9, 8), dtype, ties=True)
        y, dx = self.value_and_gradient(max_pool, x, dy)
        assert y.dtype == dx.dtype == x.dtype
        exact_y, exact_dx = self.reference(tf.cast(x, tf.float32), tf.cast(dy, tf.float32))
        np.testing.assert_array_equal(tf.cast(y, tf.float32), exact_y)
        rounded_dx = tf.cast(tf.cast(exact_dx, dtype), tf.float32)
        np.testing.assert_allclose(tf.cast(dx, tf.float32), rounded_dx, atol=1e-6)

    def test_sides_may_be_unknown_while_tracing(self):
        images = tf.TensorSpec([None, None, None, 3])
        compute = tf.function(lambda x, dy: self.value_and_gradient(max_pool, x, dy), input_signature=[images] * 2)
        for sides in ((8, 7), (5, 6)):
            x, dy = self.draw(sides, "float32", ties=True)
            for ours, theirs in zip(compute(x, dy), self.reference(x, dy), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)

    def test_nan_is_propagated(self):
        """The NaN guard sees it in the loss."""
        x = tf.constant(np.where(np.arange(64).reshape(1, 8, 8, 1) == 27, np.nan, 1.0), tf.float32)
        assert np.isnan(max_pool(x)).any()


BASIC = {"bottleneck": False, "sk_ratio": 0.0, "se_ratio": 0.0}
BLOCKS = {"basic": BASIC, "sk": {"bottleneck": True, "sk_ratio": 0.5, "se_ratio": 0.0}, "se": BASIC | {"se_ratio": 0.5}}


def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 8, 8, 6)).astype(keras.config.floatx())


def block_group(remat: bool, kind: str = "basic") -> BlockGroup:
    """Builds two blocks whose last gammas are 1: at 0, as they start, no gradient would reach the convolutions."""
    keras.utils.set_random_seed(0)
    group = BlockGroup(4, 2, 2, {"batch_norm": BatchNormSettings()} | BLOCKS[kind], remat, name="group")
    group.build((None, None, None, 6))
    for variable in group.trainable_variables:
        if variable.name == "gamma":
            variable.assign(tf.ones_like(variable))
    return group


def training_step(group: BlockGroup, x: tf.Tensor) -> list[tf.Tensor]:
    """Returns the output and the gradients of the input and all variables; updates the moving statistics."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = group(x, training=True)
        scalar = tf.reduce_sum(tf.sin(tf.cast(y, tf.float32) if y.dtype == tf.bfloat16 else y))
    return [y, *tape.gradient(scalar, [x, *(variable.value for variable in group.trainable_variables)])]


def as_arrays(tensors) -> list[np.ndarray]:
    return [np.array(tensor, "float64") for tensor in tensors]


def assert_equal(actual, expected, rtol: float = 1e-9) -> None:
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


class TestRemat:
    @pytest.mark.parametrize(
        ("kind", "execution", "policy"),
        [
            ("basic", "graph", "float64"),
            ("basic", "xla", "float64"),
            ("sk", "eager", "float64"),
            ("se", "eager", "float64"),
            ("basic", "eager", "mixed_bfloat16"),
        ],
    )
    def test_outputs_gradients_and_statistics_equal_those_of_plain_blocks(self, kind, execution, policy):
        """Over two steps: statistics that are updated twice per step would differ."""
        keras.config.set_floatx("float64" if policy == "float64" else "float32")
        keras.config.set_dtype_policy(policy)
        x, results = tf.constant(images()), []
        for remat in (False, True):
            group = block_group(remat, kind)
            step = training_step
            if execution != "eager":
                step = tf.function(training_step, jit_compile=execution == "xla", autograph=False)
            steps = [as_arrays(step(group, x)) for _ in range(2)]
            results.append([*steps[0], *steps[1], *as_arrays(group.non_trainable_variables)])
        assert_equal(results[1], results[0], rtol=1e-9 if policy == "float64" else 1e-6)

    def test_inference_and_frozen_batch_norms_keep_their_statistics(self):
        plain, remat = block_group(False), block_group(True)
        x = tf.constant(images())
        assert_equal(as_arrays([remat(x)]), as_arrays([plain(x)]), rtol=1e-6)
        for group in (plain, remat):
            group.blocks[1].trainable = False
        before = as_arrays(remat.blocks[1].variables)
        assert_equal(as_arrays(training_step(remat, x)), as_arrays(training_step(plain, x)), rtol=1e-5)
        assert_equal(as_arrays(remat.blocks[1].variables), before, rtol=0)

    def test_stateless_scope_gets_the_new_statistics(self):
        """Micro-batches rely on it; the variables stay as they are."""
        group = block_group(True)
        before = as_arrays(group.non_trainable_variables)
        with keras.StatelessScope() as scope:
            group(tf.constant(images()), training=True)
        assert_equal(as_arrays(group.non_trainable_variables), before, rtol=0)
        layers = [layer for layer in group._flatten_layers() if isinstance(layer, BatchNorm)]
        assert len(layers) == 5
        for layer in layers:
            assert not np.allclose(scope.get_current_value(layer.moving_mean), layer.moving_mean)

    def test_xla_does_not_merge_the_two_runs(self):
        """All five convolutions occur a second time in the program."""
        counts = []
        for remat in (False, True):
            step = tf.function(training_step, jit_compile=True, autograph=False)
            ir = step.experimental_get_compiler_ir(block_group(remat), tf.constant(images()))
            counts.append(len(re.findall(r"= \S+ (convolution|dot|custom-call)\(", ir(stage="optimized_hlo"))))
        assert counts[1] == counts[0] + 5

    def test_setting_reaches_every_group(self):
        network = ResNet(10, 1 / 16, remat=True)
        restored = ResNet.from_config(network.get_config())
        assert [group.remat for group in restored.groups] == [True] * 4
