"""Exports a trained network: as a SavedModel that needs only TensorFlow, as ONNX, as an official checkpoint."""

import contextlib
import importlib.util
import pathlib
import shutil
from collections.abc import Iterator

import tensorflow as tf

from simclrv2_tf.data.augment import center_crop_and_resize
from simclrv2_tf.errors import SettingError
from simclrv2_tf.files import write_atomically
from simclrv2_tf.models.network import Network
from simclrv2_tf.models.official_names import official_names

ONNX_BYTES = 2**31  # protobuf's limit
ONNX_OPSET = 17


class ExportedModule(tf.Module):
    """Content of the SavedModel.

    Both signatures return every named endpoint (``final_avg_pool``, ``proj_head_output``, ``logits_sup`` …):

    * ``serve`` (also ``serving_default``) takes raw images, uint8 ``[n, height, width, 3]`` of any size, and crops and
      resizes them as for evaluation.
    * ``train`` takes augmented images, float32 ``[n, image_size, image_size, 3]`` in [0, 1], normalizes with batch
      statistics and updates the moving ones. ``loaded.signatures["train"].trainable_variables`` can be fine-tuned.

    Args:
        network: built and trainable in all parts.
        image_size: px.
        resize_method: for ``serve``, as for ``augment.center_crop_and_resize``.
    """

    def __init__(self, network: Network, image_size: int, resize_method: str = "bicubic"):
        super().__init__()
        self.variables_of_network = [variable.value for variable in network.variables]
        size = (image_size, image_size)

        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
        def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
            def prepare(image: tf.Tensor) -> tf.Tensor:
                return tf.ensure_shape(center_crop_and_resize(image, size, method=resize_method), [*size, 3])

            views = tf.map_fn(prepare, images, fn_output_signature=tf.TensorSpec([*size, 3], tf.float32))
            return network(views, training=False, whole_head=True)

        @tf.function(input_signature=[tf.TensorSpec([None, *size, 3], tf.float32, name="images")])
        def train(images: tf.Tensor) -> dict[str, tf.Tensor]:
            return network(images, training=True, whole_head=True)

        self.serve = serve
        self.train = train


def save_saved_model(network: Network, image_size: int, path: pathlib.Path, resize_method: str = "bicubic") -> None:
    """Writes the SavedModel directory ``path`` atomically, in place of an earlier one.

    Args:
        network: built with TensorFlow's batch norm (``BatchNormSettings(fused=True)``), whose gradient can be saved.
        image_size: px.
        path: the directory.
        resize_method: for the signature ``serve``.
    """
    module = ExportedModule(network, image_size, resize_method)
    signatures = {"serve": module.serve, "serving_default": module.serve, "train": module.train}
    with _replacing_directory(path) as unfinished:
        tf.saved_model.save(module, str(unfinished), signatures)


def check_onnx_packages() -> None:
    """Raises SettingError if the packages for ONNX are not installed."""
    if not all(map(importlib.util.find_spec, ("tf2onnx", "onnx"))):
        raise SettingError("--format=onnx: needs pip install tf2onnx onnx")


def save_onnx(network: Network, image_size: int, path: pathlib.Path) -> None:
    """Writes an ONNX file for inference atomically. It returns every endpoint.

    Its input is ``images``, float32 ``[n, image_size, image_size, 3]`` in [0, 1]. The caller crops and resizes, because
    no two runtimes resize alike. (Keras's own ``export(format="onnx")`` also uses tf2onnx, but calls the network with
    its default arguments, which leave out the head if there is a classifier.)

    Args:
        network: built with TensorFlow's batch norm.
        image_size: px.
        path: the file.

    Raises:
        SettingError: if the network is too large for an ONNX file.
    """
    import tf2onnx

    size = sum(variable.value.dtype.size * variable.value.shape.num_elements() for variable in network.variables)
    if size >= ONNX_BYTES:
        raise SettingError(f"--format=onnx: the network's {size / 1e9:.1f} GB do not fit into an ONNX file (2 GB)")

    @tf.function(input_signature=[tf.TensorSpec([None, image_size, image_size, 3], tf.float32, name="images")])
    def infer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return network(images, training=False, whole_head=True)

    model, _ = tf2onnx.convert.from_function(infer, infer.input_signature, opset=ONNX_OPSET)
    write_atomically(path, model.SerializeToString())


def save_tf1_checkpoint(network: Network, step: int, path: pathlib.Path) -> None:
    """Writes the directory ``path`` with ``model.ckpt-STEP`` atomically, in place of an earlier one.

    It holds the network under its TF1 names and ``global_step``, for ``--checkpoint`` of the official code and for
    ``tf.compat.v1.train.Saver``.

    Args:
        network: built.
        step: number of training steps.
        path: the directory.

    Raises:
        SettingError: if the encoder is not a ``ResNet``.
    """
    try:
        variables = official_names(network)
    except ValueError as error:
        raise SettingError(f"--format=tf1_checkpoint: {error}; use saved_model or onnx") from None
    tensors = {name: tf.convert_to_tensor(variable.value) for name, variable in variables.items()}
    tensors["global_step"] = tf.constant(step, tf.int64)
    name = f"model.ckpt-{step}"
    with _replacing_directory(path) as unfinished:
        unfinished.mkdir(parents=True)
        # As Saver does, without its deprecation warning.
        tf.raw_ops.SaveV2(
            prefix=str(unfinished / name),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
        (unfinished / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n', encoding="utf-8")


@contextlib.contextmanager
def _replacing_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary directory that replaces ``path`` at the end."""
    unfinished = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)
