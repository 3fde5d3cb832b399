"""Builds the encoder that the settings name: our ResNet, or any Keras model built by a function of the user."""

import contextlib
import inspect
import logging
from collections.abc import Callable

import keras

from simclrv2_tf.errors import SettingError
from simclrv2_tf.models.batch_norm import BatchNormSettings
from simclrv2_tf.models.resnet import ResNet
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.plugins import load_plugin

log = logging.getLogger(__name__)


def build_resnet(config: Config, batch_norm: BatchNormSettings) -> ResNet:
    """Builds the ResNet that the settings describe."""
    return ResNet(
        config.resnet_depth,
        config.width_multiplier,
        config.sk_ratio,
        config.se_ratio,
        config.stem_kind,
        batch_norm,
        config.remat,
        name="encoder",
    )


ENCODERS: dict[str, Callable[[Config, BatchNormSettings], keras.Model]] = {"resnet": build_resnet}


def build_encoder(config: Config, batch_norm: BatchNormSettings) -> keras.Model:
    """Builds the encoder of ``--encoder``: one of ``ENCODERS``, or ``package.module:function``.

    The function is called with ``image_size`` and returns a Keras model from images ``[n, size, size, 3]`` in [0, 1]
    to features ``[n, d]``.

    Raises:
        SettingError: if there is no such function, or it does not return a Keras model.
    """
    if config.encoder in ENCODERS:
        return ENCODERS[config.encoder](config, batch_norm)
    function = load_plugin("encoder", config.encoder)
    if config.remat:
        raise SettingError("--remat=true: works with --encoder=resnet only")
    try:
        with contextlib.suppress(ValueError):  # some built-in functions have no signature
            inspect.signature(function).bind(image_size=config.image_size)
    except TypeError as error:
        raise SettingError(f"--encoder={config.encoder}: cannot be called with image_size ({error})") from None
    encoder = function(image_size=config.image_size)
    if not isinstance(encoder, keras.Model):
        raise SettingError(f"--encoder={config.encoder}: returned {type(encoder).__name__}, not a Keras model")
    return encoder


def warn_about_local_batch_norm(encoder: keras.Model, config: Config, num_replicas: int) -> None:
    """Warns if Keras's batch norms would use the statistics of each replica although ``--global_bn`` is set."""
    if num_replicas == 1 or not config.global_bn:
        return
    norms = [layer for layer in encoder._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    num_local = sum(not norm.synchronized for norm in norms)
    if num_local:
        log.warning(
            "--encoder=%s: %d BatchNormalization layers use the statistics of one replica each, not of all %d; build "
            "them with synchronized=True, or use simclrv2_tf.BatchNorm (or set --global_bn=false)",
            config.encoder,
            num_local,
            num_replicas,
        )


def describe_encoder(config: Config) -> str:
    """Returns a short description, such as ``ResNet-50 x2, SK 0.0625``."""
    if config.encoder != "resnet":
        return config.encoder
    ratios = {"SK": config.sk_ratio, "SE": config.se_ratio}
    kinds = "".join(f", {name} {ratio:g}" for name, ratio in ratios.items() if ratio)
    return f"ResNet-{config.resnet_depth} x{config.width_multiplier:g}{kinds}"
