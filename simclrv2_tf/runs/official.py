"""Checkpoints of the official code (google-research/simclr): infers their network and loads its weights.

Names and shapes of the variables determine the network, except which layer of the projection head the classifier
reads, because the hidden layers are as wide as the features.
"""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from simclrv2_tf.data.classes import imagenet_classes
from simclrv2_tf.errors import SettingError, first_line
from simclrv2_tf.models.cost import without_allocation
from simclrv2_tf.models.heads import ProjectionHead
from simclrv2_tf.models.network import Network
from simclrv2_tf.models.official_names import TF2_VALUE, official_names, tf2_names
from simclrv2_tf.models.resnet import BLOCKS_PER_GROUP, GROUPS, ResNet
from simclrv2_tf.runs.checkpoints import find_checkpoint, list_folder, open_checkpoint
from simclrv2_tf.settings.config import check_bounds

log = logging.getLogger(__name__)

Shape = tuple[int, ...]

CLASSIFIER = "head_supervised/linear_layer/dense"
UNTRAINED_HEAD = "a projection head that was never trained, as in supervised runs"
# Variables that do not belong to the network, with patterns of their names.
IGNORED = {
    "the optimizer's state": r".*/(Momentum|LARSOptimizer|Adam|Adam_1|\.OPTIMIZER_SLOT/.*)|beta[12]_power|optimizer/.*",
    "a second copy of the network, a moving average": r"ema_model/.*",
    "counters": rf"(global_step|save_counter)({TF2_VALUE})?|_CHECKPOINTABLE_OBJECT_GRAPH",
}
# The paper fine-tunes on few labels from the head's first layer, otherwise from its input; the published paths name it.
FROM_FIRST_LAYER = ("finetuned_1pct", "finetuned_10pct")


@dataclasses.dataclass(frozen=True)
class OfficialCheckpoint:
    """Content of an official checkpoint.

    Attributes:
        path: without suffix.
        keys: key in the file of each variable of the network, by TF1 name.
        shapes: shapes of these variables, by TF1 name.
        ignored: other keys of the file, by the reason why they are not needed.
        unexplained: keys of unknown meaning.
        step: the official code's ``global_step``.
        settings: network settings of ``Config`` that follow from the variables.
        taps: layers of the head that are as wide as the classifier's input; none without a classifier.
        head_input: the tap that the classifier is assumed to read.
    """

    path: str
    keys: Mapping[str, str]
    shapes: Mapping[str, Shape]
    ignored: Mapping[str, list[str]]
    unexplained: list[str]
    step: int
    settings: Mapping[str, Any]
    taps: list[int]
    head_input: int

    @property
    def num_classes(self) -> int:
        """Number of classes of the classifier; 0 without one."""
        return self.shapes.get(f"{CLASSIFIER}/bias", (0,))[0]

    @property
    def class_names(self) -> tuple[str, ...]:
        """ImageNet's names for 1,000 classes, and for 1,001, of which the first is the background; none for others."""
        names = {len(imagenet_classes()): (), len(imagenet_classes()) + 1: ("background",)}.get(self.num_classes)
        return () if names is None else (*names, *imagenet_classes().values())

    @property
    def eval_resize(self) -> str:
        """Interpolation of its training images: that of the TF2 code if the checkpoint is object-based."""
        return "bicubic" if any(".ATTRIBUTES" in key for key in self.keys.values()) else "tf1"


def read(path: str, head_input: int | None = None) -> OfficialCheckpoint:
    """Infers the content of a checkpoint. The only values it reads are those of the projection head's batch norms.

    Args:
        path: a name-based TF1 checkpoint or an object-based one of the TF2 code, without suffix
            (``…/model.ckpt-250228``), or its directory; also on ``gs://`` and wherever else ``tf.io.gfile`` reads.
        head_input: layer of the projection head that the classifier reads (``ft_proj_selector``), if known.

    Raises:
        SettingError: if it cannot be read, holds no official network, or its classifier does not fit that layer.
    """
    with _explained_read_errors(path):
        # a published directory; its state file may name another place
        indices = [name for name in list_folder(path) if name.endswith(".index")]
        only = f"{path.rstrip('/')}/{indices[0].removesuffix('.index')}" if len(indices) == 1 else ""
        checkpoint_path = only or find_checkpoint(path)
        reader = open_checkpoint(checkpoint_path)
        return _read(path, checkpoint_path, reader, head_input)


