"""Networks of runs: builds the one that settings describe, and loads that of a trained run."""

import os

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.distributed.devices import dtype_policy, use_xla
from simclrv2_tf.errors import SettingError
from simclrv2_tf.models import BatchNormSettings, Network, ProjectionHead
from simclrv2_tf.models.encoders import build_encoder, warn_about_local_batch_norm
from simclrv2_tf.runs.checkpoints import load_network, read_run_config
from simclrv2_tf.runs.trained import TrainedModel
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.merge import resolve

Strategy = tf.distribute.Strategy


def build_network(
    config: Config, strategy: Strategy, num_classes: int, head_input: int = 0, *, seeded: bool = True
) -> Network:
    """Builds the network that the settings describe. Call it in the strategy's scope.

    Args:
        config: the settings; their dtype policy becomes Keras's.
        strategy: its replicas.
        num_classes: 0 for no classifier.
        head_input: layer of the projection head that the classifier reads.
        seeded: draw the initial weights from the seed of the settings, which becomes that of the program.
    """
    keras.config.set_dtype_policy(dtype_policy(config))
    if seeded:
        keras.utils.set_random_seed(config.seed)
    batch_norm = BatchNormSettings(
        momentum=config.batch_norm_decay, synchronized=config.global_bn, fused=not use_xla(config, strategy)
    )
    encoder = build_encoder(config, batch_norm)
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
    """Builds the network of ``--checkpoint`` with its weights; returns it and the path of the checkpoint."""
    _, resolved = read_run_config(config.checkpoint)
    num_classes = resolved["num_classes"]
    with strategy.scope():
        network = build_network(config, strategy, num_classes, resolved["head_input"], seeded=False)
        path = load_network(network, config.checkpoint, with_classifier=bool(num_classes))
        names = tuple(resolved["class_names"])
        return TrainedModel(network, views, names, config.eval_resize, config.image_bits), path


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
    config = resolve(flags | {"jit_compile": "false"}, "export", read_run_config(path)[0])
    policy = keras.config.dtype_policy()
    try:
        views = ViewSettings.crop_and_flip(config.image_size)
        return load_model(config, views, tf.distribute.get_strategy())[0]
    finally:
        keras.config.set_dtype_policy(policy)
