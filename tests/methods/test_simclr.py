"""SimCLR: the loss, the online classifier, the memory, the modes of the projection head."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf.methods.simclr import SimCLR


def simclr(classes: int = tiny.CLASSES, memory: int = 0, optimizer: str = "lars", decay: float = 1e-3, **kwargs):
    network = tiny.network(classes, **kwargs)
    model = SimCLR(network, tiny.VIEWS, 0.5, weight_decay=decay, memory_size=memory, ema_decay=0.9)
    return tiny.compiled(model, optimizer, decay=decay)


def endpoints(model: SimCLR, batch: dict[str, np.ndarray], training: bool = True) -> dict[str, np.ndarray]:
    """Returns the endpoints of all first views, then of all second views, without updating moving statistics."""
    network = model.network
    values = [[variable.value for variable in network.trainable_variables]]
    values += [[variable.value for variable in network.non_trainable_variables]]
    images = np.concatenate([batch["views"][:, 0], batch["views"][:, 1]])
    outputs, _ = network.stateless_call(*values, images, training=training, whole_head=True)
    return {name: output.numpy() for name, output in outputs.items()}


def normalized(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def contrastive_loss(hidden: np.ndarray, temperature: float, negatives: np.ndarray) -> float:
    """Computes the formula row by row from normalised rows: −log of the positive's share among all other rows."""
    count = len(hidden) // 2
    losses = []
    for row in range(2 * count):
        others = [other for other in range(2 * count) if other != row]
        candidates = np.concatenate([hidden[others], negatives])
        shares = np.exp(candidates @ hidden[row] / temperature)
        positive = np.exp(hidden[(row + count) % (2 * count)] @ hidden[row] / temperature)
        losses.append(-np.log(positive / shares.sum()))
    return np.sum(losses) / count


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


def test_loss_falls():
    model = simclr()
    batches = tiny.dataset(0, 1).repeat(40)
    losses = [logs["contrastive_loss"] for logs in tiny.fit(model, batches)]
    assert losses[-1] < 0.7 * losses[0]
    assert set(model.history.history) == set(model.train_metrics)


class TestOnlineClassifier:
    @pytest.mark.parametrize("optimizer", ["lars", "momentum"])
    def test_does_not_train_encoder_or_head(self, optimizer):
        tiny.use_float64()
        model, without = simclr(optimizer=optimizer), simclr(classes=0, optimizer=optimizer)
        kernel = model.network.classifier.dense.kernel.numpy()
        start = tiny.numbers(without.network.variables)
        tiny.assign([v for v in model.network.variables if v.path in start], start)
        tiny.run_eagerly(model, tiny.dataset(0, 3))
        logs = tiny.run_eagerly(without, tiny.dataset(0, 3))
        expected = tiny.numbers(without.network.variables)
        actual = tiny.numbers(model.network.variables)
        tiny.assert_close({path: actual[path] for path in expected}, expected, rtol=1e-10)
        assert tiny.moved(start, expected) == set(start)
        assert not np.array_equal(kernel, model.network.classifier.dense.kernel)
        assert "online_loss" not in logs[0]

    def test_ignores_unlabelled_rows(self):
        model, batch = simclr(), tiny.batch(0, unlabelled=[0, 3, 4])
        known = np.tile(batch["labels"], 2) >= 0
        logits = endpoints(model, batch)["logits_sup"][known]
        labels = np.tile(batch["labels"], 2)[known]
        logs = model.train_step(batch)
        assert float(logs["online_loss"]) == pytest.approx(cross_entropy(logits, labels), rel=1e-5)
        assert float(logs["online_train_top1"]) == pytest.approx(np.mean(logits.argmax(axis=1) == labels))

    def test_does_not_learn_without_labels(self):
        model, batch = simclr(decay=0.0), tiny.batch(0, unlabelled=range(tiny.BATCH))
        classifier = tiny.numbers(model.network.classifier_variables)
        logs = model.train_step(batch)
        assert logs["online_loss"] == 0 and logs["loss"] == logs["contrastive_loss"]
        assert not tiny.moved(classifier, tiny.numbers(model.network.classifier_variables))


