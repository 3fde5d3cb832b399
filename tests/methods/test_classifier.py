"""ClassificationModel: which variables a step updates, the taps of the head, the loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf.methods.classifier import ClassificationModel

BLOCKS = 4


def classification(
    freeze: int = -1, keep_head: bool = False, optimizer: str = "momentum", decay: float = 0.0, **kwargs
) -> ClassificationModel:
    network = tiny.network(**{"make_encoder": tiny.resnet, "num_layers": 3, **kwargs})
    model = ClassificationModel(network, tiny.VIEWS, weight_decay=decay)
    if freeze != -1 or keep_head:
        model.freeze(freeze, keep_head)
    return tiny.compiled(model, optimizer, decay=decay)


def moved_by_a_step(model: ClassificationModel) -> set[str]:
    before = tiny.numbers(model.network.variables)
    model.train_step(tiny.batch(0, num_views=1))
    return tiny.moved(before, tiny.numbers(model.network.variables))


def paths(*parts: keras.layers.Layer) -> set[str]:
    return {variable.path for part in parts for variable in part.variables}


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels])


@pytest.mark.parametrize("after_block", range(-1, BLOCKS))
def test_freeze_trains_exactly_the_blocks_above(after_block):
    """Neither weights nor moving statistics of frozen blocks change."""
    model = classification(after_block, tap=2)
    network = model.network
    above = [network.encoder.stem, *network.encoder.groups][after_block + 1 :]
    assert moved_by_a_step(model) == paths(*above, *network.projection_head.layers[:2], network.classifier)


@pytest.mark.parametrize("tap", [0, 1, 3])
def test_linear_evaluation_trains_only_the_classifier(tap):
    """On any tap; the training logits are those of evaluation."""
    model, batch = classification(4, tap=tap), tiny.batch(0, num_views=1)
    for variable in model.network.non_trainable_variables:  # as if trained: far from the batch's statistics
        variable.assign(variable + 0.5)
    logits = model(batch["views"][:, 0], training=False)["logits_sup"].numpy()
    np.testing.assert_array_equal(model(batch["views"][:, 0], training=True)["logits_sup"], logits)
    before = tiny.numbers(model.network.variables)
    first, *_ = tiny.run_eagerly(model, tiny.dataset(0, 3, num_views=1))
    assert first["loss"] == pytest.approx(cross_entropy(logits, batch["labels"]), rel=1e-5)
    assert first["train_top1"] == pytest.approx(np.mean(logits.argmax(axis=1) == batch["labels"]))
    assert tiny.moved(before, tiny.numbers(model.network.variables)) == paths(model.network.classifier)


def test_freezing_can_be_undone():
    model = classification(4, tap=1)
    assert len(model.trained_variables) == 2
    model.freeze(2)
    model.freeze(-1)
    network = model.network
    expected = [*network.encoder.variables, *network.projection_head.layers[0].variables, *network.classifier.variables]
    tiny.compiled(model, "momentum")
    assert moved_by_a_step(model) == {variable.path for variable in expected}


@pytest.mark.parametrize("after_block", [-1, 4])
def test_keep_head_freezes_the_projection_head(after_block):
    model = classification(after_block, keep_head=True, tap=2)
    network = model.network
    expected = paths(network.classifier) if after_block == 4 else paths(network.encoder, network.classifier)
    assert moved_by_a_step(model) == expected


@pytest.mark.parametrize("tap", range(4))
def test_head_is_trained_up_to_the_tap(tap):
    """The layers above the tap do not even run."""
    model = classification(tap=tap)
    network = model.network
    assert network.classifier.dense.kernel.shape[0] == (5 if tap == 3 else network.encoder.feature_dim)
    used = network.projection_head.layers[:tap]
    assert moved_by_a_step(model) == paths(network.encoder, *used, network.classifier)
    endpoints = model(tiny.batch(0)["views"][:, 0])
    assert (f"proj_head_{tap + 1}" in endpoints, "proj_head_output" in endpoints) == (False, tap == 3)


def test_zero_initialised_classifier_starts_at_uniform_probabilities():
    model = classification(zero_init=True)
    assert not np.any(model.network.classifier.dense.kernel)
    logs = model.train_step(tiny.batch(0, num_views=1))
    assert float(logs["loss"]) == pytest.approx(np.log(tiny.CLASSES), rel=1e-6)
    assert np.any(model.network.classifier.dense.kernel)


@pytest.mark.parametrize(("optimizer", "after_block"), [("lars", -1), ("momentum", -1), ("adam", -1), ("momentum", 4)])
def test_weight_decay_in_the_loss(optimizer, after_block):
    """LARS itself decays all but the classifier; otherwise the loss decays all trained weights but batch norm's."""
    encoder = tiny.encoder if after_block == -1 else tiny.resnet
    model = classification(after_block, tap=1, optimizer=optimizer, decay=0.1, make_encoder=encoder)
    network, batch = model.network, tiny.batch(0, num_views=1)
    logits = model(batch["views"][:, 0], training=True)["logits_sup"].numpy()
    decayed = [network.classifier.dense.kernel]
    if optimizer != "lars":
        decayed.append(network.classifier.dense.bias)
        if after_block == -1:
            kernels = [v for v in network.encoder.variables if v.name == "kernel"]
            decayed += [*kernels, network.projection_head.layers[0].dense.kernel]
    penalty = 0.1 / 2 * sum(np.sum(np.square(variable)) for variable in decayed)
    logs = model.train_step(batch)
    assert float(logs["loss"]) == pytest.approx(cross_entropy(logits, batch["labels"]) + penalty, rel=1e-5)


def test_loss_falls():
    model = classification(make_encoder=tiny.encoder)
    losses = [logs["loss"] for logs in tiny.fit(model, tiny.dataset(0, 1, num_views=1).repeat(60))]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.slow  # the faster tests of SimCLR and the distiller run the same code
def test_two_replicas_equal_one(replicas):
    tiny.use_float64()
    results = []
    for strategy in (tf.distribute.get_strategy(), replicas(2)):
        with strategy.scope():
            model = classification(tap=1, make_encoder=tiny.encoder, optimizer="lars", decay=1e-3)
        logs = tiny.fit(model, tiny.dataset(0, 3, num_views=1))
        results.append((logs, tiny.numbers(model.network.variables)))
    (one_logs, one), (two_logs, two) = results
    for ours, expected in zip(two_logs, one_logs, strict=True):
        assert ours == pytest.approx(expected, rel=1e-6)
    tiny.assert_close(two, one, rtol=1e-9)
