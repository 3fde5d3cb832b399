"""Distiller: the loss formula, and a teacher that is not changed."""

import numpy as np
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.distiller import Distiller
from simclrv2_tf.models import Network


def distiller(
    teacher: Network | None = None, temperature: float = 1.0, alpha: float = 1.0, decay: float = 0.0, **kwargs
) -> Distiller:
    student = tiny.network(**kwargs)
    teacher = teacher or sharp(tiny.network(seed=1))
    model = Distiller(student, teacher, tiny.VIEWS, temperature, alpha, weight_decay=decay)
    return tiny.compiled(model, "momentum", decay=decay)


def sharp(network: Network) -> Network:
    """Enlarges the logits, which are almost equal for a new classifier."""
    network.classifier.dense.kernel.assign(1000 * network.classifier.dense.kernel)
    return network


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loss_equals_the_formula(temperature, alpha):
    """``(1 − α)`` · cross-entropy of the labelled rows + ``α`` · −Σ P_teacher log P_student, τ in both, without τ²."""
    decay = 0.1
    model = distiller(temperature=temperature, alpha=alpha, decay=decay, tap=1)
    batch = tiny.batch(0, num_views=1, unlabelled=[0, 1, 5])
    images, labels = batch["views"][:, 0], batch["labels"]
    student = model(images, training=True)["logits_sup"].numpy()
    teacher = model.teacher(images, training=False)["logits_sup"].numpy()
    soft = -np.sum(np.exp(log_softmax(teacher / temperature)) * log_softmax(student / temperature), axis=1).mean()
    known = labels >= 0
    hard = -log_softmax(student)[known, labels[known]].mean()
    weights = [v for v in model.trained_variables if v.name in ("kernel", "bias")]
    penalty = decay / 2 * sum(np.sum(np.square(weight)) for weight in weights)
    logs = model.train_step(batch)
    assert float(logs["distillation_loss"]) == pytest.approx(soft, rel=1e-5)
    assert float(logs["loss"]) == pytest.approx((1 - alpha) * hard + alpha * soft + penalty, rel=1e-5)
    assert float(logs["teacher_agreement"]) == pytest.approx(np.mean(student.argmax(1) == teacher.argmax(1)))


def test_batch_without_labels_has_only_the_distillation_loss():
    model = distiller(alpha=0.3)
    logs = model.train_step(tiny.batch(0, num_views=1, unlabelled=range(tiny.BATCH)))
    assert float(logs["loss"]) == pytest.approx(0.3 * float(logs["distillation_loss"]), rel=1e-6)


@pytest.mark.parametrize("big", [False, True], ids=["self", "big to small"])
def test_student_learns_and_teacher_does_not_change(big):
    """Neither weights nor statistics of the teacher move; all used variables of the student do."""
    teacher = sharp(tiny.network(make_encoder=tiny.resnet if big else tiny.encoder, seed=1))
    model = distiller(teacher)
    teacher_before, student_before = tiny.numbers(teacher.variables), tiny.numbers(model.network.variables)
    log_labels = log_softmax(teacher(tiny.batch(0)["views"][:, 0])["logits_sup"].numpy())
    entropy = -np.sum(np.exp(log_labels) * log_labels, axis=1).mean()  # the minimum of the loss
    logs = tiny.fit(model, tiny.dataset(0, 1, num_views=1).repeat(60))
    assert logs[-1]["distillation_loss"] - entropy < 0.1 * (logs[0]["distillation_loss"] - entropy)
    assert logs[-1]["teacher_agreement"] == 1
    assert not tiny.moved(teacher_before, tiny.numbers(teacher.variables))
    head = {variable.path for variable in model.network.projection_head.variables}
    assert tiny.moved(student_before, tiny.numbers(model.network.variables)) == set(student_before) - head
    optimized = {variable.path for variable in model.optimizer.variables}
    assert len(optimized) == 2 + len(model.trained_variables)  # iterations, learning rate, momenta


def test_a_classification_model_can_be_the_teacher():
    network = tiny.network(seed=1)
    model = Distiller(tiny.network(), ClassificationModel(network, tiny.VIEWS), tiny.VIEWS)
    assert model.teacher is network


def test_two_replicas_equal_one(replicas):
    """Even if the labelled rows are all on one of them."""
    tiny.use_float64()
    results = []
    for strategy, train in ((tf.distribute.get_strategy(), tiny.run_eagerly), (replicas(2), tiny.fit)):
        with strategy.scope():
            model = distiller(temperature=0.5, alpha=0.3, decay=1e-3)
        logs = train(model, tiny.dataset(0, 3, num_views=1, unlabelled=[0, 1, 2, 3, 6]))
        results.append((logs, tiny.numbers(model.network.variables)))
    (one_logs, one), (two_logs, two) = results
    for ours, expected in zip(two_logs, one_logs, strict=True):
        assert ours == pytest.approx(expected, rel=1e-6)
    tiny.assert_close(two, one, rtol=1e-9)
