"""Declaration of settings with their choices, bounds and tags, and the checks of these."""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from simclrv2_tf.errors import DamagedError, SettingError, shorten
from simclrv2_tf.schemas import TEXTS

MAX_INTEGER = 10**9  # default maximum of an integer setting

UNNAMED_RECIPES = ("auto", "official", "own_images", "none")  # values of --recipe that name no recipe
CONV_INITS = ("lecun_normal", "he_fan_out")
CROP_SAMPLERS = ("tensorflow", "torchvision")
RESIZE_METHODS = ("bicubic", "bilinear", "bicubic_antialiased", "bilinear_antialiased")
STAGES = ("pretrain", "linear_eval", "supervised", "finetune", "distill")
FORMATS = {"export": ("saved_model", "litert", "onnx", "tf1_checkpoint"), "embed": ("npz", "parquet"),
           "predict": ("csv", "parquet", "jsonl")}  # fmt: skip
LOOKS = ("evaluate", "predict", "embed", "select", "export")  # modes that read a trained run
SELECTIONS = ("typicality", "k_center")
MODES = (
    *("pretrain", "finetune", "distill", "linear_eval", "supervised", "semi_supervised", "evaluate", "predict"),
    *("embed", "select", "export", "import_checkpoint", "preview", "summary", "benchmark", "check_devices", "report"),
)


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
    tags: str = "",
) -> Any:
    """Defines a field of ``Config``.

    Args:
        choices, minimum, above, below, maximum: the allowed values; ``above`` and ``below`` exclude their bounds.
        tags: separated by spaces:
            ``network``: part of the network; taken from the checkpoint that a run starts from, and fixed by it.
            ``encoder``: those of them that a student shares if its encoder equals that of its teacher.
            ``images``: which images are used, and how; by default as in the run that a run starts from.
            ``not_inherited``: a mode that reads a run takes all settings but these from the run.
            ``resume_ok``: may change when a run is resumed.
    """
    bounds = dict(choices=choices, minimum=minimum, above=above, below=below, maximum=maximum)
    return dataclasses.field(default=default, metadata=dict(help=help, tags=frozenset(tags.split()), **bounds))


def parse_fields(content: Mapping[str, Any], fields: Iterable[dataclasses.Field]) -> dict[str, Any]:
    """Returns the values of fields in the content of a JSON file, without unknown names.

    Raises:
        DamagedError: with the reason, if a value is not of the type of its field.
    """
    values = {}
    for field in (field for field in fields if field.name in content):
        value, kind = content[field.name], type(field.default)
        if kind is tuple:
            TEXTS(value, field.name)
            value = tuple(value)
        if type(value) is not kind and (type(value), kind) != (int, float):
            raise DamagedError(f"{field.name} must be of type {kind.__name__}, not {type(value).__name__}")
        values[field.name] = value
    return values


def check_bounds(values: Mapping[str, Any], fields: Iterable[dataclasses.Field], prefix: str = "") -> None:
    """Raises SettingError, naming field and value after ``prefix``, if one of the values is outside its bounds."""
    for field in (field for field in fields if field.name in values):
        value, bounds, why = values[field.name], field.metadata, ""
        maximum = bounds["maximum"]
        if maximum is None and isinstance(field.default, int):
            maximum = MAX_INTEGER
        if isinstance(field.default, int | float) and not isinstance(value, int | float):  # from a caller in Python
            why = f"not a value of type {type(field.default).__name__}"
        elif bounds["choices"] and value not in bounds["choices"]:
            why = f"must be one of {', '.join(bounds['choices'])}"
        elif isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            value, why = repr(value), "must be UTF-8"  # as file names and file contents must be
        elif isinstance(value, float) and not math.isfinite(value):
            why = "must be a finite number"
        elif bounds["minimum"] is not None and value < bounds["minimum"]:
            why = f"must be {bounds['minimum']} or more"
        elif bounds["above"] is not None and value <= bounds["above"]:
            why = f"must be above {bounds['above']}"
        elif bounds["below"] is not None and value >= bounds["below"]:
            why = f"must be below {bounds['below']}"
        elif maximum is not None and value > maximum:
            why = f"must be {maximum} or less"
        if why:
            raise SettingError(f"{prefix}{field.name}={shorten(value, 200)}: {why}")


def check_arguments(values: Mapping[str, Any], fields: Iterable[dataclasses.Field]) -> None:
    """Checks arguments of the library that are settings too; tensors and variables are not checked.

    Raises:
        SettingError: naming argument and value, if it is of another type than its field or outside its bounds.
    """
    kinds = {bool: bool, int: numbers.Integral, float: numbers.Real, str: str}
    is_plain = lambda value: isinstance(value, numbers.Number | str) or not hasattr(value, "dtype")  # noqa: E731
    checked = {name: value for name, value in values.items() if is_plain(value)}
    fields = [field for field in fields if field.name in checked]
    for field in fields:
        value, kind = checked[field.name], type(field.default)
        if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind is not bool):
            raise SettingError(f"{field.name}={shorten(repr(value), 200)}: not a value of type {kind.__name__}")
        checked[field.name] = kind(value)  # type: ignore[misc]
    check_bounds(checked, fields)
