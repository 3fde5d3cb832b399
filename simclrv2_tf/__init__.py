"""SimCLRv2 in Keras 3 / TensorFlow: public names.

Each name is imported on first use, so ``import simclrv2_tf`` and ``--help`` do not wait for TensorFlow. All classes are
registered with Keras as soon as both packages are imported.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

import wrapt

__version__ = "1.0.0"

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # before Keras reads its keras.json

_NAMES = {
    "data.augment": ("ViewSettings", "augment_views"),
    "data.cropping": ("center_crop_and_resize",),
    "data.datasets": ("evaluation_batches", "view_batches"),
    "data.input": ("make_views",),
    "distributed.devices": ("cpu_replicas",),
    "methods.base": ("Method",),
    "methods.callbacks": ("KNN", "LinearProbe", "RankMe"),
    "methods.classifier": ("ClassificationModel",),
    "methods.distiller": ("Distiller",),
    "methods.lars": ("LARS",),
    "methods.losses": ("NTXent", "distillation_loss", "nt_xent"),
    "methods.momentum": ("MovingAverage",),
    "methods.pretraining": ("Pretraining",),
    "methods.schedules": ("WarmUpCosine",),
    "methods.simclr": ("SimCLR",),
    "metrics": ("knn_accuracy", "linear_probe"),
    "models": ("BatchNorm", "BatchNormSettings", "Classifier", "Network", "ProjectionHead", "ResNet", "summarize"),
    "runs.checkpoints": ("load_network",),
    "runs.networks": ("load_run",),
    "runs.saved_model": ("save_saved_model",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def _register_classes(keras: ModuleType) -> None:
    """Imports all public modules, so that ``keras.saving`` finds their classes; not in the middle of such an import."""
    specs = [
        getattr(module, "__spec__", None) for name, module in sys.modules.items() if name.startswith("simclrv2_tf.")
    ]
    if keras.backend.backend() == "tensorflow" and not any(getattr(spec, "_initializing", False) for spec in specs):
        for module in _NAMES:
            importlib.import_module(f"{__name__}.{module}")


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ImportError(f"KERAS_BACKEND={keras.backend.backend()}: must be tensorflow")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


wrapt.register_post_import_hook(_register_classes, "keras")
