"""Encoders named by the settings: our ResNet or a function of the user."""

import logging

import keras
import pytest

from simclrv2_tf.errors import SettingError
from simclrv2_tf.models import BatchNormSettings, ResNet
from simclrv2_tf.models.encoders import build_encoder, describe_encoder, warn_about_local_batch_norm
from simclrv2_tf.modes.setup import build_network
from simclrv2_tf.settings.config import Config

SMALL = Config(encoder="plugins:small_encoder", image_size=8)


def test_resnet_has_the_settings_of_the_config():
    config = Config(resnet_depth=50, width_multiplier=0.0625, sk_ratio=0.0625, remat=True)
    encoder = build_encoder(config, BatchNormSettings(momentum=0.8))
    assert isinstance(encoder, ResNet)
    expected = {"depth": 50, "width_multiplier": 0.0625, "sk_ratio": 0.0625, "remat": True}
    assert {name: encoder.settings[name] for name in expected} == expected
    assert encoder.stem.batch_norm.momentum == 0.8
    assert describe_encoder(config) == "ResNet-50 x0.0625, SK 0.0625"


def test_function_of_the_user_gets_the_image_size():
    encoder = build_encoder(SMALL, BatchNormSettings())
    assert encoder.input_shape == (None, 8, 8, 3)
    assert describe_encoder(SMALL) == "plugins:small_encoder"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "plugins:missing"}, "--encoder=plugins:missing: plugins has no missing"),
        ({"encoder": "plugins:not_a_callback"}, "--encoder=plugins:not_a_callback: .*image_size"),
        ({"encoder": "builtins:dict"}, "--encoder=builtins:dict: returned dict, not a Keras model"),
        ({"remat": True}, "--remat=true: works with --encoder=resnet only"),
    ],
)
def test_unusable_encoder_raises(settings, message):
    with pytest.raises(SettingError, match=f"^{message}"):
        build_encoder(SMALL.replace(**settings), BatchNormSettings())


class TestLocalBatchNormWarning:
    """Keras's BatchNormalization uses the batch of one replica unless it is synchronized."""

    @staticmethod
    def warnings(caplog, encoder=None, config=SMALL, num_replicas=2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            warn_about_local_batch_norm(encoder or build_encoder(SMALL, BatchNormSettings()), config, num_replicas)
        return caplog.messages

    def test_names_the_encoder_the_layers_and_the_fix(self, caplog):
        (message,) = self.warnings(caplog)
        assert message.startswith("--encoder=plugins:small_encoder: 2 BatchNormalization layers use the statistics of")
        assert "synchronized=True" in message and "--global_bn=false" in message

    def test_is_given_when_the_network_of_a_run_is_built(self, caplog, replicas):
        with (strategy := replicas(2)).scope():
            build_network(SMALL, strategy, num_classes=0)
        assert any("BatchNormalization layers use the statistics of" in message for message in caplog.messages)

    def test_is_silent_if_nothing_is_wrong(self, caplog):
        assert not self.warnings(caplog, num_replicas=1)
        assert not self.warnings(caplog, config=SMALL.replace(global_bn=False))
        assert not self.warnings(caplog, encoder=ResNet(10, 0.0625))
        layers = [keras.Input((8, 8, 3)), keras.layers.BatchNormalization(synchronized=True)]
        assert not self.warnings(caplog, encoder=keras.Sequential(layers))
