"""Loads the models that ``--encoder`` and ``--teacher`` name: of Keras, of KerasHub, files, functions of the user.

``load_model`` returns the model and the input range that it expects; ``encoders.py`` adapts it to images in [0, 1].
"""

import contextlib
import dataclasses
import difflib
import inspect
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.errors import SettingError, first_line
from simclrv2_tf.files import plain_path
from simclrv2_tf.models.cost import without_allocation
from simclrv2_tf.models.input_range import INPUT_RANGES, InputRange, detect_input_range
from simclrv2_tf.models.network import Network
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.fields import LOOKS
from simclrv2_tf.settings.plugins import APPLICATION, HUB, is_file, is_function, load_plugin

USE_FEATURES = ("finetune", "linear_eval", *LOOKS)  # modes that start from trained features


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A loaded model, not yet adapted.

    Attributes:
        model: from images to features or logits, or to a dict of them.
        input_range: a name of ``INPUT_RANGES``; "": unknown.
        converter: layer that converts images in [0, 1] to the model's input, in place of ``input_range``.
        notes: for the summary of a run.
        class_names: of a classifier, if known.
    """

    model: keras.layers.Layer
    input_range: str = ""
    converter: keras.layers.Layer | None = None
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def load_model(flag: str, value: str, config: Config, pretrained: bool = True) -> LoadedModel:
    """Loads the model that ``--encoder``, or a ``--teacher`` that is a file, names.

    Raises:
        SettingError: in one line, if it cannot be loaded.
    """
    if is_function(value):
        return _call_function(value, config.image_size)
    with explained_load_errors(f"--{flag}={value}"):
        if value.startswith(APPLICATION):
            return _load_application(value.removeprefix(APPLICATION), config, pretrained)
        if value.startswith(HUB):
            return _load_preset(value.removeprefix(HUB), config.image_size, pretrained)
        return _load_keras_file(value) if value.endswith(".keras") else _load_saved_model(value)


@contextlib.contextmanager
def explained_load_errors(reference: str) -> Iterator[None]:
    """Turns any error of Keras, KerasHub and TensorFlow about a model into a SettingError of one line."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"{reference}: {error}") from None
    except ImportError as error:
        raise SettingError(f'{reference}: needs pip install "simclrv2-tf[hub]" ({first_line(error)})') from None
    except Exception as error:
        raise SettingError(f"{reference}: cannot be loaded ({first_line(error).partition('. ')[0]})") from None


def _call_function(reference: str, image_size: int) -> LoadedModel:
    function = load_plugin("encoder", reference)
    try:
        with contextlib.suppress(ValueError):  # some built-in functions have no signature
            inspect.signature(function).bind(image_size=image_size)
    except TypeError as error:
        raise SettingError(f"--encoder={reference}: cannot be called with image_size ({error})") from None
    encoder = function(image_size=image_size)
    if not isinstance(encoder, keras.Model):
        raise SettingError(f"--encoder={reference}: returned {type(encoder).__name__}, not a Keras model")
    return LoadedModel(encoder, detect_input_range(encoder) or "0..1")


