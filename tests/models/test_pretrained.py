"""Encoders and teachers from Keras, KerasHub and files: the values that they receive, and what is refused."""

import sys

import foreign_models
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf import ClassificationModel, Network, SimCLR, modes
from simclrv2_tf.errors import SettingError
from simclrv2_tf.models import BatchNormSettings, ResNet
from simclrv2_tf.models.encoders import build_encoder, describe_encoder, implied_settings, load_teacher
from simclrv2_tf.runs.networks import build_network
from simclrv2_tf.runs.saved_model import save_saved_model
from simclrv2_tf.runs.trained import TrainedModel
from simclrv2_tf.settings.config import Config

SIZE, IMAGES = foreign_models.SIZE, foreign_models.images()
LINEAR = {"mode": "linear_eval"}


def build(encoder: str, **settings) -> tuple[keras.Model, Config]:
    """Builds an encoder as a run does; returns it and its config."""
    flags = LINEAR | {"encoder": encoder} | settings
    config = Config(**implied_settings(flags["mode"], flags) | flags)
    return build_encoder(config, BatchNormSettings()), config


def teacher(path: str, **settings) -> tuple[keras.Model, tuple[str, ...]]:
    flags = {"mode": "distill", "teacher": path} | settings
    return load_teacher(Config(**implied_settings("distill", flags) | flags))


def assert_features(encoder: keras.Model, expected: np.ndarray, images: np.ndarray = IMAGES) -> None:
    np.testing.assert_allclose(encoder(images), expected, rtol=1e-4, atol=1e-5)


class TestKerasHub:
    @pytest.fixture(scope="class", params=[2, 3], ids=["DINOv2", "DINOv3"])
    def preset(self, request, tmp_path_factory):
        path = tmp_path_factory.mktemp("presets") / "dino"
        return f"keras_hub:{path}", foreign_models.save_dino(path, request.param)

    def test_dino_receives_normalized_images_and_returns_its_class_token(self, preset):
        name, backbone = preset
        encoder, config = build(name)
        normalized = (IMAGES - foreign_models.MEAN) / foreign_models.STD
        assert_features(encoder, backbone(dict.fromkeys(backbone.input, normalized))[:, 0])
        assert config.image_size == SIZE and (config.proj_head_mode, config.ft_proj_selector) == ("none", 0)
        assert describe_encoder(config, encoder) == f"{name} (images in imagenet, class token)"

    def test_another_size_interpolates_its_positions(self, preset):
        encoder, _ = build(preset[0], image_size=12)
        assert encoder(foreign_models.images(2, 12)).shape == (2, 8)

    def test_weights_of_a_checkpoint_replace_those_of_the_preset(self, preset):
        """The preset's own weights are not loaded."""
        name, backbone = preset
        config = Config(encoder=name, image_size=SIZE, **LINEAR)
        encoder = build_encoder(config, BatchNormSettings(), pretrained=False)
        kernels = [
            next(v for v in model.weights if v.path.endswith("projection/kernel")) for model in (encoder, backbone)
        ]
        assert not np.array_equal(*kernels)

    def test_a_preset_without_converter_needs_the_input_range(self, tmp_path):
        backbone = foreign_models.save_dino(tmp_path / "bare", has_converter=False)
        name = f"keras_hub:{tmp_path / 'bare'}"
        with pytest.raises(
            SettingError, match=rf"^--encoder={name}: its input range is unknown; pass --input_range, one of 0\.\.1, "
        ):
            build(name)
        assert_features(build(name, input_range="-1..1")[0], backbone({"images": 2 * IMAGES - 1})[:, 0])

    def test_without_keras_hub_its_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "keras_hub", None)
        with pytest.raises(SettingError, match=r'^--encoder=keras_hub:x: needs pip install "simclrv2-tf\[hub\]"'):
            build("keras_hub:x")

    def test_a_missing_preset_is_refused(self, tmp_path):
        with pytest.raises(SettingError, match=r"^--encoder=keras_hub:.*/none: cannot be loaded \(Unknown preset"):
            build(f"keras_hub:{tmp_path}/none")


