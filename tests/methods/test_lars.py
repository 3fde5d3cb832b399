"""LARS and optimizers by name: the recorded numbers, replicas, resumption and serialisation."""

import doctest
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.methods import lars
from simclrv2_tf.methods.lars import LARS
from simclrv2_tf.methods.optimizers import build_optimizer
from simclrv2_tf.methods.schedules import WarmUpCosine

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RECORDED = np.load(GOLDEN / "lars.npz")
SPEC = json.loads((GOLDEN / "lars_spec.json").read_text())
NAMES = [name for name, _, _ in SPEC["vars"]]
SHAPES = [shape for _, shape, _ in SPEC["vars"]]


def split(flat: np.ndarray) -> list[np.ndarray]:
    parts = np.split(flat, np.cumsum([np.prod(shape) for shape in SHAPES])[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def recorded_variables() -> list[keras.Variable]:
    return [keras.Variable(value) for value in split(RECORDED["init_params"])]


def flat(variables) -> np.ndarray:
    return np.concatenate([np.ravel(variable.numpy()) for variable in variables])


def optimizer_of(spec: dict, variables: list[keras.Variable]) -> LARS:
    """Optimizer of a recorded case: variables are excluded by role, the official code does it by substrings of names.

    The substrings match every vector, which is our default, and the supervised head. They also match the kernel of
    ``debiased_conv`` ("bias"), a bug that is reproduced here by excluding that kernel. In cases with other substrings
    the variables are excluded one by one.
    """
    names = spec.get("exclude_from_weight_decay", [])
    usual = names == ["batch_normalization", "bias", "head_supervised"]
    optimizer = LARS(
        learning_rate=0.0,
        momentum=spec["momentum"],
        weight_decay=spec["weight_decay"],
        trust_coefficient=spec.get("eeta", 0.001),
        nesterov=spec.get("use_nesterov", False),
        classic_momentum=spec.get("classic_momentum", True),
        skip_vectors=usual,
    )
    by_name = dict(zip(NAMES, variables, strict=True))
    if usual:
        head = [by_name[name] for name in NAMES if name.startswith("head_supervised")]
        optimizer.exclude([*head, by_name["base_model/debiased_conv/kernel"]])
        return optimizer

    def matching(substrings):
        return [variable for name, variable in by_name.items() if any(part in name for part in substrings)]

    optimizer.exclude(matching(names), adaptation=False)
    optimizer.exclude(matching(spec.get("exclude_from_layer_adaptation", [])), decay=False)
    return optimizer


@pytest.mark.parametrize("case", SPEC["cases"])
def test_recorded(case, parity):
    variables = recorded_variables()
    optimizer = optimizer_of(SPEC["cases"][case], variables)
    for step, (rate, gradients) in enumerate(zip(SPEC["lrs"], RECORDED["grads"], strict=True), start=1):
        optimizer.learning_rate = rate
        optimizer.apply([tf.constant(gradient) for gradient in split(gradients)], variables)
        key = f"{case}/step{step}"
        for ours, name, whole in ((variables, "param", "params"), (optimizer.momentums, "momentum", "momenta")):
            norms = [np.linalg.norm(np.float64(variable.numpy())) for variable in ours]
            parity(f"norms of {whole} after each step", norms, RECORDED[f"{key}/{name}_norms"], 1e-6, of="each")
            if step in (1, 5):
                for variable, value in zip(ours, split(RECORDED[f"{key}/{whole}"]), strict=True):
                    parity(f"{whole} after steps 1 and 5", variable.numpy(), value, 2e-7)


def toy(seed: int = 0) -> keras.Sequential:
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((5,)), *layers])


def toy_gradients(model: keras.Sequential, step: int) -> list[tf.Tensor]:
    rng = np.random.default_rng(step)
    return [tf.constant(rng.standard_normal(w.shape), w.dtype) for w in model.trainable_variables]


def scheduled(**kwargs) -> LARS:
    return LARS(WarmUpCosine(0.8, total_steps=12, warmup_steps=2), weight_decay=1e-2, **kwargs)


def train(model, optimizer, steps, jit_compile=None):
    apply = tf.function(
        lambda gradients: optimizer.apply(gradients, model.trainable_variables),
        jit_compile=jit_compile,
        autograph=False,
    )
    for step in steps:
        apply(toy_gradients(model, step))
    return [weight.numpy() for weight in model.trainable_variables]


def test_excluded_by_identity_gets_plain_momentum():
    head, other = keras.Variable(np.full([2, 2], 3.0, "float32")), keras.Variable(np.full([2, 2], 3.0, "float32"))
    optimizer = LARS(0.5, momentum=0.9, weight_decay=0.1)
    optimizer.exclude([head])
    optimizer.apply([tf.ones([2, 2]), tf.ones([2, 2])], [other, head])
    np.testing.assert_allclose(head.numpy(), 3 - 0.5, rtol=1e-6)  # neither decayed nor adapted
    np.testing.assert_allclose(other.numpy(), 3 - 0.5 * 0.001 * 3, rtol=1e-6)  # steps by lr·η·‖w‖ along the gradient
    with pytest.raises(ValueError, match="before"):
        optimizer.exclude([other])


