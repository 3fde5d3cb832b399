"""Training methods, their losses and optimizers."""

from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {"simclr": SimCLR}
