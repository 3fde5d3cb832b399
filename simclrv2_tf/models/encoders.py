"""Builds encoders and teachers: our ResNet, or what ``pretrained.py`` loads, adapted to images in [0, 1]."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from simclrv2_tf.data.classes import numbered_classes
from simclrv2_tf.errors import SettingError
from simclrv2_tf.models.batch_norm import BatchNormSettings
from simclrv2_tf.models.input_range import INPUT_RANGES, InputRange
from simclrv2_tf.models.network import Network
from simclrv2_tf.models.pretrained import (
    USE_FEATURES,
    LoadedModel,
    explained_load_errors,
    fixed_image_size,
    image_shape,
    load_model,
)
from simclrv2_tf.models.resnet import ResNet
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.plugins import is_file, is_function

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
        config.conv_init,
        name="encoder",
    )


def build_encoder(config: Config, batch_norm: BatchNormSettings, pretrained: bool = True) -> keras.Model:
    """Builds the encoder of ``--encoder``, from images ``[n, size, size, 3]`` in [0, 1] to features ``[n, d]``.

    A function ``package.module:function`` is called with ``image_size`` and returns such a model, or one with a
    rescaling layer. For other models images are converted, see ``InputRange`` and ``--input_range``.

    Args:
        config: the settings.
        batch_norm: of our ResNet.
        pretrained: load the model's own weights; False if a checkpoint is loaded next.

    Raises:
        SettingError: if the model cannot be loaded, does not fit the settings, or cannot be trained as they ask.
    """
    if config.encoder == "resnet":
        starts = config.mode in ("pretrain", "supervised") and not config.checkpoint  # in distill it is the teacher's
        if starts and config.input_range not in ("auto", "0..1"):
            raise SettingError(f"--input_range={config.input_range}: --encoder=resnet takes 0..1")
        return build_resnet(config, batch_norm)
    if config.remat:
        raise SettingError("--remat=true: works with --encoder=resnet only")
    loaded = load_model("encoder", config.encoder, config, pretrained and not config.checkpoint)
    encoder = _adapt(loaded, config)
    trains = config.mode in ("pretrain", "supervised", "distill") or (
        config.mode == "finetune" and config.fine_tune_after_block < 4
    )
    if trains and encoder.built and not encoder.trainable_variables:
        raise SettingError(
            f"--encoder={config.encoder}: has no trainable weights; use --mode=linear_eval, or a .keras file with "
            "trainable layers"
        )
    return encoder


def load_teacher(config: Config) -> tuple[keras.Model, tuple[str, ...]]:
    """Loads a ``--teacher`` that is a ``.keras`` file or a SavedModel.

    Returns:
        A model from images ``[n, size, size, 3]`` in [0, 1] to a dict with ``logits_sup [n, classes]``, and the names
        of the classes: numbers if the file has no names. Probabilities are converted to logits.

    Raises:
        SettingError: if it cannot be loaded, does not fit the settings or has no logits.
    """
    reference = f"--teacher={config.teacher}"
    loaded = load_model("teacher", config.teacher, config)
    images, outputs = _connect(loaded, reference, config)
    logits = _pick(outputs, ("logits_sup", "logits"), reference)
    if len(logits.shape) != 2 or (logits.shape[1] or 0) < 2:
        raise SettingError(f"{reference}: its outputs must be logits [n, classes], not {tuple(logits.shape)}")
    size = config.image_size
    values = np.asarray(
        keras.Model(images, logits)(np.random.default_rng(0).random((2, size, size, 3)), training=False)
    )
    notes = (*loaded.notes, f"images in {_range_of(loaded, reference, config)}")
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-2):
        notes = (*notes, "logarithms of its probabilities")
        logits = keras.ops.log(keras.ops.maximum(logits, 1e-7))
    names = loaded.class_names or numbered_classes(logits.shape[1])
    if len(names) != logits.shape[1]:
        raise SettingError(f"{reference}: has {logits.shape[1]} outputs but {len(names)} class names")
    model = keras.Model(images, {"logits_sup": logits}, name="teacher")
    model.num_classes, model.notes = len(names), notes
    return model, names


def implied_settings(mode: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that follow from an encoder or a teacher that does not come from a run.

    These are the image size, if the model takes one size only; and in modes that start from features no projection
    head, because there is no pretrained one.

    Raises:
        SettingError: if the model cannot be opened.
    """
    encoder, teacher = flags.get("encoder", "resnet"), flags.get("teacher", "")
    settings: dict[str, Any] = {}
    if mode == "distill" and is_file(teacher):
        return settings if "image_size" in flags else fixed_image_size("teacher", teacher)
    if encoder != "resnet" and not flags.get("checkpoint") and mode != "distill":
        settings = {} if "image_size" in flags else fixed_image_size("encoder", encoder)
        if mode in USE_FEATURES:
            settings |= {"proj_head_mode": "none", "ft_proj_selector": 0}
    return settings


