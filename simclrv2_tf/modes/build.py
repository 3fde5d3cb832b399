"""From settings to objects: network, views, input, optimizer."""

import atexit
import functools
import pathlib
import tempfile

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.service import services
from simclrv2_tf.data.sources import Source
from simclrv2_tf.distributed.devices import default_steps_per_execution, dtype_policy, is_chief, use_xla
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.base import ReplicatedModel
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.optimizers import build_optimizer
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.methods.simclr import Memory, SimCLR
from simclrv2_tf.models.batch_norm import BatchNormSettings
from simclrv2_tf.models.heads import ProjectionHead
from simclrv2_tf.models.network import Network
from simclrv2_tf.models.resnet import ResNet
from simclrv2_tf.settings.config import Config


def network(config: Config, strategy: tf.distribute.Strategy, num_classes: int, head_input: int = 0) -> Network:
    """The network that the settings describe, built, with seeded initial weights. Call it in the strategy's scope."""
    keras.config.set_dtype_policy(dtype_policy(config))
    keras.utils.set_random_seed(config.seed)
    batch_norm = BatchNormSettings(
        momentum=config.batch_norm_decay, synchronized=config.global_bn, fused=not use_xla(config, strategy)
    )
    encoder = ResNet(
        config.resnet_depth,
        config.width_multiplier,
        config.sk_ratio,
        config.se_ratio,
        config.stem_kind,
        batch_norm,
        config.remat,
        name="encoder",
    )
    head = ProjectionHead(
        config.proj_head_mode, config.num_proj_layers, config.proj_out_dim, batch_norm, name="projection_head"
    )
    made = Network(encoder, head, num_classes, head_input, config.zero_init_logits_layer, name="network")
    made.build((None, None, None, 3))
    return made


def views(config: Config) -> ViewSettings:
    """What happens to a view: all of the augmentation to pretrain, crop and flip to learn from labels or a teacher."""
    pretraining = config.mode == "pretrain"
    return ViewSettings(
        image_size=config.image_size,
        crop_area_min=config.crop_area_min,
        flip=config.use_flip,
        color_jitter_strength=config.color_jitter_strength if pretraining else 0.0,
        blur_probability=0.5 if pretraining and config.use_blur else 0.0,
        resize_method=config.resize_method,
        jpeg_scaling=config.jpeg_scaling,
    )


def training_input(config: Config, source: Source) -> TrainingInput:
    """The batches of a run; SettingError if the data are fewer than a batch, or a data service does not answer."""
    if config.train_batch_size > source.num_examples:
        raise SettingError(
            f"--train_batch_size={config.train_batch_size}: {source.name} has only {source.num_examples} images"
        )
    return TrainingInput(
        source,
        config.train_batch_size,
        num_views=2 if config.mode == "pretrain" else 1,
        settings=views(config),
        seed=config.seed,
        augment_on_host=config.augment_on == "host",
        services=services(config.data_service, source, config.worker_timeout) if config.data_service else (),
    )


def micro_batch(config: Config, strategy: tf.distribute.Strategy) -> int:
    """Images of a replica that pretraining embeds at a time; SettingError unless they divide its batch."""
    images = config.train_batch_size // strategy.num_replicas_in_sync
    if config.grad_cache_micro_batch and images % config.grad_cache_micro_batch:
        raise SettingError(
            f"--grad_cache_micro_batch={config.grad_cache_micro_batch}: does not divide a replica's {images} images"
        )
    return config.grad_cache_micro_batch


def simclr(config: Config, network: Network, micro_batch: int) -> SimCLR:
    """The model that pretrains a network, with the memory if there is to be one. Call it in the strategy's scope."""
    memory = Memory(network, config.memory_size, config.ema_decay) if config.memory_size else None
    return SimCLR(
        network,
        views(config),
        config.temperature,
        config.hidden_norm,
        config.weight_decay,
        memory,
        config.loss_tile,
        micro_batch,
    )


def freeze(model: ClassificationModel, config: Config) -> None:
    """Freezes what the settings say: all but the classifier for linear evaluation."""
    after_block = 4 if config.mode == "linear_eval" else config.fine_tune_after_block
    model.freeze(after_block, keep_head=not config.fine_tune_proj_head)


def compile_model(model: ReplicatedModel, config: Config, strategy: tf.distribute.Strategy, plan: Plan) -> None:
    """Gives the model its optimizer and its way of running. Call it in the strategy's scope."""
    model.compile(
        optimizer=build_optimizer(config.optimizer, plan.schedule, config.momentum, config.weight_decay),
        jit_compile=use_xla(config, strategy),
        steps_per_execution=min(default_steps_per_execution(config), plan.interval_steps),
        skip_bad_steps=config.on_nan == "skip",
    )


def model_dir(config: Config) -> pathlib.Path:
    """Where the run lives."""
    return pathlib.Path(config.run_dir)


@functools.cache
def output_dir(model_dir: pathlib.Path, strategy: tf.distribute.Strategy) -> pathlib.Path:
    """Where this process writes: the model directory.

    Of several workers only the chief writes there. As all run the same program, to meet at the same collectives, the
    others write to a directory of their own, which goes with them.
    """
    if is_chief(strategy):
        return model_dir
    scratch = tempfile.TemporaryDirectory(prefix="simclrv2-worker-")
    atexit.register(scratch.cleanup)
    return pathlib.Path(scratch.name)