class TestKerasApplications:
    @pytest.mark.parametrize(
        ("name", "module", "values"),
        [
            ("MobileNetV2", keras.applications.mobilenet_v2, "-1..1"),
            ("MobileNetV3Small", keras.applications.mobilenet_v3, "0..255"),
            pytest.param("ResNet50", keras.applications.resnet, "caffe", marks=pytest.mark.slow),
            pytest.param("DenseNet121", keras.applications.densenet, "imagenet", marks=pytest.mark.slow),
        ],
    )
    def test_images_are_preprocessed_as_in_keras(self, name, module, values):
        encoder, config = build(f"keras.applications:{name}:random", image_size=32)
        assert describe_encoder(config, encoder) == f"{config.encoder} (random weights, images in {values})"
        images = foreign_models.images(2, 32)
        base = next(layer for layer in encoder.layers if isinstance(layer, keras.Model))
        assert_features(encoder, base(module.preprocess_input(255 * images)), images)

    def test_unusable_names_and_sizes_are_refused(self):
        for name, message in (
            ("MobileNetV9", "keras.applications has no such model; use one of MobileNetV"),
            ("ResNet50", r"cannot be built for --image_size=16 \(Input size must be at least 32x32"),
            ("MobileNetV2:no.weights.h5", r"cannot be built for --image_size=16 \("),
        ):
            with pytest.raises(SettingError, match=f"^--encoder=keras.applications:{name}: {message}"):
                build(f"keras.applications:{name}", image_size=16, mode="pretrain")


class TestKerasFile:
    @pytest.mark.parametrize(
        ("layer", "values", "factor"),
        [
            (keras.layers.Rescaling(1 / 255), "0..255", 255),
            (keras.layers.Rescaling(1 / 127.5, -1), "0..255", 255),
            (keras.layers.Rescaling(2.0, -1), "0..1", 1),
            (keras.layers.Normalization(mean=[120.0] * 3, variance=[3000.0] * 3), "0..255", 255),
            (keras.layers.Normalization(mean=[0.5] * 3, variance=[0.1] * 3), "0..1", 1),
        ],
    )
    def test_a_model_that_rescales_receives_its_input_range(self, layer, values, factor, tmp_path):
        model = foreign_models.convolutional(layer)
        encoder, config = build(foreign_models.saved(model, tmp_path / "m.keras"))
        assert_features(encoder, model(factor * IMAGES))
        assert describe_encoder(config, encoder).endswith(f"(images in {values})") and config.image_size == SIZE
        with pytest.raises(SettingError, match=rf"^--input_range=imagenet: .*m\.keras expects {values}; omit the flag"):
            build(config.encoder, input_range="imagenet")

    def test_other_models_need_input_range(self, tmp_path):
        model = foreign_models.convolutional(last=())
        path = foreign_models.saved(model, tmp_path / "m.keras")
        with pytest.raises(SettingError, match="its input range is unknown; pass --input_range, one of"):
            build(path)
        encoder, config = build(path, input_range="0..255")
        assert_features(encoder, np.mean(model(255 * IMAGES), axis=(1, 2)))
        assert describe_encoder(config, encoder).endswith("(images in 0..255, mean over positions)")

    def test_a_model_of_this_package_gives_its_encoder(self, tmp_path):
        network = Network(ResNet(10, 0.0625, stem="cifar"))
        model = SimCLR(network, tiny.VIEWS)
        encoder, config = build(foreign_models.saved(model, tmp_path / "m.keras"))
        assert isinstance(encoder, ResNet) and config.image_size == tiny.SIZE
        expected = network(IMAGES, training=False)["final_avg_pool"]
        np.testing.assert_allclose(encoder(IMAGES)["final_avg_pool"], expected, rtol=1e-5)

    def test_frozen_layers_are_reported_and_cannot_be_pretrained(self, tmp_path):
        model = foreign_models.convolutional(keras.layers.Rescaling(1 / 255))
        model.trainable = False
        path = foreign_models.saved(model, tmp_path / "m.keras")
        assert "2 of 2 weights frozen in the file" in describe_encoder(*reversed(build(path)))
        with pytest.raises(SettingError, match="has no trainable weights; use --mode=linear_eval"):
            build(path, mode="pretrain")

    def test_unusable_files_are_refused_in_one_line(self, tmp_path):
        """A lambda is code, which Keras refuses to load."""
        whole = foreign_models.saved(foreign_models.convolutional(), tmp_path / "m.keras")
        with open(whole, "rb") as file:
            (tmp_path / "cut.keras").write_bytes(file.read(300))
        foreign_models.saved(foreign_models.convolutional(keras.layers.Lambda(lambda x: x)), tmp_path / "code.keras")
        foreign_models.saved(foreign_models.classifier("softmax"), tmp_path / "classes.keras")
        gray = keras.Sequential([keras.Input((SIZE, SIZE, 1)), keras.layers.Flatten()])
        foreign_models.saved(gray, tmp_path / "gray.keras")
        for name, message in {
            "none.keras": "there is no such file",
            "cut.keras": "is not a .keras archive, or is damaged",
            "code.keras": r"cannot be loaded \(Requested the deserialization of a `Lambda` layer",
            "classes.keras": "returns probabilities, not features",
            "gray.keras": r"its input must be a batch of RGB images, not \(None, 8, 8, 1\)",
            "none": "must be resnet, keras.applications:NAME, keras_hub:PRESET, a .keras file, a SavedModel",
        }.items():
            with pytest.raises(SettingError, match=f"^--encoder={tmp_path}/{name}: {message}") as caught:
                build(f"{tmp_path}/{name}")
            assert "\n" not in str(caught.value)
        with pytest.raises(SettingError, match=f"^--image_size=16: --encoder={whole} takes 8 x 8 px; pass that size"):
            build(whole, image_size=16, input_range="0..1")
        with pytest.raises(SettingError, match="supervised trains from scratch, but this encoder is trained"):
            build(whole, mode="supervised")