@contextlib.contextmanager
def _explained_read_errors(path: str) -> Iterator[None]:
    """Turns errors of reading a checkpoint into a SettingError."""
    try:
        yield
    except (OSError, IndexError, tf.errors.OpError) as error:
        raise SettingError(f"--checkpoint={path}: cannot be read ({first_line(error)})") from None


def _read(path: str, checkpoint_path: str, reader: Any, head_input: int | None) -> OfficialCheckpoint:
    """Like ``read``, for an open checkpoint."""
    in_file = {key: tuple(shape) for key, shape in reader.get_variable_to_shape_map().items()}
    dtypes = reader.get_variable_to_dtype_map()
    is_step = lambda key: key.startswith("global_step") and dtypes[key].is_integer and not in_file[key]  # noqa: E731
    keys, ignored, unexplained = _sort(in_file)
    if other_types := [name for name, key in keys.items() if not dtypes[key].is_floating]:
        raise SettingError(f"--checkpoint={path}: not floating-point numbers: {_abbreviate(other_types)}")
    if not head_input and f"{CLASSIFIER}/bias" in keys and _head_is_untrained(reader, keys):
        ignored[UNTRAINED_HEAD] = [keys.pop(name) for name in list(keys) if name.startswith("head_contrastive/")]
    shapes = {name: in_file[key] for name, key in keys.items()}
    try:
        settings = network_settings(shapes)
        taps = _taps(shapes, settings)
    except ValueError as error:
        raise SettingError(f"--checkpoint={path}: {error}") from None
    if head_input is None:
        few_labels = any(folder in checkpoint_path for folder in FROM_FIRST_LAYER)
        head_input = 1 if few_labels and 1 in taps else min(taps, default=0)
    if taps and head_input not in taps:
        raise SettingError(
            f"--ft_proj_selector={head_input}: the classifier reads {shapes[f'{CLASSIFIER}/kernel'][0]} numbers, "
            f"the width of layers {taps}"
        )
    steps = [int(reader.get_tensor(key)) for key in ignored["counters"] if is_step(key)]
    checkpoint = OfficialCheckpoint(
        checkpoint_path, keys, shapes, ignored, unexplained, max(steps, default=0), settings, taps, head_input
    )
    _check_complete(checkpoint, without_allocation(lambda: _network_shapes(checkpoint)))  # which may be huge
    return checkpoint


