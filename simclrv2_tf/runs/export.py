"""A trained network for other programs: a SavedModel that needs only TensorFlow, ONNX, an official checkpoint."""

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


class Exported(tf.Module):
    """What the SavedModel holds.

    Signatures, both giving every named endpoint (``final_avg_pool``, ``proj_head_output``, ``logits_sup`` …):

    * ``serve`` (also ``serving_default``): raw images, uint8 ``[n, height, width, 3]`` of any size, which are cropped
      and resized as for evaluation.
    * ``train``: float32 ``[n, image_size, image_size, 3]`` in [0, 1], already augmented; batch statistics, and the
      moving ones move. ``loaded.signatures["train"].trainable_variables`` is what to fine-tune.

    Args:
        network: built; trainable in all parts.
        image_size: pixels a side.
        resize_method: of ``serve``, as of ``augment.center_crop_and_resize``.
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
    """Writes the SavedModel directory ``path``, whole or not at all; an earlier one gives way.

    Args:
        network: built without XLA's batch norm (``BatchNormSettings(fused=True)``), whose gradient is saved with it.
        image_size: pixels a side.
        path: the directory.
        resize_method: of the signature ``serve``.
    """
    module = Exported(network, image_size, resize_method)
    signatures = {"serve": module.serve, "serving_default": module.serve, "train": module.train}
    with _replacing(path) as unfinished:
        tf.saved_model.save(module, str(unfinished), signatures)


def check_onnx_packages() -> None:
    """Raises SettingError where ONNX files cannot be written."""
    if not all(map(importlib.util.find_spec, ("tf2onnx", "onnx"))):
        raise SettingError("--format=onnx: needs pip install tf2onnx onnx")


def save_onnx(network: Network, image_size: int, path: pathlib.Path) -> None:
    """Writes ONNX for inference, whole or not at all: every endpoint of views as they come out of the evaluation crop.

    Its input is ``images``, float32 ``[n, image_size, image_size, 3]`` in [0, 1]; cropping and resizing are the
    caller's, as no two runtimes resize alike. (Keras's own ``export(format="onnx")`` goes the same way, but
    calls the network with its default arguments, which leave the head out where there is a classifier.)

    Args:
        network: built without XLA's batch norm.
        image_size: pixels a side.
        path: the file.

    Raises:
        SettingError: for a network that is larger than an ONNX file can be.
    """
    import tf2onnx

    size = sum(variable.value.dtype.size * variable.value.shape.num_elements() for variable in network.variables)
    if size >= ONNX_BYTES:
        raise SettingError(f"--format=onnx: the network's {size / 1e9:.1f} GB do not fit into an ONNX file of 2 GB")

    @tf.function(input_signature=[tf.TensorSpec([None, image_size, image_size, 3], tf.float32, name="images")])
    def infer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return network(images, training=False, whole_head=True)

    model, _ = tf2onnx.convert.from_function(infer, infer.input_signature, opset=ONNX_OPSET)
    write_atomically(path, model.SerializeToString())


def save_tf1_checkpoint(network: Network, step: int, path: pathlib.Path) -> None:
    """Writes the directory ``path`` with ``model.ckpt-STEP``, whole or not at all; an earlier one gives way.

    The official code reads it with ``--checkpoint``, as does ``tf.compat.v1.train.Saver``: the network under its TF1
    names, and ``global_step``.

    Args:
        network: built.
        step: of training.
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
    with _replacing(path) as unfinished:
        unfinished.mkdir(parents=True)
        # What Saver does, without its warning that it is of TensorFlow 1.
        tf.raw_ops.SaveV2(
            prefix=str(unfinished / name),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
        (unfinished / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n', encoding="utf-8")


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory to write, which takes the place of ``path`` when it is whole."""
    unfinished = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)
