"""Exports a trained network as LiteRT, as ONNX, or as an official checkpoint; ``saved_model`` exports SavedModels.

The writers take a network that is built with ``BatchNormSettings(fused=True)`` and without a distribution strategy.
They replace an earlier export as a whole.
"""

import importlib.util
import json
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

import simclrv2_tf
from simclrv2_tf.data.cropping import UNCROPPED_SIZE
from simclrv2_tf.errors import SettingError
from simclrv2_tf.files import replacing, write_atomically
from simclrv2_tf.models.network import Network
from simclrv2_tf.models.official_names import official_names

MAX_BYTES = 2**31  # of protobuf (ONNX) and flatbuffers (LiteRT)
ONNX_OPSET = 17


def save_litert(
    network: Network,
    image_size: int,
    path: pathlib.Path,
    resize_method: str = "bicubic",
    class_names: Sequence[str] = (),
) -> None:
    """Writes a LiteRT (TFLite) file of builtin operations. Its signature is ``serving_default``.

    The input is ``images``, float32 ``[1, image_size, image_size, 3]`` in [0, 1], which the caller has cropped and
    resized; the outputs are ``features [1, d]`` and, with a classifier, ``probabilities [1, num_classes]``. As in
    TFLite Metadata, the file is also a ZIP archive, with ``labels.txt`` (one class per line) and ``metadata.json``.

    Raises:
        SettingError: if the network is too large for the format.
        ValueError: if the number of names is not that of the classes.
    """
    metadata = build_metadata(network, image_size, resize_method, class_names)
    _check_bytes(network, "litert")
    model = tf.Module()
    model.network_variables = [variable.value for variable in network.variables]

    @tf.function(input_signature=[tf.TensorSpec([1, image_size, image_size, 3], tf.float32, name="images")])
    def infer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return features_and_probabilities(network(images, training=False))

    model.infer = infer
    converter = tf.lite.TFLiteConverter.from_concrete_functions([infer.get_concrete_function()], model)
    content = converter.convert()
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
        texts = {"labels.txt": name_lines(metadata["class_names"])}
        texts["metadata.json"] = json.dumps(metadata, ensure_ascii=False)
        with zipfile.ZipFile(unfinished, "a") as archive:
            for name, text in texts.items():
                archive.writestr(zipfile.ZipInfo(name), text)  # dated 1980: same bytes at any time, also before 1980


def check_onnx_packages() -> None:
    """Raises SettingError if the packages for ONNX are not installed."""
    if not all(map(importlib.util.find_spec, ("tf2onnx", "onnx"))):
        raise SettingError("--format=onnx: needs pip install tf2onnx onnx")


def save_onnx(
    network: Network,
    image_size: int,
    path: pathlib.Path,
    resize_method: str = "bicubic",
    class_names: Sequence[str] = (),
) -> None:
    """Writes an ONNX file for inference. It returns every endpoint and, with a classifier, ``probabilities``.

    Its input is ``images``, float32 ``[n, image_size, image_size, 3]`` in [0, 1]. The caller crops and resizes, because
    no two runtimes resize alike. (Keras's own ``export(format="onnx")`` also uses tf2onnx, but calls the network with
    its default arguments, which leave out the head if there is a classifier.) ``metadata_props`` has ``class_names`` (a
    JSON list), ``image_size``, ``preprocessing`` and ``producer``.

    Raises:
        SettingError: if the network is too large for the format.
        ValueError: if the number of names is not that of the classes.
    """
    import onnx
    import tf2onnx

    metadata = build_metadata(network, image_size, resize_method, class_names)
    _check_bytes(network, "onnx")

    @tf.function(input_signature=[tf.TensorSpec([None, image_size, image_size, 3], tf.float32, name="images")])
    def infer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        endpoints = network(images, training=False, whole_head=True)
        outputs = features_and_probabilities(endpoints)
        del outputs["features"]  # the endpoint final_avg_pool
        return outputs | endpoints

    model, _ = tf2onnx.convert.from_function(infer, infer.input_signature, opset=ONNX_OPSET)
    texts = {name: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for name, v in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    model.producer_name, model.producer_version = metadata["producer"].split()
    write_atomically(path, model.SerializeToString())


def save_tf1_checkpoint(network: Network, step: int, path: pathlib.Path) -> None:
    """Writes the directory ``path`` with ``model.ckpt-STEP``.

    It holds the network under its TF1 names and ``global_step``, for ``--checkpoint`` of the official code and for
    ``tf.compat.v1.train.Saver``.

    Args:
        network: built.
        step: number of training steps.
        path: the directory; an earlier one is replaced as a whole.

    Raises:
        SettingError: if the encoder is not a ``ResNet``.
    """
    try:
        variables = official_names(network)
    except ValueError as error:
        raise SettingError(f"--format=tf1_checkpoint: {error}; use saved_model, litert or onnx") from None
    tensors = {name: tf.convert_to_tensor(variable.value) for name, variable in variables.items()}
    tensors["global_step"] = tf.constant(step, tf.int64)
    name = f"model.ckpt-{step}"
    with replacing(path) as unfinished:
        unfinished.mkdir()
        # As Saver does, without its deprecation warning.
        tf.raw_ops.SaveV2(
            prefix=str(unfinished / name),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
        (unfinished / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n', encoding="utf-8")


def printable_names(class_names: Sequence[str], num_classes: int) -> list[str]:
    """Returns one line of UTF-8 text per class: its name, or its number if there are no names.

    Raises:
        ValueError: if the number of names is not that of the classes.
    """
    names = class_names or [str(label) for label in range(num_classes)]
    if len(names) != num_classes:
        raise ValueError(f"{len(names)} class names for {num_classes} classes")
    return [" ".join(name.encode(errors="backslashreplace").decode().splitlines()) for name in names]


def name_lines(names: Sequence[str]) -> str:
    """Returns the content of a text file with one name per line."""
    return "".join(f"{name}\n" for name in names)


def features_and_probabilities(endpoints: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns ``features`` and, with a classifier, ``probabilities``."""
    outputs = {"features": endpoints["final_avg_pool"]}
    if "logits_sup" in endpoints:
        outputs["probabilities"] = tf.nn.softmax(endpoints["logits_sup"])
    return outputs


def build_metadata(network: Network, image_size: int, resize_method: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the metadata of formats that do not preprocess: class names, image size, preprocessing, producer."""
    crop = "central square, 87.5 % of its side; " if image_size > UNCROPPED_SIZE else ""
    return {
        "class_names": printable_names(class_names, network.num_classes),
        "image_size": image_size,
        "preprocessing": f"RGB in [0, 1]; {crop}{resize_method} resize to {image_size} x {image_size} px",
        "producer": f"simclrv2_tf {simclrv2_tf.__version__}",
    }


def _check_bytes(network: Network, format_name: str) -> None:
    """Raises SettingError if the network is too large for a format."""
    size = sum(variable.value.dtype.size * variable.value.shape.num_elements() for variable in network.variables)
    if size >= MAX_BYTES:
        raise SettingError(
            f"--format={format_name}: the network's {size / 1e9:.1f} GB do not fit into a file of this format (2 GB); "
            "use saved_model"
        )
