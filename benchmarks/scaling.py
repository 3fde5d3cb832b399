"""Predicts step time and traffic of pretraining on many devices; writes the predictions of ``docs/scaling.md``.

    python benchmarks/scaling.py

Nothing is run: the numbers follow from the shapes of the network's layers and the vendors' figures for their devices.
The page states the assumptions, which are the constants below.
"""

import dataclasses
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import tensorflow as tf

from benchmarks.page import write
from simclrv2_tf.models import Network, Summary, summarize
from simclrv2_tf.modes.setup import build_network
from simclrv2_tf.settings.config import Config
from tools.tpu_preflight.preflight import CHIPS, Chip

PASSES = 9  # times that a step moves its activations through memory, see docs/tpu.md
UTILISATION = 0.5  # fraction of the peak rates, of arithmetic and memory, that a step reaches
LATENCY = 5e-6  # seconds per message and doubling of the replicas
BATCH, CLASSES = 4096, 1000
H100 = Chip(80e9, 989e12, 3350e9, 900e9)  # nvidia.com/en-us/data-center/h100, SXM, dense; links: NVLink
NETWORK_OF_A_GPU, GPUS_OF_A_MACHINE = 50e9, 8  # bytes a second and direction, one port of 400 Gb/s to a GPU
NETWORKS = {
    "ResNet-50": dict(resnet_depth=50),
    "ResNet-152 3x SK": dict(resnet_depth=152, width_multiplier=3.0, sk_ratio=0.0625),
}
SYSTEMS = [
    *[("H100", H100, count) for count in (1, 8, 32)],
    *[("v4", CHIPS["v4"], 4**power) for power in range(2, 7)],
    *[("v5e", CHIPS["v5e"], count) for count in (16, 64, 256)],
    *[("v6e", CHIPS["v6e"], count) for count in (16, 64, 256)],
]


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Traffic of a step: bytes that each replica sums, and the number of messages."""

    gradients: int
    batch_norm: int
    gathered: int
    messages: int

    @property
    def total(self) -> int:
        return self.gradients + self.batch_norm + self.gathered


def cost(settings: dict) -> tuple[Summary, int, int]:
    """Cost of a network, with the number of its batch norms and of their channels."""
    config = Config(use_tpu=True, **settings)
    made: list[Network] = []

    def make() -> Network:
        made.append(build_network(config, tf.distribute.get_strategy(), CLASSES))
        return made[0]

    found = summarize(make, config.image_size)
    channels = [variable.shape[0] for variable in made[0].variables if variable.name == "moving_mean"]
    return found, len(channels), sum(channels)


def traffic(found: Summary, layers: int, channels: int, width: int = Config.proj_out_dim) -> Traffic:
    """Of float32: gradients; a batch norm's count, sums and sums of squares, and two sums for its gradient; all views'
    projections, summed as slots, and three numbers an image for their gradient."""
    gathered = 2 * BATCH * width + 3 * BATCH
    return Traffic(4 * found.total.trained, 4 * (4 * channels + layers), 4 * gathered, 2 * layers + 3)


def seconds(found: Summary, chip: Chip, count: int, sent: Traffic, gpu: bool) -> tuple[float, float]:
    """Predicts seconds per step: arithmetic or memory, whichever is longer, and a ring's messages, 2 (R − 1) / R."""
    views = 2 * BATCH / count
    operations = 3 * 2 * found.total.multiply_adds * views
    moved = PASSES * found.total.activations * views
    computing = max(operations / chip.operations, moved / chip.bandwidth) / UTILISATION
    link = NETWORK_OF_A_GPU if gpu and count > GPUS_OF_A_MACHINE else chip.links / 2
    talking = 2 * (count - 1) / count * sent.total / link + sent.messages * LATENCY * math.log2(count)
    return computing, talking


def table(name: str, settings: dict) -> str:
    found, layers, channels = cost(settings)
    sent = traffic(found, layers, channels)
    lines = [
        f"### {name}",
        "",
        f"{found.total.trained / 1e6:,.1f} M trained parameters, {layers} batch norms with {channels:,} channels in "
        f"total. All-reduced per step: gradients {sent.gradients / 1e6:,.1f} MB, batch norm "
        f"{sent.batch_norm / 1e6:,.2f} MB, projections {sent.gathered / 1e6:,.2f} MB, in {sent.messages} messages.",
        "",
        "| devices | images per device | activations per device | sent per device | compute | communication | step "
        "| images/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, chip, count in SYSTEMS:
        computing, talking = seconds(found, chip, count, sent, kind == "H100")
        kept = found.total.activations * 2 * BATCH / count
        step = computing + talking
        over = "" if kept < chip.memory else " (too large)"
        lines.append(
            f"| {count:,} {kind} | {BATCH // count:,} | {kept / 1e9:,.1f} GB{over} "
            f"| {2 * (count - 1) / count * sent.total / 1e6:,.0f} MB | {1e3 * computing:,.1f} ms "
            f"| {1e3 * talking:,.1f} ms | {1e3 * step:,.1f} ms | {BATCH / step:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    write("scaling.md", "predictions", "\n\n".join(table(name, settings) for name, settings in NETWORKS.items()))


if __name__ == "__main__":
    main()
