"""Rematerialised blocks: the same numbers, nothing twice but the arithmetic."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.models import BatchNorm, BatchNormSettings, ResNet
from simclrv2_tf.models.resnet import BlockGroup

BASIC = {"bottleneck": False, "sk_ratio": 0.0, "se_ratio": 0.0}
KINDS = {"basic": BASIC, "sk": {"bottleneck": True, "sk_ratio": 0.5, "se_ratio": 0.0}, "se": BASIC | {"se_ratio": 0.5}}


def group(remat: bool, kind: str = "basic") -> BlockGroup:
    """Two blocks whose last gammas are not 0, as they start, which would let no gradient in."""
    keras.utils.set_random_seed(0)
    made = BlockGroup(4, 2, 2, {"batch_norm": BatchNormSettings()} | KINDS[kind], remat, name="group")
    made.build((None, None, None, 6))
    for variable in made.trainable_variables:
        if variable.name == "gamma":
            variable.assign(tf.ones_like(variable))
    return made


def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 8, 8, 6)).astype(keras.config.floatx())


def step(made: BlockGroup, x: tf.Tensor) -> list[tf.Tensor]:
    """The output and the gradients of the input and of all variables; the moving statistics move."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = made(x, training=True)
        scalar = tf.reduce_sum(tf.sin(tf.cast(y, tf.float32) if y.dtype == tf.bfloat16 else y))
    return [y, *tape.gradient(scalar, [x, *(variable.value for variable in made.trainable_variables)])]


def numbers(values) -> list[np.ndarray]:
    return [np.array(value, "float64") for value in values]


def assert_equal(ours, plain, rtol: float = 1e-9) -> None:
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize(
    ("kind", "xla", "policy"),
    [
        ("basic", False, "float64"),
        ("basic", True, "float64"),
        ("sk", False, "float64"),
        ("se", False, "float64"),
        ("basic", False, "mixed_bfloat16"),
    ],
)
def test_outputs_gradients_and_statistics(kind, xla, policy):
    """Of two steps: a statistic that moved twice in one would not be that of the plain blocks."""
    keras.config.set_floatx("float64" if policy == "float64" else "float32")
    keras.config.set_dtype_policy(policy)
    x, found = tf.constant(images()), []
    for remat in (False, True):
        made = group(remat, kind)
        function = tf.function(step, jit_compile=xla, autograph=False)
        steps = [numbers(function(made, x)) for _ in range(2)]
        found.append([*steps[0], *steps[1], *numbers(made.non_trainable_variables)])
    assert_equal(found[1], found[0], rtol=1e-9 if policy == "float64" else 1e-6)


def test_inference_and_frozen_batch_norms_leave_their_statistics():
    plain, ours = group(False), group(True)
    x = tf.constant(images())
    assert_equal(numbers([ours(x)]), numbers([plain(x)]), rtol=1e-6)
    for made in (plain, ours):
        made.blocks[1].trainable = False
    before = numbers(ours.blocks[1].variables)
    assert_equal(numbers(step(ours, x)), numbers(step(plain, x)), rtol=1e-5)
    assert_equal(numbers(ours.blocks[1].variables), before, rtol=0)


def test_within_a_stateless_scope():
    """What micro-batches rely on: the scope, not the variables, takes the new statistics."""
    made = group(True)
    before = numbers(made.non_trainable_variables)
    with keras.StatelessScope() as scope:
        made(tf.constant(images()), training=True)
    assert_equal(numbers(made.non_trainable_variables), before, rtol=0)
    layers = [layer for layer in made._flatten_layers() if isinstance(layer, BatchNorm)]
    assert len(layers) == 5
    for layer in layers:
        assert not np.allclose(scope.get_current_value(layer.moving_mean), layer.moving_mean)


def test_xla_does_not_merge_the_two_runs():
    """All five convolutions are in the program a second time."""
    convolutions = []
    for remat in (False, True):
        function = tf.function(step, jit_compile=True, autograph=False)
        ir = function.experimental_get_compiler_ir(group(remat), tf.constant(images()))(stage="optimized_hlo")
        convolutions.append(len(re.findall(r"= \S+ (convolution|dot|custom-call)\(", ir)))
    assert convolutions[1] == convolutions[0] + 5


def test_the_setting_reaches_every_group():
    made = ResNet(18, 1 / 16, remat=True)
    again = ResNet.from_config(made.get_config())
    assert [group.remat for group in again.groups] == [True] * 4
