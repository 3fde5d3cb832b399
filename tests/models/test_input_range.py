"""Input ranges: values of the conversion, and what encoders with layers of their own expect."""

import keras
import numpy as np
import pytest

from simclrv2_tf import Network, ProjectionHead, SimCLR, ViewSettings
from simclrv2_tf.models.input_range import InputRange

IMAGES = np.random.default_rng(0).random((2, 3, 3, 3)).astype("float32")


class TestInputRange:
    @pytest.mark.parametrize(("name", "mode"), [("-1..1", "tf"), ("imagenet", "torch"), ("caffe", "caffe")])
    def test_values_equal_those_of_keras(self, name, mode):
        expected = keras.applications.imagenet_utils.preprocess_input(255 * IMAGES, mode=mode)
        np.testing.assert_allclose(InputRange(name)(IMAGES), expected, rtol=1e-5, atol=2e-5)

    @pytest.mark.parametrize(("name", "factor"), [("0..1", 1), ("0..255", 255)])
    def test_values_from_zero(self, name, factor):
        np.testing.assert_array_equal(InputRange(name)(IMAGES), factor * IMAGES)

    def test_is_part_of_a_saved_model(self, tmp_path):
        model = keras.Sequential([keras.Input((3, 3, 3)), InputRange("imagenet")])
        model.save(tmp_path / "m.keras")
        np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "m.keras")(IMAGES), model(IMAGES))

    def test_unknown_range_is_refused(self):
        with pytest.raises(ValueError, match=r'must be one of 0\.\.1, .*, not "0-1"'):
            InputRange("0-1")


def application(family: str) -> keras.Model:
    """Builds a model of ``keras.applications`` with random weights that rescales images itself."""
    model = getattr(keras.applications, family)
    return model(include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3))


class TestEncodersThatRescale:
    @pytest.mark.parametrize("family", ["EfficientNetB0", "MobileNetV3Small", "ConvNeXtTiny"])
    def test_receives_the_values_that_it_expects(self, family):
        encoder = application(family)
        images = np.random.default_rng(0).random((2, 32, 32, 3)).astype("float32")
        with pytest.raises(ValueError, match=r'input_range="0\.\.1": .* expects "0\.\.255"; pass input_range'):
            Network(encoder)
        network = Network(encoder, ProjectionHead("linear", out_dim=4), input_range="0..255")
        expected, wrong = encoder(255 * images), encoder(images)
        scale = np.abs(expected).max()  # random weights make the features small
        features = network(images)["final_avg_pool"] / scale
        np.testing.assert_allclose(features, expected / scale, rtol=0, atol=1e-4)
        assert np.abs(features - wrong / scale).max() > 0.01

    def test_simclr_takes_the_range_and_restores_it(self, tmp_path):
        """A Normalization layer with ImageNet's mean in [0, 1] expects [0, 1]."""
        norm = keras.layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.05] * 3)
        layers = [norm, keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
        encoder = keras.Sequential([keras.Input((8, 8, 3)), *layers], name="own")
        with pytest.raises(ValueError, match=r'input_range="imagenet": own rescales .* expects "0\.\.1"'):
            SimCLR(encoder, ViewSettings(8), input_range="imagenet")
        assert SimCLR(encoder, ViewSettings(8)).network.input_range == "0..1"
        plain = keras.Sequential([keras.Input((8, 8, 3)), *layers[1:]])
        simclr = SimCLR(plain, ViewSettings(8), input_range="-1..1")
        simclr.save(tmp_path / "simclr.keras")
        images = np.random.default_rng(0).random((2, 8, 8, 3)).astype("float32")
        features = keras.saving.load_model(tmp_path / "simclr.keras")(images)["final_avg_pool"]
        np.testing.assert_allclose(features, plain(2 * images - 1), rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match=r'input_range="imagenet": .* pass it to Network'):
            SimCLR(simclr.network, ViewSettings(8), input_range="imagenet")
