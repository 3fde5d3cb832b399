"""Evaluate, predict, validation and compiled metrics of methods: values, replicas, padding, wrong inputs."""

from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
import tiny

from examples.byol import BYOL
from simclrv2_tf import (
    ClassificationModel,
    Distiller,
    Method,
    ProjectionHead,
    SimCLR,
    ViewSettings,
    evaluation_batches,
    view_batches,
)

CROPS = ViewSettings.crop_and_flip(tiny.SIZE)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, tiny.SIZE, tiny.SIZE, 3), "uint8")
LABELS = np.array([0, 1, 2, -1, 0, 1, 2, 0, -1, 1])
DATASET = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
BATCH = 4  # the last batch of ten images is short


def build(kind: type[Method], strategy: tf.distribute.Strategy | None = None, **settings: Any) -> Method:
    with (strategy or tf.distribute.get_strategy()).scope():
        network = tiny.network(tap=0 if kind in (SimCLR, BYOL) else 1)
        arguments = (tiny.network(seed=1),) if kind is Distiller else ()
        options = {SimCLR: {"temperature": 0.5}, Distiller: {"temperature": 0.7, "alpha": 0.25}}.get(kind, {})
        return tiny.compiled(kind(network, *arguments, CROPS, weight_decay=0.1, **options), **settings)


def validation(kind: type[Method]) -> tf.data.Dataset:
    return evaluation_batches(DATASET, BATCH, CROPS, num_views=kind.num_views)


def evaluate(model: Method) -> dict[str, float]:
    return model.evaluate(validation(type(model)), verbose=0, return_dict=True)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    exponentials = np.exp(np.asarray(logits, "float64") / temperature)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def classifier_metrics(logits: np.ndarray, labels: np.ndarray, repeats: int = 1) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over the labelled images."""
    labels = np.tile(labels, repeats)
    probabilities, labels = softmax(logits)[labels >= 0], labels[labels >= 0]
    loss = -np.log(probabilities[np.arange(len(labels)), labels])
    return loss.mean(), np.mean(probabilities.argmax(axis=1) == labels)


def views_of_batches(model: Method) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Returns the first and second views, labels and weights of each batch."""
    batches = [batch | {"views": model.make_views(batch).numpy()} for batch in validation(type(model))]
    return [(b["views"][:, 0], b["views"][:, 1], b["labels"].numpy(), b["weights"].numpy()) for b in batches]


