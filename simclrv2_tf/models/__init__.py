"""Networks: encoders, heads, and both as one network."""

from simclrv2_tf.models.batch_norm import BatchNorm, BatchNormSettings
from simclrv2_tf.models.cost import Cost, Summary, summarize
from simclrv2_tf.models.heads import Classifier, ProjectionHead
from simclrv2_tf.models.network import Network
from simclrv2_tf.models.official_names import official_names
from simclrv2_tf.models.resnet import ResNet

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
