"""SimCLRv2 in Keras 3 / TensorFlow: the public names.

Each is imported when it is first asked for, so that ``import simclrv2_tf`` and ``--help`` need not wait for TensorFlow.
"""

import importlib
from typing import Any

__version__ = "1.0.0"

_HOMES = {
    "data.augment": ("ViewSettings", "augment_views", "center_crop_and_resize"),
    "data.datasets": ("view_batches",),
    "data.input": ("make_views",),
    "metrics": ("knn_accuracy", "linear_probe"),
    "runs.export": ("save_saved_model",),
    "models": ("BatchNorm", "BatchNormSettings", "Classifier", "Network", "ProjectionHead", "ResNet", "summarize"),
    "runs.checkpoints": ("load_network",),
    "methods.classifier": ("ClassificationModel",),
    "methods.distiller": ("Distiller",),
    "methods.lars": ("LARS",),
    "methods.losses": ("NTXent", "distillation_loss", "nt_xent"),
    "methods.schedules": ("WarmUpCosine",),
    "methods.simclr": ("SimCLR",),
    "methods.base": ("Method",),
    "methods.momentum": ("MovingAverage",),
    "methods.pretraining": ("Pretraining",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ImportError(f"KERAS_BACKEND={keras.backend.backend()}: must be tensorflow")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
