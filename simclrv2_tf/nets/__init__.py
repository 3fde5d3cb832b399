"""Networks: encoders, heads and the two together."""

from simclrv2_tf.nets.heads import Classifier, ProjectionHead
from simclrv2_tf.nets.network import Network
from simclrv2_tf.nets.normalization import BatchNorm, BatchNormSettings
from simclrv2_tf.nets.official_names import official_names
from simclrv2_tf.nets.resnet import ResNet
from simclrv2_tf.nets.summary import Cost, Summary, summarize

__all__ = [
    "BatchNorm",
    "BatchNormSettings",
    "Classifier",
    "Cost",
    "Network",
    "ProjectionHead",
    "ResNet",
    "Summary",
    "official_names",
    "summarize",
]
