"""A trained network as a SavedModel that needs only TensorFlow."""

import pathlib
import shutil

import tensorflow as tf

from simclrv2_tf.data.augment import center_crop_and_resize
from simclrv2_tf.nets.network import Network


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


def save(network: Network, image_size: int, path: pathlib.Path, resize_method: str = "bicubic") -> None:
    """Writes the SavedModel directory ``path``, whole or not at all; an earlier one gives way.

    Args:
        network: built without XLA's batch norm (``BatchNormSettings(fused=True)``), whose gradient is saved with it.
        image_size: pixels a side.
        path: the directory.
        resize_method: of the signature ``serve``.
    """
    module = Exported(network, image_size, resize_method)
    unfinished = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    signatures = {"serve": module.serve, "serving_default": module.serve, "train": module.train}
    tf.saved_model.save(module, str(unfinished), signatures)
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)
