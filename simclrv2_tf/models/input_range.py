"""Input ranges of encoders: networks get images in [0, 1], and encoders get the values that they expect."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

# By name: scale and offset, scalar or per channel, from RGB in [0, 1] to the values that an encoder expects.
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet, RGB in [0, 1]
INPUT_RANGES: dict[str, tuple[float | np.ndarray, float | np.ndarray]] = {
    "0..1": (1.0, 0.0),
    "-1..1": (2.0, -1.0),
    "imagenet": (1 / _STD, -_MEAN / _STD),
    "0..255": (255.0, 0.0),
    "caffe": (255.0, -np.array([103.939, 116.779, 123.68])),  # BGR
}


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class InputRange(keras.layers.Layer):
    """Converts RGB images in [0, 1] to the values that an encoder expects.

    Args:
        input_range: "0..1", "-1..1", "imagenet" (minus the mean, divided by the standard deviation), "0..255", or
            "caffe" (BGR in 0..255 minus the mean, as the older models of ``keras.applications``).
        **kwargs: of a Keras layer.

    Raises:
        ValueError: if there is no such range.

    Example:
        >>> InputRange("-1..1")(np.full((1, 2, 2, 3), 0.75, "float32")).numpy().max()
        np.float32(0.5)
    """

    def __init__(self, input_range: str, **kwargs: Any):
        super().__init__(**kwargs)
        if input_range not in INPUT_RANGES:
            raise ValueError(f'input_range must be one of {", ".join(INPUT_RANGES)}, not "{input_range}"')
        self.input_range = input_range
        self.built = True

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Converts images ``[n, h, w, 3]``."""
        images = images[..., ::-1] if self.input_range == "caffe" else images
        scale, offset = (tf.cast(value, images.dtype) for value in INPUT_RANGES[self.input_range])
        return images * scale + offset

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"input_range": self.input_range}


def detect_input_range(model: keras.layers.Layer) -> str:
    """Returns the input range of a model with a rescaling layer; "" if it has none."""
    for layer in model._flatten_layers():
        if isinstance(layer, InputRange):
            return "0..1"
        if isinstance(layer, keras.layers.Rescaling):
            return "0..255" if np.max(np.abs(layer.scale)) < 0.1 else "0..1"
        if isinstance(layer, keras.layers.Normalization):
            return "0..255" if np.max(np.abs(layer.mean)) > 2 else "0..1"
    return ""


def checked_input_range(encoder: keras.layers.Layer, input_range: str) -> str:
    """Returns the input range of an encoder.

    Raises:
        ValueError: if the encoder's own Rescaling or Normalization layer expects another one.
    """
    expected = detect_input_range(encoder)
    if expected not in ("", input_range):
        raise ValueError(
            f'input_range="{input_range}": {encoder.name} rescales images itself and expects "{expected}"; '
            f'pass input_range="{expected}", or build it without preprocessing'
        )
    return input_range