class TestMemory:
    def test_average_and_queue_follow_their_formulas(self):
        """The outputs of the averaged network enter at the front of the queue, and the oldest rows are dropped."""
        model, twin = simclr(memory=20), tiny.network(seed=1)
        memory = model.memory
        for average, weight in zip(memory.averages, model.network.trainable_variables, strict=True):
            np.testing.assert_array_equal(average, weight)
        for step in range(4):
            averages, queue = [average.numpy() for average in memory.averages], memory.queue.numpy()
            batch = tiny.batch(step)
            model.train_step(batch)
            for index, weight in enumerate(model.network.trainable_variables):
                averages[index] = np.float32(0.9) * averages[index] + np.float32(1 - 0.9) * weight.numpy()
                np.testing.assert_allclose(memory.averages[index], averages[index], rtol=1e-6, atol=1e-9)
                twin.trainable_variables[index].assign(memory.averages[index])
            keys = twin(batch["views"][:, 0], training=True, whole_head=True)["proj_head_output"]
            np.testing.assert_allclose(memory.queue[: tiny.BATCH], keys, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(memory.queue[tiny.BATCH :], queue[: -tiny.BATCH])

    def test_queue_shorter_than_a_batch(self):
        model = simclr(memory=3)
        model.train_step(tiny.batch(0))
        assert model.memory.queue.shape == (3, 5)

    @pytest.mark.parametrize("size", [0, 20])
    def test_queue_holds_further_negatives(self, size):
        model, batch = simclr(memory=size), tiny.batch(0)
        hidden = normalized(endpoints(model, batch)["proj_head_output"])
        queue = normalized(model.memory.queue.numpy()) if size else np.zeros((0, 5))
        logs = model.train_step(batch)
        assert float(logs["contrastive_loss"]) == pytest.approx(contrastive_loss(hidden, 0.5, queue), rel=1e-5)

    def test_does_not_change_the_networks_statistics(self):
        """The averaged network runs in training mode, with batch statistics, and updates no moving ones."""
        model, without = simclr(memory=20), simclr()
        for each in (model, without):
            each.train_step(tiny.batch(0))
        expected = tiny.numbers(without.network.non_trainable_variables)
        tiny.assert_close(tiny.numbers(model.network.non_trainable_variables), expected, rtol=1e-6)

    def test_two_replicas_equal_one(self, replicas):
        tiny.use_float64()
        models = []
        for strategy, train in ((tf.distribute.get_strategy(), tiny.run_eagerly), (replicas(2), tiny.fit)):
            with strategy.scope():
                model = simclr(memory=20)
            train(model, tiny.dataset(0, 3))
            models.append(model)
        one, two = (tiny.numbers(model.memory.variables) for model in models)
        tiny.assert_close(two, one, rtol=1e-9)


@pytest.mark.parametrize("memory", [0, 20])
@pytest.mark.parametrize(("mode", "width"), [("none", 32), ("linear", 5)])
def test_other_modes_of_the_projection_head(mode, width, memory):
    model, batch = simclr(mode=mode, make_encoder=tiny.resnet, memory=memory), tiny.batch(0)
    outputs = endpoints(model, batch)
    assert outputs["proj_head_output"].shape == (2 * tiny.BATCH, width)
    if mode == "none":
        np.testing.assert_array_equal(outputs["proj_head_output"], outputs["final_avg_pool"])
    queue = normalized(model.memory.queue.numpy()) if memory else np.zeros((0, width))
    before = tiny.numbers(model.trained_variables)
    logs = model.train_step(batch)
    hidden = normalized(outputs["proj_head_output"])
    assert float(logs["contrastive_loss"]) == pytest.approx(contrastive_loss(hidden, 0.5, queue), rel=1e-5)
    assert tiny.moved(before, tiny.numbers(model.trained_variables)) == set(before)


def test_unnormalised_projections():
    network, batch = tiny.network(), tiny.batch(0)
    model = tiny.compiled(SimCLR(network, tiny.VIEWS, 5.0, hidden_norm=False))
    hidden = endpoints(model, batch)["proj_head_output"]
    logs = model.train_step(batch)
    expected = contrastive_loss(hidden, 5.0, np.zeros((0, 5)))
    assert float(logs["contrastive_loss"]) == pytest.approx(expected, rel=1e-5)


def test_mixed_precision_keeps_the_losses_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    logs = simclr(memory=20).train_step(tiny.batch(0))
    assert {value.dtype for value in logs.values()} == {tf.float32}