def test_config_round_trip():
    optimizer = scheduled(
        momentum=0.8,
        trust_coefficient=0.01,
        nesterov=True,
        classic_momentum=False,
        skip_vectors=False,
        name="mine",
        clipnorm=1.0,
    )
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, LARS)
    assert again.get_config() == optimizer.get_config()
    assert again.get_config()["weight_decay"] == 1e-2
    models = toy(), toy()
    for one, other in zip(
        *[train(model, which, range(3)) for model, which in zip(models, (optimizer, again), strict=True)], strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_weight_decay_acts_once():
    """Through the gradient alone: without adaptation, decay of a zero gradient shrinks w by lr · wd."""
    weight = keras.Variable(np.full([2, 2], 2.0, "float32"))
    optimizer = LARS(0.5, weight_decay=0.1)
    optimizer.exclude([weight], decay=False)
    optimizer.apply([tf.zeros([2, 2])], [weight])
    np.testing.assert_allclose(weight.numpy(), 2 * (1 - 0.5 * 0.1), rtol=1e-6)


def test_resumption_is_bit_identical(tmp_path):
    model, optimizer = toy(), scheduled()
    train(model, optimizer, range(3))
    path = tf.train.Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "run")
    expected = train(model, optimizer, range(3, 6))

    resumed, fresh = toy(seed=1), scheduled()
    fresh.build(resumed.trainable_variables)
    tf.train.Checkpoint(model=resumed, optimizer=fresh).restore(path).assert_consumed()
    assert fresh.iterations.numpy() == 3
    for one, other in zip(train(resumed, fresh, range(3, 6)), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_replicas_equal_one(replicas):
    model, optimizer = toy(), scheduled()
    optimizer.exclude([model.layers[-1].kernel])
    expected = train(model, optimizer, range(4))

    strategy = replicas(2)
    with strategy.scope():
        mirrored, shared = toy(), scheduled()
        shared.exclude([mirrored.layers[-1].kernel])
        shared.build(mirrored.trainable_variables)

    def apply_share(gradients):  # a quarter here, three quarters there; the optimizer sums
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        share = 0.25 + 0.5 * tf.cast(replica, tf.float32)
        shared.apply([gradient * share for gradient in gradients], mirrored.trainable_variables)

    step = tf.function(lambda gradients: strategy.run(apply_share, (gradients,)), autograph=False)
    for index in range(4):
        step(toy_gradients(mirrored, index))
    for weight, value in zip(mirrored.trainable_variables, expected, strict=True):
        for copy in strategy.experimental_local_results(weight.value):
            np.testing.assert_allclose(copy.numpy(), value, rtol=1e-5, atol=1e-7)
    assert shared.iterations.numpy() == 4


def test_xla_equals_no_xla():
    plain = train(toy(), scheduled(nesterov=True), range(4), jit_compile=False)
    compiled = train(toy(), scheduled(nesterov=True), range(4), jit_compile=True)
    for one, other in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_fits_under_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = toy()
    model.compile(LARS(0.1, trust_coefficient=0.3), loss="mse")  # float16 wraps it in a LossScaleOptimizer
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((32, 5)).astype("float32")
    losses = model.fit(inputs, inputs[:, :3], batch_size=32, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert all(weight.dtype == "float32" for weight in model.trainable_variables)


@pytest.mark.parametrize("bad", [{"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": -1e-4}])
def test_refuses_settings_out_of_bounds(bad):
    with pytest.raises(ValueError, match="must be"):
        LARS(0.1, **bad)


def test_the_example_in_the_docstring():
    assert doctest.testmod(lars, extraglobs={"tf": tf, "np": np, "keras": keras}).failed == 0


class TestBuildOptimizer:
    def test_lars(self):
        optimizer = build_optimizer("lars", 0.5, momentum=0.8, weight_decay=0.1)
        assert isinstance(optimizer, LARS)
        assert (optimizer.momentum, optimizer.l2) == (0.8, 0.1)

    def test_momentum_is_nesterov_without_decoupled_decay(self):
        weight = keras.Variable(np.ones([2], "float32"))
        optimizer = build_optimizer("momentum", 0.5, momentum=0.9, weight_decay=0.1)
        optimizer.apply([tf.ones([2])], [weight])
        np.testing.assert_allclose(weight.numpy(), 1 - 0.5 * 1.9, rtol=1e-6)

    def test_adam_follows_the_schedule(self):
        schedule = WarmUpCosine(0.1, total_steps=4)
        optimizer = build_optimizer("adam", schedule, weight_decay=0.1)
        assert isinstance(optimizer, keras.optimizers.Adam)
        assert optimizer.weight_decay is None
        np.testing.assert_allclose(optimizer.learning_rate, 0.1, rtol=1e-6)

    def test_refuses_another_name(self):
        with pytest.raises(ValueError, match="sgd"):
            build_optimizer("sgd", 0.1)
