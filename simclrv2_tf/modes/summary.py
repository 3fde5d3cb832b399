"""What a network costs, by part: of the settings, or of a run."""

from simclrv2_tf.models import Summary
from simclrv2_tf.modes.costs import format_bytes, network_cost, similarities
from simclrv2_tf.modes.resolve import Result, Strategy
from simclrv2_tf.runs.checkpoints import read_run_config
from simclrv2_tf.settings.config import Config

IMAGENET_CLASSES = 1000


def summary(config: Config, strategy: Strategy) -> Result:
    """Prints parameters, arithmetic and activations; opens no data, allocates no network, writes nothing.

    Without ``--checkpoint`` the run is pretraining, with a classifier for ImageNet's classes beside it.
    """
    if config.checkpoint:
        _, resolved = read_run_config(config.checkpoint)
        classes, tap = resolved["num_classes"], resolved["head_input"]
    else:
        classes, tap = IMAGENET_CLASSES, 0

    found = network_cost(config, classes, tap)
    print(format_summary(found, config, classes))
    total = found.total
    return {"mode": "summary", "parameters": total.parameters, "multiply_adds": total.multiply_adds}


def format_summary(found: Summary, config: Config, classes: int) -> str:
    """The table of a network's parts, and what a training step of a run keeps."""
    batch, views = config.train_batch_size, 2 if config.mode == "pretrain" else 1
    ratios = {"SK": config.sk_ratio, "SE": config.se_ratio}
    kinds = "".join(f", {name} {ratio:g}" for name, ratio in ratios.items() if ratio)
    lines = [
        f"ResNet-{config.resnet_depth} x{config.width_multiplier:g}{kinds}, {config.image_size} px, "
        f"{config.stem_kind} stem, {classes:,} classes; {config.mode}, {batch:,} x {views} views a step, {found.dtype}",
        "",
        f"{'':16}{'trained':>14}{'with statistics':>17}{'GFLOPs a view':>15}{'activations a step':>20}",
    ]

    for name, cost in (found.parts | {"encoder alone": found.encoder, "total": found.total}).items():
        kept = format_bytes(cost.activations * batch * views * found.itemsize)
        gflops = f"{cost.multiply_adds / 1e9:,.3g}"
        lines.append(f"{name:16}{cost.trained:14,}{cost.parameters:17,}{gflops:>15}{kept:>20}")
    lines += [
        "",
        "With statistics: batch norm's moving means and variances too, as in the paper's Table 1.",
        "GFLOPs: billions of multiply-adds in convolutions and dense layers, forward; training takes thrice as many.",
        "Activations: what the backward pass reads of the forward pass, each number once, over all replicas.",
    ]
    if config.mode == "pretrain":
        rows, columns, held = similarities(config)
        lines.append(
            f"NT-Xent: {rows:,} x {columns:,} similarities, {held:,} rows at a time (--loss_tile): "
            f"{format_bytes(4 * held * columns)} in float32."
        )
    return "\n".join(lines)
