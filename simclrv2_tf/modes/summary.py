"""Summary mode: prints the cost of each part of a network, as given by flags or by a run."""

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.distributed.devices import dtype_policy
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.models import Network, Summary, summarize
from simclrv2_tf.models.encoders import describe_encoder
from simclrv2_tf.modes.resolve import Result, Strategy
from simclrv2_tf.modes.setup import build_network, freeze
from simclrv2_tf.runs.checkpoints import read_run_config
from simclrv2_tf.runs.memory import format_bytes
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.plugins import is_file

IMAGENET_CLASSES = 1000
NOTES = """
With statistics: including batch norm's moving means and variances, as in the paper's Table 1.
GFLOPs: billions of multiply-adds in convolutions and matrix products, forward; training takes three times as many.
Activations: what the backward pass reads of the forward pass, each tensor counted once."""


def summary(config: Config, strategy: Strategy) -> Result:
    """Prints parameters, multiply-adds and activations; opens no data, allocates no network, writes nothing.

    Without ``--checkpoint`` the run is pretraining, with a classifier of ImageNet's classes on the side.
    """
    if is_file(config.encoder) and not config.encoder.endswith(".keras"):
        raise SettingError(f"--encoder={config.encoder}: summary cannot look into a SavedModel")
    if config.checkpoint:
        _, resolved = read_run_config(config.checkpoint)
        classes, tap = resolved["num_classes"], resolved["head_input"]
    else:
        classes, tap = IMAGENET_CLASSES, 0

    def make_network() -> Network:
        network = build_network(config, strategy, classes, tap, pretrained=False)
        if config.mode in ("finetune", "linear_eval", "supervised"):
            freeze(ClassificationModel(network, ViewSettings(config.image_size)), config)
        return network

    views = 2 if config.mode == "pretrain" else 1
    costs = summarize(make_network, config.image_size, whole_head=views == 2)
    print(format_summary(costs, config, classes, views))
    return {"mode": "summary", "parameters": costs.total.parameters, "multiply_adds": costs.total.multiply_adds}


def format_summary(costs: Summary, config: Config, classes: int, num_views: int) -> str:
    """Formats the costs of the parts, and those of a training step, as a table."""
    lines = [
        f"{describe_encoder(config)}, {config.image_size} px, "
        f"{config.stem_kind} stem, {classes:,} classes, {dtype_policy(config)}",
        "",
        f"{'':16}{'trained':>14}{'with statistics':>17}{'GFLOPs per view':>17}{'activations per view':>22}",
    ]
    for name, cost in (costs.parts | {"encoder alone": costs.encoder, "total": costs.total}).items():
        gflops, size = f"{cost.multiply_adds / 1e9:,.3g}", format_bytes(cost.activations)
        lines.append(f"{name:16}{cost.trained:14,}{cost.parameters:17,}{gflops:>17}{size:>22}")
    images = config.train_batch_size * num_views
    lines += [
        NOTES,
        f"A step ({config.mode}, {config.train_batch_size:,} images x {num_views} views, all replicas) keeps "
        f"{format_bytes(images * costs.total.activations)} of activations; with copies and gradients it holds up to "
        f"{format_bytes(images * costs.peak)} at a time.",
    ]
    if num_views == 2:
        columns = images + config.memory_size
        lines.append(
            f"NT-Xent: {images:,} x {columns:,} similarities, {format_bytes(4 * images * columns)} in float32."
        )
    return "\n".join(lines)
