"""Small models of Keras and KerasHub with random weights, saved in every format that --encoder and --teacher take."""

import pathlib

import keras
import numpy as np

SIZE = 8
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def images(count: int = 3, size: int = SIZE) -> np.ndarray:
    """Returns float32 ``[count, size, size, 3]`` in [0, 1]."""
    return np.random.default_rng(0).random((count, size, size, 3)).astype("float32")


def save_dino(path: pathlib.Path, version: int = 2, has_converter: bool = True) -> keras.Model:
    """Saves a DINOv2 or DINOv3 backbone of KerasHub as a local preset; returns it."""
    import keras_hub

    shape = (SIZE, SIZE, 3)
    backbone = getattr(keras_hub.models, f"DINOV{version}Backbone")(
        patch_size=4, num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=16, num_register_tokens=2,
        image_shape=shape, **({"position_embedding_shape": shape} if version == 2 else {}),
    )  # fmt: skip
    backbone.save_to_preset(str(path))
    if has_converter:
        converter = getattr(keras_hub.layers, f"DINOV{version}ImageConverter")
        converter(shape[:2], (1 / 255 / STD).tolist(), (-MEAN / STD).tolist()).save_to_preset(str(path))
    return backbone


def convolutional(*first: keras.layers.Layer, last: tuple[keras.layers.Layer, ...] | None = None) -> keras.Model:
    """Returns a model with the layers ``first``, a convolution, and the layers ``last`` (by default a pooling)."""
    last = (keras.layers.GlobalAveragePooling2D(),) if last is None else last
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *first, keras.layers.Conv2D(6, 3), *last])


def classifier(activation: str | None = None, num_classes: int = 10) -> keras.Model:
    """Returns a classifier that takes images in 0..255."""
    dense = keras.layers.Dense(num_classes, activation, kernel_initializer="glorot_normal")
    return convolutional(keras.layers.Rescaling(1 / 255), last=(keras.layers.GlobalAveragePooling2D(), dense))


def saved(model: keras.Model, path: pathlib.Path) -> str:
    """Saves a model as a ``.keras`` file, or as a SavedModel if the path has no suffix; returns the path."""
    if path.suffix:
        model.save(path)
    else:
        model.export(path, verbose=False)
    return str(path)