def _load_application(name: str, config: Config, pretrained: bool) -> LoadedModel:
    """Builds a model of ``keras.applications``; its ``preprocess_input`` determines the input range.

    ``NAME:WEIGHTS`` names the weights: imagenet, random, or a file. The default is imagenet for modes that start from
    features, and random for modes that train from scratch.
    """
    name, _, weights = name.partition(":")
    function = getattr(keras.applications, name, None)
    if not name[:1].isupper() or not callable(function):
        names = [known for known in dir(keras.applications) if known[0].isupper()]
        close = ", ".join(difflib.get_close_matches(name, names) or names)
        raise SettingError(f"keras.applications has no such model; use one of {close}")
    default = "imagenet" if config.mode in USE_FEATURES else "random"
    weights = (weights or default) if pretrained else "random"
    size = config.image_size
    try:
        model = function(
            include_top=False, weights=None if weights == "random" else weights, input_shape=(size, size, 3),
            pooling="avg",
        )  # fmt: skip
    except ValueError as error:
        raise SettingError(f"cannot be built for --image_size={size} ({first_line(error)})") from None
    except Exception as error:
        raise SettingError(
            f"its weights cannot be loaded ({first_line(error)}); Keras downloads them on first use; without a network "
            f"connection, use {APPLICATION}{name}:/path/weights.h5 or {APPLICATION}{name}:random"
        ) from None
    probe = np.array([[[[0.0, 100.0, 255.0]]]])
    expected = sys.modules[function.__module__].preprocess_input(probe.copy())
    ranges = [each for each in INPUT_RANGES if np.allclose(InputRange(each)(probe / 255), expected, atol=1e-3)]
    notes = (f"{weights} weights",) if pretrained else ()
    return LoadedModel(model, ranges[0] if ranges else "", notes=notes)


def _load_preset(preset: str, image_size: int, pretrained: bool) -> LoadedModel:
    """Loads a backbone of KerasHub; its image converter, if the preset has one, determines the input range."""
    import keras_hub

    options: dict[str, Any] = {"load_weights": pretrained, "dtype": keras.config.dtype_policy().name}
    backbone = without_allocation(lambda: keras_hub.models.Backbone.from_preset(preset, load_weights=False))
    if image_size and image_shape(backbone)[0] not in (None, image_size):
        options["image_shape"] = (image_size, image_size, 3)
    backbone = keras_hub.models.Backbone.from_preset(preset, **options)
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except (ValueError, OSError):  # there is none
        return LoadedModel(backbone, detect_input_range(backbone))
    scale = np.multiply(255.0, 1.0 if converter.scale is None else converter.scale)
    offset = 0.0 if converter.offset is None else converter.offset
    for name, (known_scale, known_offset) in INPUT_RANGES.items():
        if name != "caffe" and np.allclose(scale, known_scale) and np.allclose(offset, known_offset, atol=1e-6):
            return LoadedModel(backbone, name)
    rescaling = keras.layers.Rescaling(np.broadcast_to(scale, 3).tolist(), np.broadcast_to(offset, 3).tolist())
    return LoadedModel(backbone, converter=rescaling, notes=("input scaled by its image converter",))


def _load_keras_file(path: str) -> LoadedModel:
    """Loads a ``.keras`` file in Keras's safe mode; a model of this package is returned as a ``Network``."""
    _check_archive(path)
    model = keras.saving.load_model(path, compile=False)
    frozen = len(model.weights) - len(model.trainable_variables)
    notes = (f"{frozen} of {len(model.weights)} weights frozen in the file",) if not model.trainable_variables else ()
    names = tuple(getattr(model, "class_names", ()))
    network = model if isinstance(model, Network) else getattr(model, "network", None)
    if isinstance(network, Network):
        return LoadedModel(network, "0..1", notes=notes, class_names=names)
    return LoadedModel(model, detect_input_range(model), notes=notes)


def _check_archive(path: str) -> None:
    if not os.path.exists(path):
        raise SettingError("there is no such file")
    if not zipfile.is_zipfile(path):
        raise SettingError("is not a .keras archive, or is damaged")


def _load_saved_model(path: str) -> LoadedModel:
    if not tf.io.gfile.exists(f"{path}/saved_model.pb"):
        raise SettingError(
            "must be resnet, keras.applications:NAME, keras_hub:PRESET, a .keras file, a SavedModel directory, or "
            "package.module:function; there is no such SavedModel"
        )
    layer = SavedModelLayer(path)
    names_file = f"{path}/assets/class_names.txt"
    names = ()
    if layer.endpoint == "views" and tf.io.gfile.exists(names_file):
        names = tuple(tf.io.gfile.GFile(names_file).read().splitlines())
    known = "0..1" if layer.endpoint == "views" else "" if layer.input_spec_dtype.is_floating else "0..255"
    return LoadedModel(layer, known, notes=(f"SavedModel, frozen, signature {layer.endpoint}",), class_names=names)


