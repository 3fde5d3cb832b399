"""Quality of features without labels: held-out images, RankMe, contrastive accuracy, collapse."""

import csv

import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image

from simclrv2_tf import SimCLR, ViewSettings, metrics, modes
from simclrv2_tf.data.input import TrainingInput, evaluation_input, make_views
from simclrv2_tf.data.sources import ArraySource
from simclrv2_tf.modes.quality import FeatureQuality, split_held_out
from simclrv2_tf.settings.config import Config

VIEWS = ViewSettings(8, color_jitter_strength=0.5)
CONFIG = Config(image_size=8, eval_batch_size=16)


def source(count, labels=None):
    pixels = np.random.default_rng(0).integers(0, 256, [count, 8, 8, 3], np.uint8)
    return ArraySource("noise/train", pixels, labels, ())


def compiled():
    model = SimCLR(tiny.network(classes=0), VIEWS)
    model.compile("sgd")
    return model


class TestQuality:
    def test_equals_the_textbook(self):
        model, images = compiled(), source(20)
        data = TrainingInput(source(40), 10, 2, VIEWS, seed=3)
        quality = FeatureQuality(model, CONFIG, data, images).measure()
        batch = next(iter(evaluation_input(images, 20, 8)))
        features = model(batch["images"])["final_avg_pool"]
        assert quality["rankme"] == pytest.approx(metrics.rankme(features), rel=1e-4)
        hits = []
        for batch in TrainingInput(images, 10, 2, VIEWS, seed=0).batches(0, 2):
            views = make_views(batch, VIEWS)
            a, b = (tf.math.l2_normalize(model(views[:, v])["proj_head_output"], axis=1) for v in (0, 1))
            hits += list(np.argmax(a @ tf.transpose(b), axis=1) == np.arange(10))
        assert quality["val_contrastive_accuracy"] == np.mean(hits)

    def test_replicas_give_the_same(self, replicas):
        data = TrainingInput(source(40), 8, 2, VIEWS, seed=3)
        expected = FeatureQuality(compiled(), CONFIG, data, source(21)).measure()
        with replicas(2).scope():
            model = compiled()
        assert FeatureQuality(model, CONFIG, data, source(21)).measure() == pytest.approx(expected, rel=1e-4)

    def test_a_collapsed_network_is_warned_of(self, caplog):
        model = compiled()
        data = TrainingInput(source(40), 8, 2, VIEWS, seed=3)
        FeatureQuality(model, CONFIG, data, source(16)).measure()
        assert not [record for record in caplog.records if record.name.startswith("simclrv2_tf")]
        for variable in model.network.encoder_variables:
            variable.assign(tf.zeros_like(variable))
        quality = FeatureQuality(model, CONFIG, data, source(16)).measure()
        assert quality["rankme"] < 1.01
        (record,) = [record for record in caplog.records if record.name.startswith("simclrv2_tf")]
        assert "collapsed" in record.message and "--learning_rate" in record.message and "\n" not in record.message


class TestHeldOut:
    def test_the_evaluation_split_if_there_is_one(self, tmp_path):
        images = np.zeros([4, 8, 8, 3], np.uint8)
        np.savez(tmp_path / "x.npz", x_train=np.zeros([200, 8, 8, 3], np.uint8), x_test=images)
        train, held_out = split_held_out(Config(dataset=f"npz:{tmp_path}/x.npz"), source(200), None)
        assert train.num_examples == 200 and held_out.num_examples == 4
        labelled = source(3)
        assert split_held_out(CONFIG, train, labelled)[1] is labelled

    @pytest.mark.parametrize("count, held_out", [(99, None), (100, 5), (119, 5), (120, 6), (20_000, 512)])
    def test_else_every_20th_image(self, count, held_out, tmp_path, capsys):
        np.savez(tmp_path / "x.npz", x_train=np.zeros([count, 8, 8, 3], np.uint8))
        images = source(count, labels=np.arange(count))
        train, rest = split_held_out(Config(dataset=f"npz:{tmp_path}/x.npz"), images, None)
        if held_out is None:
            assert train is images and rest is None and not capsys.readouterr().out
            return
        assert (train.num_examples, rest.num_examples) == (count - held_out, held_out)
        assert list(rest.labels[:3]) == [19, 39, 59] and not set(rest.labels) & set(train.labels)
        assert f"{held_out} of {count:,} images are held out" in capsys.readouterr().out


def test_pretraining_without_labels_reports_its_quality(tmp_path):
    for index in range(100):
        pixels = np.random.default_rng(index).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    run = {"mode": "pretrain", "dataset": f"folder:{tmp_path}", "recipe": "official", "resnet_depth": 10}
    run |= {"width_multiplier": 0.0625, "image_size": 8, "train_batch_size": 8, "train_steps": 2, "report": False}
    result = modes.run(run | {"checkpoint_steps": 1, "model_dir": str(tmp_path / "run")})
    assert 1 <= result["rankme"] <= 5 and round(5 * result["val_contrastive_accuracy"], 6) in range(6)  # of five images
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["rankme"]) == pytest.approx(result["rankme"], rel=1e-5)
