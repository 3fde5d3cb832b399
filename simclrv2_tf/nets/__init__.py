"""Networks: encoders, heads and the two together."""

from simclrv2_tf.nets.heads import Classifier, ProjectionHead
from simclrv2_tf.nets.network import Network
from simclrv2_tf.nets.normalization import BatchNorm, BatchNormSettings
from simclrv2_tf.nets.official_names import official_names
from simclrv2_tf.nets.resnet import ResNet, count_parameters

__all__ = [
    "BatchNorm",
    "BatchNormSettings",
    "Classifier",
    "Network",
    "ProjectionHead",
    "ResNet",
    "count_parameters",
    "official_names",
]