def network_settings(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Infers the network settings of ``Config`` from the shapes of variables, by TF1 name.

    Raises:
        ValueError: if the variables are not those of a ResNet, or a setting is outside its bounds.
    """
    try:
        settings = _encoder_settings(shapes) | _head_settings(shapes)
        check_bounds(settings)
        classifier = [shapes[name] for name in (f"{CLASSIFIER}/kernel", f"{CLASSIFIER}/bias") if name in shapes]
        if [len(shape) for shape in classifier] not in ([], [2, 1]):
            raise LookupError
    except SettingError as error:
        reason = str(error).removeprefix("--")
        raise ValueError(f"its variables are not those of a SimCLR network ({reason})") from None
    except (LookupError, ArithmeticError, TypeError):
        raise ValueError("its variables are not those of a SimCLR network") from None
    return settings


def load(network: Network, checkpoint: OfficialCheckpoint) -> str:
    """Loads a checkpoint into a built network, one variable at a time; returns a report about every variable.

    Raises:
        SettingError: before anything is loaded, if variables are missing, left over or of another shape.
    """
    variables = official_names(network)
    _check_complete(checkpoint, {name: tuple(variable.shape) for name, variable in variables.items()})
    with _explained_read_errors(checkpoint.path):
        reader = open_checkpoint(checkpoint.path)
        for name, variable in variables.items():
            variable.assign(reader.get_tensor(checkpoint.keys[name]))
    return _report(checkpoint)


def _build_network(checkpoint: OfficialCheckpoint) -> Network:
    """Builds the network that a checkpoint's settings describe."""
    settings = checkpoint.settings
    encoder = ResNet(
        settings["resnet_depth"],
        settings["width_multiplier"],
        settings["sk_ratio"],
        settings["se_ratio"],
        settings["stem"],
        name="encoder",
    )
    head = ProjectionHead(
        settings["proj_head_mode"],
        settings.get("num_proj_layers", 1),
        settings.get("proj_out_dim", 1),
        name="projection_head",
    )
    network = Network(encoder, head, checkpoint.num_classes, checkpoint.head_input, name="network")
    network.build()
    return network


def _network_shapes(checkpoint: OfficialCheckpoint) -> dict[str, Shape]:
    """Returns the shapes of the variables, by TF1 name, of the network that a checkpoint's settings describe."""
    network = _build_network(checkpoint)
    return {name: tuple(variable.shape) for name, variable in official_names(network).items()}


def _check_complete(checkpoint: OfficialCheckpoint, shapes: Mapping[str, Shape]) -> None:
    """Raises SettingError if variables of a network are missing, left over or of another shape in a checkpoint."""
    faults = {
        "missing": shapes.keys() - checkpoint.shapes.keys(),
        "left over": (checkpoint.shapes.keys() - shapes.keys()) | set(checkpoint.unexplained),
        "of another shape": {name for name in shapes if checkpoint.shapes.get(name, shapes[name]) != shapes[name]},
    }
    if any(faults.values()):
        reasons = "; ".join(f"{len(names)} {fault}: {_abbreviate(names)}" for fault, names in faults.items() if names)
        raise SettingError(f"--checkpoint={checkpoint.path}: not a complete SimCLR network ({reasons})")


def load_official_network(path: str, head_input: int | None = None) -> Network:
    """Builds the network of a checkpoint, loads its weights and logs what was loaded, see `read` and `load`."""
    checkpoint = read(path, head_input)
    network = _build_network(checkpoint)
    log.info("%s", load(network, checkpoint))
    return network


def _sort(in_file: Iterable[str]) -> tuple[dict[str, str], dict[str, list[str]], list[str]]:
    """Sorts keys into those of the network, by TF1 name, the ignored ones, by reason, and unexplained ones."""
    ignored: dict[str, list[str]] = {reason: [] for reason in IGNORED}
    rest: list[str] = []
    for key in sorted(in_file):
        reasons = [reason for reason, pattern in IGNORED.items() if re.fullmatch(pattern, key)]
        (ignored[reasons[0]] if reasons else rest).append(key)
    tf1 = {key: key for key in rest if key.startswith(("base_model/", "head_contrastive/", "head_supervised/"))}
    keys = tf1 or tf2_names(rest)
    return keys, ignored, sorted(set(rest) - set(keys.values()))


def _head_is_untrained(reader: Any, keys: Mapping[str, str]) -> bool:
    """Returns whether every scale and offset of the projection head still has its initial value."""
    initial = {"gamma": 1.0, "beta": 0.0}
    kinds = {name: name.rpartition("/")[2] for name in keys if name.startswith("head_contrastive/")}
    expected = {name: initial[kind] for name, kind in kinds.items() if kind in initial}
    return bool(expected) and all(np.all(reader.get_tensor(keys[name]) == value) for name, value in expected.items())


def _encoder_settings(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Infers depth, width, ratios and stem from the kernels ``[height, width, in, out]`` in their order."""
    numbered = {name: re.fullmatch(r"base_model/conv2d(?:_(\d+))?/kernel", name) for name in shapes}
    kernels = {int(match[1] or 0): shapes[name] for name, match in numbered.items() if match}
    count = max(kernels, default=-1) + 1
    resnet_d = kernels[0][0] == kernels[1][0] == 3  # three convolutions in the stem; otherwise the second is a shortcut
    stem = 3 if resnet_d else 1
    # The first block: the convolution of the shortcut, then 3×3 and 3×3, or 1×1, 3×3 and 1×1.
    bottleneck = kernels[stem + 1][0] == 1
    squeezes = any(re.fullmatch(r"base_model/conv2d_\d+/bias", name) for name in shapes)
    selective = bottleneck and kernels[stem + 2][3] == 2 * kernels[stem + 1][3]  # two streams
    kernels_per_block = (5 if selective else 3 if bottleneck else 2) + 2 * squeezes
    blocks = (count - stem - GROUPS) / kernels_per_block
    depths = {(float(sum(groups)), depth >= 50): depth for depth, groups in BLOCKS_PER_GROUP.items()}
    last = count - kernels_per_block  # first convolution of the last, widest block
    return {
        "resnet_depth": depths[blocks, bottleneck],
        "width_multiplier": kernels[stem - 1][3] / 64,
        "sk_ratio": kernels[last + 2][3] / kernels[last + 2][2] if selective else 0.0,
        "se_ratio": kernels[count - 2][3] / kernels[count - 2][2] if squeezes else 0.0,
        "stem": "imagenet" if resnet_d or kernels[0][0] == 7 else "cifar",
    }


def _head_settings(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Infers the settings of the projection head."""
    layers = [name for name in shapes if re.fullmatch(r"head_contrastive/n?l_\d+/dense/kernel", name)]
    if not layers:
        return {"proj_head_mode": "none"}
    mode = "nonlinear" if layers[0].startswith("head_contrastive/nl_") else "linear"
    out_dim = shapes[max(layers, key=lambda name: int(name.split("/")[1].rpartition("_")[2]))][1]
    return {"proj_head_mode": mode, "num_proj_layers": len(layers), "proj_out_dim": out_dim}


def _taps(shapes: Mapping[str, Shape], settings: Mapping[str, Any]) -> list[int]:
    """Returns the layers of the projection head that are as wide as the classifier's input; 0 is its own input."""
    if f"{CLASSIFIER}/kernel" not in shapes:
        return []
    features = 512 * settings["width_multiplier"] * (4 if settings["resnet_depth"] >= 50 else 1)
    layers = settings.get("num_proj_layers", 0)
    widths = [*[features] * layers, settings["proj_out_dim"]] if layers else [features]
    return [tap for tap, width in enumerate(widths) if shapes[f"{CLASSIFIER}/kernel"][:1] == (width,)]


def _report(checkpoint: OfficialCheckpoint) -> str:
    """Formats the network, the counts of loaded and ignored variables, and the assumed tap."""
    settings, classes = checkpoint.settings, checkpoint.num_classes
    head = {"none": "no projection head", "linear": "linear projection head"}.get(
        settings["proj_head_mode"], f"projection head of {settings.get('num_proj_layers')} layers"
    )
    lines = [
        f"{checkpoint.path}, step {checkpoint.step:,}:",
        f"  ResNet-{settings['resnet_depth']} x{settings['width_multiplier']:g}, sk_ratio {settings['sk_ratio']:g}, "
        f"se_ratio {settings['se_ratio']:g}, {settings['stem']} stem, {head}, "
        + (f"{classes} classes on layer {checkpoint.head_input}" if classes else "no classifier"),
        f"  loaded: {len(checkpoint.keys)} variables, "
        f"{sum(int(np.prod(shape)) for shape in checkpoint.shapes.values()):,} numbers",
        *(
            f"  ignored: {len(keys)}, {reason} ({_abbreviate(keys)})"
            for reason, keys in checkpoint.ignored.items()
            if keys
        ),
        "  missing: 0, left over: 0",
    ]
    if checkpoint.class_names:
        lines.append("  assumed: the classes are those of ImageNet, in the order of their synset ids")
    if len(checkpoint.taps) > 1:
        lines.append(
            f"  assumed: the classifier reads layer {checkpoint.head_input} of the head. Layers {checkpoint.taps} have "
            "the same width; --ft_proj_selector chooses one. Default: "
            f"1 for paths with {' or '.join(FROM_FIRST_LAYER)}, 0 for others"
        )
    return "\n".join(lines)


def _abbreviate(names: Iterable[str]) -> str:
    """Formats the first three names."""
    first, *others = sorted(names)
    return ", ".join([first, *others[:2]]) + (" …" if len(others) > 2 else "")