def nt_xent(first: np.ndarray, second: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Loss and hit of each image among its batch, by the formula."""
    rows = np.concatenate([first, second]).astype("float64")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    logits, count = rows @ rows.T / temperature, len(first)
    np.fill_diagonal(logits, -np.inf)
    losses = [-np.log(softmax(logits)[i, (i + count) % (2 * count)]) for i in range(2 * count)]
    hits = logits[:count, count:].argmax(axis=1) == np.arange(count)
    return np.array(losses[:count]) + losses[count:], hits


def settled_weights(kind: type[Method]) -> list[np.ndarray]:
    """Returns weights with moving statistics of the images; with the initial ones all projections are nearly equal."""
    network = build(kind).network
    for _ in range(30):
        network(IMAGES.astype("float32") / 255, training=True, whole_head=True)
    return network.get_weights()


@pytest.fixture(params=[1, 2])
def strategy(request, replicas) -> tf.distribute.Strategy:
    return tf.distribute.get_strategy() if request.param == 1 else replicas(request.param)


class TestEvaluate:
    def test_classifier(self, strategy):
        """Every labelled image counts once, also in the short last batch, and the compiled metrics agree."""
        model = build(ClassificationModel, strategy, metrics=["accuracy"])
        logits = model.network(IMAGES.astype("float32") / 255)["logits_sup"].numpy()
        loss, top1 = classifier_metrics(logits, LABELS)
        expected = {"loss": loss, "top1": top1, "accuracy": top1}
        assert evaluate(model) == pytest.approx(expected, rel=1e-4)
        arrays = model.evaluate(IMAGES, LABELS, batch_size=BATCH, verbose=0, return_dict=True)
        assert arrays == pytest.approx(expected, rel=1e-4)

    def test_distiller(self, strategy):
        model = build(Distiller, strategy)
        images = IMAGES.astype("float32") / 255
        student, teacher = (net(images)["logits_sup"].numpy() for net in (model.network, model.teacher))
        distillation = -np.sum(softmax(teacher, 0.7) * np.log(softmax(student, 0.7)), axis=1)
        supervised = np.where(LABELS >= 0, -np.log(softmax(student)[np.arange(10), LABELS]), 0)
        agreement = np.mean(student.argmax(axis=1) == teacher.argmax(axis=1))
        assert evaluate(model) == pytest.approx(
            {
                "loss": np.mean(0.25 * distillation + 0.75 * supervised),
                "distillation_loss": distillation.mean(),
                "teacher_agreement": agreement,
                "top1": classifier_metrics(student, LABELS)[1],
            },
            rel=1e-4,
        )

    def test_simclr(self, strategy):
        """A view has the same number of negatives in each batch: the last one is padded with images of weight 0."""
        model = build(SimCLR, strategy)
        model.network.set_weights(settled_weights(SimCLR))
        project = lambda views, name: model.network(views, whole_head=True)[name].numpy()  # noqa: E731
        losses, hits, weights, online = [], [], [], []
        for first, second, labels, weight in views_of_batches(model):
            pair = [project(views, "proj_head_output") for views in (first, second)]
            loss, hit = nt_xent(*pair, temperature=0.5)
            losses, hits, weights = [*losses, *loss], [*hits, *hit], [*weights, *weight]
            known = np.where(weight > 0, labels, -1)
            online += [(project(views, "logits_sup"), known) for views in (first, second)]
        assert weights == [1] * 10 + [0] * 2
        online_loss, online_top1 = classifier_metrics(*(np.concatenate(each) for each in zip(*online, strict=True)))
        loss, accuracy = np.average(losses, weights=weights), np.average(hits, weights=weights)
        expected = {"loss": loss, "contrastive_loss": loss, "contrastive_accuracy": accuracy}
        expected |= {"online_loss": online_loss, "online_top1": online_top1}
        actual = evaluate(model)
        assert 0 < actual.pop("contrastive_entropy") <= np.log(BATCH)
        assert actual == pytest.approx(expected, rel=1e-4)

    def test_byol(self, strategy):
        model = build(BYOL, strategy)
        similarities, weights = [], []
        for first, second, _, weight in views_of_batches(model):
            online = [model.predictor(model(views)["proj_head_output"]).numpy() for views in (first, second)]
            target = [model.target.project(model.network, views).numpy() for views in (second, first)]
            unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (*online, *target)]
            similarities.append([np.sum(unit[i] * unit[i + 2], axis=1) for i in range(2)])
            weights += list(weight)
        similarity = np.average(np.mean(np.concatenate(similarities, axis=1), axis=0), weights=weights)
        actual = evaluate(model)
        assert actual["similarity"] == pytest.approx(similarity, rel=1e-4)
        assert actual["loss"] == pytest.approx(4 - 4 * similarity, rel=1e-4)
        assert {"online_loss", "online_top1"} <= actual.keys()

    @pytest.mark.parametrize("kind", [SimCLR, BYOL, ClassificationModel, Distiller])
    def test_changes_nothing_and_repeats(self, kind):
        model = build(kind, run_eagerly=True)
        before = tiny.numbers(model.variables)
        assert evaluate(model) == evaluate(model)
        assert not tiny.moved(before, tiny.numbers(model.variables))

    def test_any_method_is_evaluated_by_its_objective(self):
        """With batch statistics, which do not move."""

        class Agreement(SimCLR):
            train_metrics = ("loss", "agreement")

            def objective(self, outputs: dict, batch: dict) -> tuple[tf.Tensor, dict]:
                loss = tf.reduce_mean(outputs["proj_head_output"] ** 2)
                return loss, {"agreement": loss + 1}

            test_step = Method.test_step

        model = tiny.compiled(Agreement(tiny.network(classes=0), CROPS), run_eagerly=True)
        before = tiny.numbers(model.network.variables)
        losses = []
        for first, second, _, _ in views_of_batches(model):
            with keras.StatelessScope():
                rows = model.network(np.concatenate([first, second]), training=True)["proj_head_output"]
            losses.append(np.mean(rows**2))
        loss = np.average(losses, weights=[4, 4, 2])
        assert evaluate(model) == pytest.approx({"loss": loss, "agreement": loss + 1}, rel=1e-5)
        assert not tiny.moved(before, tiny.numbers(model.network.variables))


class TestPredict:
    @pytest.mark.parametrize("kind", [SimCLR, BYOL, ClassificationModel, Distiller])
    def test_returns_every_image_once_in_order(self, kind, strategy):
        model = build(kind, strategy, steps_per_execution=2)
        outputs = model.predict(evaluation_batches(DATASET, BATCH, CROPS), verbose=0)
        expected = model.network(IMAGES.astype("float32") / 255, whole_head=True)
        names = {"final_avg_pool", "logits_sup"} | ({"proj_head_output"} if kind.num_views == 2 else set())
        assert outputs.keys() == names
        for name, values in outputs.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5)

    def test_takes_arrays_and_has_projections(self):
        model = build(SimCLR)
        outputs = model.predict(IMAGES, batch_size=BATCH, verbose=0)
        expected = model.network(IMAGES.astype("float32") / 255, whole_head=True)["proj_head_output"]
        np.testing.assert_allclose(outputs["proj_head_output"], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(model.predict_on_batch(IMAGES[:4])["logits_sup"], outputs["logits_sup"][:4])

    def test_uses_the_weights_after_training(self):
        model = build(ClassificationModel, run_eagerly=True)
        before = model.predict(IMAGES, verbose=0)["logits_sup"]
        model.train_on_batch(next(iter(view_batches(DATASET, 2, CROPS, num_views=1))))
        assert np.abs(model.predict(IMAGES, verbose=0)["logits_sup"] - before).max() > 0


class TestFit:
    def test_validation_drives_callbacks(self, strategy, tmp_path):
        """Training metrics are means over the epoch; each val_ metric is that of evaluate."""
        model = build(SimCLR, strategy, metrics=["accuracy"])
        recorder = tiny.LogRecorder()
        stop = keras.callbacks.EarlyStopping("val_contrastive_loss", mode="min", patience=0, baseline=-1.0)
        save = keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), "val_loss", save_best_only=True)
        batches = view_batches(DATASET, BATCH, CROPS)
        fit = model.fit(
            batches, validation_data=validation(SimCLR), epochs=3, callbacks=[recorder, stop, save], verbose=0
        )
        assert len(fit.history["loss"]) == 2  # stopped
        for name in ("loss", "contrastive_loss", "online_train_top1"):
            epoch = [logs[name] for logs in recorder.calls[-2:]]
            assert fit.history[name][-1] == pytest.approx(np.mean(epoch), rel=1e-6)
        expected = {f"val_{name}": value for name, value in evaluate(model).items()}
        assert expected.keys() >= {"val_contrastive_accuracy", "val_online_top1", "val_accuracy"}
        assert {name: fit.history[name][-1] for name in expected} == pytest.approx(expected, rel=1e-6)
        loaded = keras.saving.load_model(tmp_path / "best.keras")
        assert evaluate(loaded)["loss"] == pytest.approx(min(fit.history["val_loss"]), rel=1e-6)
        assert "accuracy" in evaluate(loaded)

    def test_metrics_of_compile_are_those_of_the_training_images(self):
        """Also with micro-batches; computed from the logits of the step."""
        labelled = DATASET.map(lambda image, label: (image, tf.maximum(label, 0)))
        for micro_batch in (0, 2):
            model = build(ClassificationModel, metrics=["accuracy"])
            model.micro_batch = micro_batch
            history = model.fit(view_batches(labelled, BATCH, CROPS, num_views=1), verbose=0).history
            assert set(history) == {"loss", "train_top1", "accuracy"}
            assert history["accuracy"][0] == pytest.approx(history["train_top1"][0], rel=1e-5)

    def test_unlabelled_training_images_do_not_count_in_the_metrics_of_compile(self):
        unlabelled = DATASET.map(lambda image, label: (image, tf.minimum(label, 0)))  # 0 or -1
        history = build(SimCLR, metrics=["accuracy"]).fit(view_batches(unlabelled, 10, CROPS), verbose=0).history
        assert history["accuracy"][0] == pytest.approx(history["online_train_top1"][0], rel=1e-5)

    def test_train_and_test_on_batch(self, strategy):
        model = build(SimCLR, strategy)
        batch = next(iter(validation(SimCLR)))
        before = model.test_on_batch(batch, return_dict=True)
        for _ in range(2):
            logs = model.train_on_batch(batch, return_dict=True)
        assert logs.keys() == set(model.train_metrics) and model.optimizer.iterations.numpy() == 2
        after = model.test_on_batch(batch, return_dict=True)
        assert after["contrastive_loss"] != before["contrastive_loss"]

    @pytest.mark.slow
    def test_keras_tuner_searches_by_a_validation_metric(self, tmp_path):
        def build_model(choices: keras_tuner.HyperParameters) -> SimCLR:
            head = ProjectionHead("linear", out_dim=choices.Int("out_dim", 3, 6))
            network = tiny.Network(tiny.encoder(), head)
            model = SimCLR(network, CROPS, temperature=choices.Choice("temperature", [0.1, 0.5]))
            return tiny.compiled(model, rate=choices.Float("rate", 0.01, 0.1))

        objective = keras_tuner.Objective("val_contrastive_accuracy", "max")
        tuner = keras_tuner.RandomSearch(build_model, objective, max_trials=4, seed=0, directory=tmp_path)
        tuner.search(view_batches(DATASET, 5, CROPS), validation_data=validation(SimCLR), verbose=0)
        trials = tuner.oracle.get_best_trials(4)
        scores = [trial.score for trial in trials]
        assert len(scores) == 4 and scores == sorted(scores, reverse=True) and 0 <= scores[-1] <= 1
        (best,) = tuner.get_best_models(1)
        assert evaluate(best)["contrastive_accuracy"] == pytest.approx(scores[0])


class TestWrongInputs:
    @pytest.mark.parametrize(
        "arguments",
        [
            {"x": IMAGES, "y": LABELS},
            {"x": IMAGES},
            {"x": DATASET.batch(4)},
            {"x": DATASET.map(lambda image, label: image).batch(4)},
            {"x": view_batches(DATASET, 4, CROPS, num_views=1)},
            {"x": evaluation_batches(DATASET, 4, CROPS)},
            {"x": view_batches(DATASET, 4, CROPS), "class_weight": {0: 2.0}},
            {"x": view_batches(DATASET, 4, CROPS), "sample_weight": np.ones(10)},
        ],
        ids=["arrays", "images", "dataset", "plain", "one view", "evaluation batches", "class_weight", "sample_weight"],
    )
    def test_fit_names_view_batches(self, arguments):
        with pytest.raises(ValueError, match=r"SimCLR .*view_batches\(dataset, batch_size, views, num_views=2\)"):
            build(SimCLR).fit(**arguments, verbose=0)

    def test_train_on_batch_and_a_wrong_number_of_views(self):
        model = build(ClassificationModel)
        with pytest.raises(ValueError, match=r"view_batches\(.*num_views=1\), not \('uint8 \(10, 8, 8, 3\)',\)"):
            model.train_on_batch(IMAGES)
        with pytest.raises(ValueError, match=r"^y=: ClassificationModel .*view_batches"):
            model.train_on_batch(IMAGES, LABELS)
        with pytest.raises(ValueError, match=r"view_batches\(.*num_views=1\); these have 2"):
            model.fit(view_batches(DATASET, 4, CROPS), verbose=0)

    def test_evaluate_names_evaluation_batches(self):
        with pytest.raises(ValueError, match=r"SimCLR needs .*evaluation_batches, with the same arguments"):
            build(SimCLR).evaluate(validation(ClassificationModel), verbose=0)
        model = build(ClassificationModel)
        with pytest.raises(ValueError, match=r"central crops, not on augmented views; use .*evaluation_batches"):
            model.evaluate(validation(SimCLR), verbose=0)
        rgba = np.zeros((2, tiny.SIZE, tiny.SIZE, 4), "uint8")
        with pytest.raises(ValueError, match=r"not batches of RGB images: .*\(2, 8, 8, 4\).*evaluation_batches"):
            model.predict(rgba, verbose=0)
        with pytest.raises(tf.errors.InvalidArgumentError, match="divide by 255"):
            model.predict(IMAGES.astype("float32"), verbose=0)

    def test_batch_that_replicas_cannot_share(self, replicas):
        with pytest.raises(ValueError, match="a multiple of the 2 replicas"):
            build(SimCLR, replicas(2)).fit(view_batches(DATASET, 5, CROPS), verbose=0)

    def test_compile(self):
        model = SimCLR(tiny.network(classes=0), CROPS)
        with pytest.raises(ValueError, match=r"compile\(loss=…\): SimCLR computes its own loss"):
            model.compile("adam", "mse")
        with pytest.raises(ValueError, match=r"compile\(metrics=…\): SimCLR has no classifier; .*num_classes"):
            model.compile("adam", metrics=["accuracy"])
