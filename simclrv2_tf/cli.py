"""Command line: flags → settings → the function of one mode. A user error is one line and exit status 2."""

import contextlib
import dataclasses
import itertools
import logging
import os
import shlex
import signal
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from absl import flags

from simclrv2_tf.env import import_tensorflow
from simclrv2_tf.errors import LostWorkerError, SettingError
from simclrv2_tf.settings.config import MODES, STAGES, Config, check_bounds
from simclrv2_tf.settings.recipes import format_recipes

DEFINE = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
HELP = {dashes + name for dashes in ("-", "--") for name in ("help", "helpshort", "helpfull", "h")}


class Group(NamedTuple):
    """Flags that ``--help`` lists together: from ``first`` on, and the modes for which they matter."""

    first: str
    title: str
    modes: tuple[str, ...]


RUNS = (*STAGES, "semi_supervised")
TRAINS = (*RUNS, "preview", "benchmark")
PRETRAINS = ("pretrain", "semi_supervised", "preview", "benchmark")
CLASSIFIES = ("linear_eval", "supervised", "finetune", "semi_supervised", "preview", "benchmark")
DISTILLS = ("distill", "semi_supervised", "preview", "benchmark")
LOOKS = ("evaluate", "embed", "export")
GROUPS = (
    Group("mode", "General", MODES),
    Group("checkpoint_epochs", "Checkpoints and report", RUNS),
    Group("dataset", "Data", (*TRAINS, "evaluate", "embed")),
    Group("method", "Network", (*PRETRAINS, "supervised", "distill", "summary")),
    Group("train_batch_size", "Optimization", TRAINS),
    Group("temperature", "Pretraining objective", PRETRAINS),
    Group("crop_area_min", "Augmentation", TRAINS),
    Group("ft_proj_selector", "Fine-tuning and distillation", (*CLASSIFIES, "distill")),
    Group("eval_batch_size", "Devices, speed and memory", (*TRAINS, *LOOKS)),
)
MODES_OF_FLAG = {  # where they are not those of the group
    "checkpoint": ("pretrain", "linear_eval", "finetune", *DISTILLS, *LOOKS, "summary", "import_checkpoint"),
    "recipe": (*TRAINS, "summary"),
    "stage": ("semi_supervised",),
    "seed": (*TRAINS, *LOOKS),
    "format": ("export", "embed"),
    "compare": ("report",),
    "override_config": (*RUNS, "import_checkpoint"),
    "method": PRETRAINS,
    "encoder": (*TRAINS, *LOOKS, "summary"),
    "trust_run_code": (*TRAINS, *LOOKS, "summary"),
    "image_size": (*TRAINS, *LOOKS, "summary"),
    "global_bn": TRAINS,
    "batch_norm_decay": TRAINS,
    "train_batch_size": (*TRAINS, "summary"),
    "temperature": (*PRETRAINS, "distill"),
    "memory_size": (*PRETRAINS, "summary"),
    "color_jitter_strength": PRETRAINS,
    "use_blur": PRETRAINS,
    "eval_resize": (*TRAINS, *LOOKS, "import_checkpoint"),
    "ft_proj_selector": (*CLASSIFIES, "distill", "import_checkpoint"),
    "teacher": DISTILLS,
    "distill_alpha": DISTILLS,
    "grad_cache_micro_batch": PRETRAINS,
}


def main(argv: list[str] | None = None) -> None:
    """Runs ``run.py``. Exits with 0; with 2 or 3 after one line on standard error; with 130 after Ctrl-C."""
    argv = list(sys.argv if argv is None else argv)
    if requests := HELP & set(argv[1:]):
        everything = any("full" in request for request in requests)
        print(help_text("" if everything else _mode_of(argv)))
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    values = define_flags()
    with exit_on_user_error(resume=f"python {shlex.join(argv)}"):
        settings = parse(argv, values)
        if settings.get("recipe") == "help":
            print(format_recipes())
            return
        quiet = values["quiet"].value
        import_tensorflow(verbose=values["v"].value > 0)  # takes seconds, which --help does not wait for
        from simclrv2_tf import modes

        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if quiet else sys.stdout):
            modes.run(settings)


