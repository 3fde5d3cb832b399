"""Builds the network that settings describe, and loads the network of a trained run."""

import os
from typing import TypeAlias

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.distributed.devices import dtype_policy, use_xla
from simclrv2_tf.errors import SettingError
from simclrv2_tf.models import BatchNormSettings, Network, ProjectionHead
from simclrv2_tf.models.encoders import build_encoder, describe_encoder, warn_about_local_batch_norm
from simclrv2_tf.models.encoders import load_teacher as load_model_file
from simclrv2_tf.runs.checkpoints import load_network, read_run_config
from simclrv2_tf.runs.trained import TrainedModel
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.merge import resolve
from simclrv2_tf.settings.plugins import is_file

Strategy: TypeAlias = tf.distribute.Strategy


def build_network(
    config: Config,
    strategy: Strategy,
    num_classes: int,
    head_input: int = 0,
    *,
    seeded: bool = True,
    pretrained: bool = True,
) -> Network:
    """Builds the network that the settings describe. Call it in the strategy's scope.

    Args:
        config: the settings; their dtype policy becomes Keras's.
        strategy: its replicas.
        num_classes: 0 for no classifier.
        head_input: layer of the projection head that the classifier reads.
        seeded: seed the program with the seed of the settings, which determines the initial weights.
        pretrained: load the encoder's own weights; False if a checkpoint is loaded next.
    """
    keras.config.set_dtype_policy(dtype_policy(config))
    if seeded:
        keras.utils.set_random_seed(config.seed)
    batch_norm = BatchNormSettings(
        momentum=config.batch_norm_decay, synchronized=config.global_bn, fused=not use_xla(config, strategy)
    )
    encoder = build_encoder(config, batch_norm, pretrained)
    warn_about_local_batch_norm(encoder, config, strategy.num_replicas_in_sync)
    head = ProjectionHead(
        config.proj_head_mode, config.num_proj_layers, config.proj_out_dim, batch_norm, name="projection_head"
    )
    network = Network(encoder, head, num_classes, head_input, config.zero_init_logits_layer, name="network")
    size = None if config.encoder == "resnet" else config.image_size
    try:
        network.build((None, size, size, 3))
    except ValueError as error:
        raise SettingError(f"--encoder={config.encoder}: {error}") from None
    return network


def load_model(config: Config, views: ViewSettings, strategy: Strategy) -> tuple[TrainedModel, str]:
    """Builds the network of ``--checkpoint`` with its weights; returns it and the path of the checkpoint.

    Without ``--checkpoint`` it is the ``--encoder`` without heads, and its description replaces the path.
    """
    if not config.checkpoint:
        with strategy.scope():
            network = build_network(config, strategy, num_classes=0)
            model = TrainedModel(network, views, (), config.eval_resize, config.image_bits)
        return model, describe_encoder(config, network.encoder)
    _, resolved = read_run_config(config.checkpoint)
    num_classes = resolved["num_classes"]
    with strategy.scope():
        network = build_network(config, strategy, num_classes, resolved["head_input"], seeded=False, pretrained=False)
        path = load_network(network, config.checkpoint, with_classifier=bool(num_classes))
        names = tuple(resolved["class_names"])
        return TrainedModel(network, views, names, config.eval_resize, config.image_bits), path


def teacher_classes(config: Config) -> tuple[str, ...]:
    """Returns the names of the classes of ``--teacher``, a run or a model file.

    Raises:
        SettingError: if it cannot be read, or has no classifier.
    """
    if is_file(config.teacher):
        return load_model_file(config)[1]
    names = tuple(read_run_config(config.teacher, "teacher")[1]["class_names"])
    if not names:
        raise SettingError(f"--teacher={config.teacher}: has no classifier; give a fine-tuned or supervised run")
    return names


def load_teacher(config: Config, strategy: Strategy) -> keras.Model:
    """Loads the network of ``--teacher``, a run or a model file. Call it in the strategy's scope.

    Returns:
        A model from images to a dict with ``logits_sup``.

    Raises:
        SettingError: if it cannot be loaded, or takes images of another size.
    """
    if is_file(config.teacher):
        keras.config.set_dtype_policy(dtype_policy(config))
        teacher, names = load_model_file(config)
        print(f"Teacher {config.teacher}: {', '.join((f'{len(names)} classes', *teacher.notes))}.")
        return teacher
    teacher_config, resolved = read_run_config(config.teacher, "teacher")
    size = teacher_config.image_size
    if teacher_config.encoder != "resnet" and size != config.image_size:
        raise SettingError(f"--image_size={config.image_size}: the teacher's encoder takes {size} px; pass that size")
    network = build_network(teacher_config, strategy, resolved["num_classes"], resolved["head_input"], pretrained=False)
    load_network(network, config.teacher, with_classifier=True, flag="teacher")
    return network


def load_run(checkpoint: str | os.PathLike[str], *, trust_run_code: bool = False) -> TrainedModel:
    """Loads the network of a run, to predict images in Python or to use it as a Keras model.

    >>> model = load_run("runs/birds-ft")
    >>> names, probabilities = model.predict_images(["photos/a.jpg", "photos/b.jpg"])
    >>> probabilities.shape == (2, len(model.class_names)) and model.features(["photos/a.jpg"]).shape == (1, 32)
    True

    Args:
        checkpoint: a model directory (its newest checkpoint is loaded) or one checkpoint, ``…/step-1250``.
        trust_run_code: import the encoder function that the run's ``config.json`` names, if it names one.

    Returns:
        A float32 model under the current ``tf.distribute`` strategy. See `TrainedModel` for its methods; called with
        float images ``[n, h, w, 3]`` in [0, 1] it returns the network's endpoints.

    Raises:
        ValueError: if there is no such run, it is damaged, or its encoder's code is not trusted.
    """
    path = os.fspath(checkpoint).rstrip("/")
    flags = {"checkpoint": path, "trust_run_code": trust_run_code, "mixed_precision": "float32", "remat": False}
    config = resolve(flags | {"jit_compile": "false"}, "export", read_run_config(path, checks_network=True)[0])
    policy = keras.config.dtype_policy()
    try:
        views = ViewSettings.crop_and_flip(config.image_size)
        return load_model(config, views, tf.distribute.get_strategy())[0]
    finally:
        keras.config.set_dtype_policy(policy)