def describe_encoder(config: Config, encoder: keras.Model | None = None) -> str:
    """Returns a short description, such as ``ResNet-50 x2, SK 0.0625``; of other models, with how they are used."""
    if config.encoder != "resnet":
        notes = getattr(encoder, "notes", ())
        return config.encoder + (f" ({', '.join(notes)})" if notes else "")
    ratios = {"SK": config.sk_ratio, "SE": config.se_ratio}
    kinds = "".join(f", {name} {ratio:g}" for name, ratio in ratios.items() if ratio)
    return f"ResNet-{config.resnet_depth} x{config.width_multiplier:g}{kinds}"


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


def _adapt(loaded: LoadedModel, config: Config) -> keras.Model:
    """Returns an encoder that takes images in [0, 1] and returns pooled features; the model itself if it is one."""
    reference, model = f"--encoder={config.encoder}", loaded.model
    if isinstance(model, Network):
        loaded = dataclasses.replace(loaded, model=(model := model.encoder))
    values = _range_of(loaded, reference, config)
    if is_function(config.encoder) and values == "0..1":
        return model
    if getattr(model, "layers", ()) and getattr(model.layers[-1], "activation", None) is keras.activations.softmax:
        raise SettingError(f"{reference}: returns probabilities, not features; save it without its softmax layer")
    images, outputs = _connect(loaded, reference, config)
    features, pooling = _pool(_pick(outputs, ("final_avg_pool", "features"), reference), model, reference, config)
    if isinstance(model, ResNet):  # has endpoints, and parts to freeze
        return model
    encoder = keras.Model(images, features, name="encoder")
    encoder.notes = (*loaded.notes, f"images in {values}", *pooling)
    return encoder


def _connect(loaded: LoadedModel, reference: str, config: Config) -> tuple[keras.KerasTensor, Any]:
    """Returns images ``[n, size, size, 3]`` in [0, 1] and the outputs of the model for them."""
    height, width, is_channels_first = image_shape(loaded.model, reference)
    size = config.image_size
    if not {height, width} <= {None, size}:
        raise SettingError(f"--image_size={size}: {reference} takes {height} x {width} px; pass that size")
    images = keras.Input((size, size, 3), name="images")
    inputs = (loaded.converter or InputRange(_range_of(loaded, reference, config)))(images)
    if is_channels_first:
        inputs = keras.layers.Permute((3, 1, 2))(inputs)
    names = getattr(loaded.model, "input", None)
    with explained_load_errors(reference):
        return images, loaded.model({name: inputs for name in names} if isinstance(names, dict) else inputs)


def _range_of(loaded: LoadedModel, reference: str, config: Config) -> str:
    """Returns the input range of a model: its own if it is known, else that of ``--input_range``."""
    known = "the values of its image converter" if loaded.converter else loaded.input_range
    if config.input_range == "auto":
        if not known:
            raise SettingError(
                f"{reference}: its input range is unknown; pass --input_range, one of {', '.join(INPUT_RANGES)}"
            )
        return known
    if known not in ("", config.input_range):
        raise SettingError(f"--input_range={config.input_range}: {reference} expects {known}; omit the flag")
    return config.input_range


def _pick(outputs: Any, names: tuple[str, ...], reference: str) -> keras.KerasTensor:
    """Returns the output of one of these names, or the only one."""
    if isinstance(outputs, list | tuple):
        outputs = {str(index): output for index, output in enumerate(outputs)}
    if not isinstance(outputs, dict):
        return outputs
    known = [name for name in names if name in outputs] or (list(outputs) if len(outputs) == 1 else [])
    if not known:
        raise SettingError(f"{reference}: has several outputs ({', '.join(outputs)}), none of them named {names[0]}")
    return outputs[known[0]]


def _pool(
    features: keras.KerasTensor, model: keras.layers.Layer, reference: str, config: Config
) -> tuple[keras.KerasTensor, tuple[str, ...]]:
    """Returns features ``[n, d]`` and a note about the pooling.

    Feature maps are averaged over positions. A transformer with more tokens than patches has a class token, the first
    one, which is returned; the tokens of others are averaged.
    """
    rank, patch = len(features.shape), getattr(model, "patch_size", None)
    if rank == 4:
        order = "channels_first" if image_shape(model)[2] else "channels_last"
        return keras.layers.GlobalAveragePooling2D(data_format=order)(features), ("mean over positions",)
    if rank == 3 and patch is not None:
        num_patches = (config.image_size // int(np.ravel(patch)[0])) ** 2
        if features.shape[1] > num_patches:
            return features[:, 0], ("class token",)
        return keras.layers.GlobalAveragePooling1D()(features), ("mean over tokens",)
    if rank != 2 or features.shape[1] is None:
        raise SettingError(
            f"{reference}: its features must be [n, d], not {tuple(features.shape)}; save it with a pooling layer"
        )
    return features, ()