@contextlib.contextmanager
def exit_on_user_error(resume: str = "") -> Iterator[None]:
    """Turns a user error into one line on standard error and exit status 2, a lost worker into 3, Ctrl-C into 130.

    Args:
        resume: the command that continues after Ctrl-C, if there is one.
    """
    try:
        yield
    except (SettingError, flags.Error) as error:
        print("error:", *str(error).split("\n"), file=sys.stderr)  # a value or a file name may hold several lines
        sys.exit(2)
    except LostWorkerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(3)  # without waiting for the other workers, as TensorFlow would
    except KeyboardInterrupt:
        print("Interrupted." + (f" To resume: {resume}" if resume else ""), file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def parse(argv: list[str], values: flags.FlagValues | None = None) -> dict[str, object]:
    """Returns the settings that are given on the command line, by name, without those that are not.

    Args:
        argv: the program and its arguments.
        values: of ``define_flags()``; receives all flags.

    Raises:
        flags.Error: for an unknown flag, or a value that is not of the flag's type.
        SettingError: for an argument that is not a flag, or a value outside its bounds.
    """
    values = define_flags() if values is None else values
    try:
        rest = values(argv)[1:]
    except UnicodeDecodeError as error:
        raise SettingError(f"--flagfile: not UTF-8 text ({error})") from None
    if rest:
        raise SettingError(f"{rest[0]}: not a flag (write --name=value)")
    given = {field.name: values[field.name] for field in dataclasses.fields(Config) if values[field.name].present}
    settings = {name: tuple(flag.value) if name == "stage" else flag.value for name, flag in given.items()}
    check_bounds(settings)  # before TensorFlow takes seconds to start
    return settings


def define_flags() -> flags.FlagValues:
    """Defines a flag for each setting, ``--flagfile``, ``--quiet`` and ``--v``."""
    values = flags.FlagValues()
    flags.DEFINE_integer("v", 0, "1: show all log messages of TensorFlow.", lower_bound=0, flag_values=values)
    flags.DEFINE_boolean("quiet", False, "Print only warnings and errors.", flag_values=values)
    flags.DEFINE_string("flagfile", "", "Read flags from this file.", flag_values=values)
    for field in dataclasses.fields(Config):
        text = field.metadata["help"]
        if field.metadata["choices"]:
            flags.DEFINE_enum(field.name, field.default, field.metadata["choices"], text, flag_values=values)
        elif isinstance(field.default, tuple):
            flags.DEFINE_multi_string(field.name, [], text, flag_values=values)
        else:
            DEFINE[type(field.default)](field.name, field.default, text, flag_values=values)
    return values


def help_text(mode: str = "") -> str:
    """Returns the flags that matter for a mode ("": all flags) with their defaults, in groups."""
    lines = ["usage: python run.py --mode=MODE [--flag=value ...]   (installed: simclrv2-tf --mode=MODE ...)"]
    if mode:
        lines += ["", f"The flags that matter for --mode={mode}; --helpfull lists all flags."]
    starts, group, printed = {group.first: group for group in GROUPS}, GROUPS[0], ""
    for field in dataclasses.fields(Config):
        group = starts.get(field.name, group)
        if mode and mode not in MODES_OF_FLAG.get(field.name, group.modes):
            continue
        if printed != group.title:
            lines += ["", f"{group.title}:"]
            printed = group.title
        lines += _describe_flag(field)
    lines += [
        "",
        "Also: --flagfile=FILE reads flags from a file; --noNAME is --NAME=false; --v=1 shows the log of TensorFlow;",
        "--quiet prints only warnings and errors; --mode=MODE --help lists the flags of one mode.",
    ]
    return "\n".join(lines)


def _describe_flag(field: dataclasses.Field) -> list[str]:
    default = field.default if field.default not in ("", ()) else "-"
    choices = f" [{'|'.join(field.metadata['choices'])}]" if field.metadata["choices"] else ""
    text = textwrap.fill(field.metadata["help"] + choices, 92, break_on_hyphens=False)
    default = str(default).lower() if isinstance(default, bool) else default
    return [f"  --{field.name}={default}", textwrap.indent(text, " " * 8)]


def _mode_of(argv: list[str]) -> str:
    """Returns the mode that a command line names; "" if it names none, or one that does not exist."""
    words = " ".join(argv[1:]).replace("=", " ").split()
    named = [word for flag, word in itertools.pairwise(words) if flag in ("--mode", "-mode")]
    return named[-1] if named and named[-1] in MODES else ""
