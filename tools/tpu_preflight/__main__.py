"""Command line of the TPU preflight: ``python -m tools.tpu_preflight --topology=v4:2x2x1``."""

import logging
import sys

from absl import flags

from simclrv2_tf import cli, help
from simclrv2_tf.env import import_tensorflow

USAGE = """usage: python -m tools.tpu_preflight --topology=v4:2x2x1 [--flag=value ...]

Compiles the pretraining step for a TPU slice, without a TPU, and prints whether it fits into its memory.

  --topology: generation and chips of the slice, for example v4:2x2x1, v4:2x2x4, v5e:4x4, v5p:2x2x2, v6e:2x4.

The other flags are those of python run.py --mode=pretrain --help."""


def main(argv: list[str] | None = None) -> None:
    """Runs the preflight. Exits with 2 after one line on standard error for a user error."""
    argv = list(sys.argv if argv is None else argv)
    if help.REQUESTS & set(argv[1:]):
        print(USAGE)
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    values = cli.define_flags()
    flags.DEFINE_string("topology", "", "Generation and chips of the TPU slice.", flag_values=values)
    with cli.exit_on_user_error():
        settings = cli.parse(argv, values)
        import_tensorflow(verbose=values["v"].value > 0)
        from tools.tpu_preflight.preflight import tpu_preflight

        tpu_preflight(values["topology"].value, settings)


if __name__ == "__main__":
    main()