class SavedModelLayer(keras.layers.Layer):
    """A signature of a SavedModel as a frozen layer, whose variables are saved with the network.

    Signatures of our exports (``views``) and of Keras's (``serve``) are preferred.

    Args:
        path: the directory.

    Raises:
        SettingError: if no signature takes a batch of images as its only input.
    """

    def __init__(self, path: str):
        super().__init__(trainable=False, dtype="float32", name="saved_model")
        self._loaded = tf.saved_model.load(plain_path(path))  # owns the variables
        signatures = self._loaded.signatures
        usable = {name: spec for name in signatures if (spec := _image_spec(signatures[name])) is not None}
        preferred = [name for name in ("views", "serve", "serving_default", *usable) if name in usable]
        if not preferred:
            names = ", ".join(signatures) or "none"
            raise SettingError(f"no signature takes a batch of images as its only input (signatures: {names})")
        self.endpoint = preferred[0]
        self._function = signatures[self.endpoint]
        self._argument, spec = usable[self.endpoint]
        self.image_shape, self.input_spec_dtype = tuple(spec.shape), spec.dtype
        self.frozen = [
            keras.Variable(variable, trainable=False, dtype=variable.dtype.name, name=f"variable_{index}")
            for index, variable in enumerate(self._function.variables)
        ]
        self.built = True

    def call(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the outputs of the signature by name."""
        images = images if self.input_spec_dtype.is_floating else tf.round(images)
        return self._function(**{self._argument: tf.cast(images, self.input_spec_dtype)})


def _image_spec(function: Any) -> tuple[str, tf.TensorSpec] | None:
    """Returns name and spec of a signature's only argument if it is a batch of images, else None."""
    _, arguments = function.structured_input_signature
    (name, spec), *others = arguments.items() if arguments else [("", None)]
    is_images = spec is not None and spec.shape.rank == 4 and (spec.dtype.is_floating or spec.dtype.is_integer)
    return (name, spec) if is_images and not others else None


def fixed_image_size(flag: str, value: str) -> dict[str, int]:
    """Returns the setting ``image_size`` of a file or preset that takes one size only; loads no weights."""

    def open_model() -> Any:
        if value.startswith(HUB):
            import keras_hub

            return keras_hub.models.Backbone.from_preset(value.removeprefix(HUB), load_weights=False)
        _check_archive(value)
        with zipfile.ZipFile(value) as archive:
            return keras.saving.deserialize_keras_object(json.loads(archive.read("config.json")))

    if not value.startswith(HUB) and not is_file(value):
        return {}
    with explained_load_errors(f"--{flag}={value}"):
        is_saved_model = is_file(value) and not value.endswith(".keras")
        model = _load_saved_model(value).model if is_saved_model else without_allocation(open_model)
    views = getattr(model, "views", None)  # of a model of this package
    size = views.image_size if views is not None else image_shape(model, f"--{flag}={value}")[0]
    return {} if size is None else {"image_size": size}


def image_shape(model: keras.layers.Layer, reference: str = "") -> tuple[int | None, int | None, bool]:
    """Returns a model's input height and width, None for any, and whether channels come first."""
    try:
        shape = model.image_shape if isinstance(model, SavedModelLayer) else model.input_shape
    except AttributeError:  # a model that takes any shape
        return None, None, False
    shape = next(iter(shape.values())) if isinstance(shape, dict) and len(shape) == 1 else shape
    if not isinstance(shape, tuple) or len(shape) != 4 or 3 not in (shape[1], shape[3] or 3):
        raise SettingError(f"{reference}: its input must be a batch of RGB images, not {shape}")
    is_channels_first = shape[1] == 3 and shape[3] != 3
    height, width = shape[2:] if is_channels_first else shape[1:3]
    return height, width, is_channels_first
