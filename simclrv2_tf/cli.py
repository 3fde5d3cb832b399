"""The command line: flags → settings → the function of one mode. A user's error becomes one line and status 2."""

import contextlib
import dataclasses
import logging
import os
import shlex
import signal
import sys
import textwrap

from absl import flags

from simclrv2_tf.env import import_tensorflow
from simclrv2_tf.errors import LostWorkerError, SettingError
from simclrv2_tf.settings.config import Config, check_bounds
from simclrv2_tf.settings.recipes import format_recipes

DEFINE = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
HELP = {dashes + name for dashes in ("-", "--") for name in ("help", "helpshort", "helpfull", "h")}


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``run.py``. Exits with 0, with 2 or 3 after one line on standard error, with 130 after Ctrl-C."""
    argv = list(sys.argv if argv is None else argv)
    if any(argument in HELP for argument in argv[1:]):
        print(help_text())
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    values = define_flags()
    try:
        explicit = parse(argv, values)
        if explicit.get("recipe") == "help":
            print(format_recipes())
            return
        quiet = values["quiet"].value
        import_tensorflow(verbose=values["v"].value > 0)  # seconds that --help need not wait for
        from simclrv2_tf import modes

        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if quiet else sys.stdout):
            modes.run(explicit)
    except (SettingError, flags.Error) as error:
        print("error:", *str(error).split("\n"), file=sys.stderr)  # a value or a name may hold several lines
        sys.exit(2)
    except LostWorkerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(3)  # TensorFlow would wait for the other worker to end, too
    except KeyboardInterrupt:
        print(f"Interrupted. To go on: python {shlex.join(argv)}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def parse(argv: list[str], values: flags.FlagValues | None = None) -> dict[str, object]:
    """The settings that the command line says, by name, and no others; ``values`` (``define_flags()``) takes them all.

    Raises:
        flags.Error: for an unknown flag or a value of another type.
        SettingError: for arguments that are not flags and values outside their bounds.
    """
    values = define_flags() if values is None else values
    try:
        rest = values(argv)[1:]
    except UnicodeDecodeError as error:
        raise SettingError(f"--flagfile: not a text in UTF-8 ({error})") from None
    if rest:
        raise SettingError(f"{rest[0]}: not a flag (write --name=value)")
    said = {field.name: values[field.name] for field in dataclasses.fields(Config)}
    explicit = {name: flag.value for name, flag in said.items() if flag.present}
    if "stage" in explicit:
        explicit["stage"] = tuple(explicit["stage"])
    check_bounds(explicit)  # here too: before TensorFlow takes seconds to start
    return explicit


def define_flags() -> flags.FlagValues:
    """A flag for each setting, ``--flagfile``, ``--quiet`` and ``--v``."""
    values = flags.FlagValues()
    flags.DEFINE_integer("v", 0, "1: show all that TensorFlow logs.", lower_bound=0, flag_values=values)
    flags.DEFINE_boolean("quiet", False, "Say nothing but warnings and errors.", flag_values=values)
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


def help_text() -> str:
    """Every flag with its default, in groups."""
    lines = ["usage: python run.py --mode=MODE [--flag=value ...]   (installed: simclrv2-tf --mode=MODE ...)"]
    group = ""
    for field in dataclasses.fields(Config):
        if field.metadata["group"] != group:
            group = field.metadata["group"]
            lines += ["", f"{group}:"]
        default = field.default if field.default not in ("", ()) else "-"
        choices = f" [{'|'.join(field.metadata['choices'])}]" if field.metadata["choices"] else ""
        lines += [f"  --{field.name}={str(default).lower() if isinstance(default, bool) else default}"]
        lines += textwrap.wrap(field.metadata["help"] + choices, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    lines += [
        "",
        "Also: --flagfile=FILE reads flags from a file; --noNAME is --NAME=false; --v=1 shows TensorFlow's log;",
        "--quiet says nothing but warnings and errors.",
    ]
    return "\n".join(lines)