class TestSavedModel:
    def test_it_is_frozen_and_receives_the_requested_input_range(self, tmp_path):
        model = foreign_models.convolutional()
        path = foreign_models.saved(model, tmp_path / "exported")
        encoder, config = build(path, input_range="-1..1")
        assert_features(encoder, model(2 * IMAGES - 1))
        assert config.image_size == SIZE and not encoder.trainable_variables and len(encoder.variables) == 2
        with pytest.raises(SettingError, match="has no trainable weights"):
            build(path, input_range="-1..1", mode="finetune")
        with pytest.raises(SettingError, match=f"^--encoder={path}: summary cannot look into a SavedModel$"):
            modes.run({"mode": "summary", "encoder": path})

    def test_channels_first_and_bytes_are_taken_from_the_signature(self, tmp_path):
        model = foreign_models.convolutional()

        def export(shape: list[int | None], dtype: tf.DType, path: str) -> str:
            def serve(pixels: tf.Tensor) -> tf.Tensor:
                pixels = tf.transpose(pixels, [0, 2, 3, 1]) if shape[1] == 3 else pixels
                return model(tf.cast(pixels, tf.float32))

            module = tf.Module()
            module.variables_of_model = [variable.value for variable in model.variables]
            module.serve = tf.function(serve, input_signature=[tf.TensorSpec(shape, dtype, name="pixels")])
            tf.saved_model.save(module, path, {"serve": module.serve})
            return path

        first = export([None, 3, SIZE, SIZE], tf.float32, f"{tmp_path}/first")
        assert_features(build(first, input_range="0..1")[0], model(IMAGES))
        encoder, config = build(export([None, SIZE, SIZE, 3], tf.uint8, f"{tmp_path}/bytes"))
        assert_features(encoder, model(np.round(255 * IMAGES)))
        assert "images in 0..255" in describe_encoder(config, encoder)

    def test_an_export_of_a_run_needs_no_flags(self, tmp_path):
        network = tiny.network()
        save_saved_model(network, SIZE, tmp_path / "exported", class_names=("a", "b", "c"))
        encoder, _ = build(str(tmp_path / "exported"))
        assert_features(encoder, network(IMAGES, training=False)["final_avg_pool"])

    def test_a_folder_without_usable_signature_is_refused(self, tmp_path):
        tf.saved_model.save(tf.Module(), str(tmp_path))
        with pytest.raises(
            SettingError, match=r"no signature takes a batch of images as its only input \(signatures: none\)"
        ):
            build(str(tmp_path), input_range="0..1")

    @pytest.mark.parametrize("count", [1, 2])
    def test_replicas_share_it(self, count, tmp_path, replicas):
        model = foreign_models.convolutional()
        path = foreign_models.saved(model, tmp_path / "exported")
        config = Config(encoder=path, input_range="0..1", image_size=SIZE, proj_head_mode="none", **LINEAR)
        strategy = replicas(count) if count > 1 else tf.distribute.get_strategy()
        with strategy.scope():
            network = build_network(config, strategy, tiny.CLASSES)
            method = ClassificationModel(network, tiny.VIEWS)
            method.freeze(4)
            tiny.compiled(method, "momentum")
        before = tiny.numbers(network.encoder.variables)
        logs = tiny.fit(method, tiny.dataset(0, 2, num_views=1))
        assert logs[1]["loss"] != logs[0]["loss"] and not tiny.moved(before, tiny.numbers(network.encoder.variables))
        np.testing.assert_allclose(network(IMAGES)["final_avg_pool"], model(IMAGES), rtol=1e-4, atol=1e-6)


class TestTeacher:
    @pytest.mark.parametrize("name", ["teacher.keras", "teacher"])
    def test_logits_are_those_of_the_file(self, name, tmp_path):
        model = foreign_models.classifier()
        path, values = foreign_models.saved(model, tmp_path / name), "auto" if "." in name else "0..255"
        loaded, names = teacher(path, input_range=values, image_size=SIZE)
        np.testing.assert_allclose(loaded(IMAGES)["logits_sup"], model(255 * IMAGES), rtol=1e-4, atol=1e-4)
        assert names == tuple("0123456789")

    def test_probabilities_become_logits(self, tmp_path):
        model = foreign_models.classifier("softmax")
        loaded, _ = teacher(foreign_models.saved(model, tmp_path / "teacher.keras"))
        expected = model(255 * IMAGES)
        np.testing.assert_allclose(tf.nn.softmax(loaded(IMAGES)["logits_sup"]), expected, rtol=1e-4)
        assert tuple(loaded.notes) == ("images in 0..255", "logarithms of its probabilities")

    def test_a_model_of_this_package_knows_its_classes(self, tmp_path):
        names = ("wren", "robin", "crow")
        network = tiny.network()
        expected = network(IMAGES, training=False)["logits_sup"]
        TrainedModel(network, tiny.VIEWS, names).save(tmp_path / "teacher.keras")
        save_saved_model(network, SIZE, tmp_path / "teacher", class_names=names)
        for path in (tmp_path / "teacher.keras", tmp_path / "teacher"):
            loaded, class_names = teacher(str(path))
            assert class_names == names
            np.testing.assert_allclose(loaded(IMAGES)["logits_sup"], expected, rtol=1e-4, atol=1e-5)

    def test_a_model_without_logits_is_refused(self, tmp_path):
        path = foreign_models.saved(foreign_models.convolutional(last=()), tmp_path / "teacher.keras")
        with pytest.raises(SettingError, match=r"its outputs must be logits \[n, classes\], not \(None, 6, 6, 6\)"):
            teacher(path, input_range="0..1")


def test_a_function_that_returns_a_rescaling_model(monkeypatch):
    import plugins

    model = foreign_models.convolutional(keras.layers.Rescaling(1 / 255))
    monkeypatch.setattr(plugins, "small_encoder", lambda image_size: model)
    assert_features(build("plugins:small_encoder", image_size=SIZE)[0], model(255 * IMAGES))


def test_frozen_features_have_no_dropout():
    encoder = foreign_models.convolutional(keras.layers.Dropout(0.5))
    network = Network(encoder, num_classes=3)
    network.build((None, SIZE, SIZE, 3))
    network.freeze_encoder(4)
    np.testing.assert_array_equal(network(IMAGES, training=True)["final_avg_pool"], encoder(IMAGES))
    network.freeze_encoder(-1)
    assert not np.allclose(network(IMAGES, training=True)["final_avg_pool"], encoder(IMAGES))
