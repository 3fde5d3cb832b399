"""Exports a trained network as a SavedModel, which needs only TensorFlow."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import tensorflow as tf

from simclrv2_tf.data.cropping import center_crop_and_resize
from simclrv2_tf.data.decoding import decode_in_graph
from simclrv2_tf.files import replacing
from simclrv2_tf.models.network import Network
from simclrv2_tf.models.resnet import ResNet
from simclrv2_tf.runs.export import features_and_probabilities, name_lines, printable_names
from simclrv2_tf.settings.config import check_arguments

NOT_IN_RANGE = "images must be in [0, 1]: divide by 255, or use the signature serving_default for uint8. The maximum is"


class ExportedModel(tf.__internal__.tracking.AutoTrackable):
    """Content of the SavedModel. It is called like the SavedModels of the official TF2 code.

    ``model(images, trainable)`` takes augmented or cropped images, float32 ``[n, h, w, 3]`` in [0, 1], and returns
    every named endpoint (``final_avg_pool``, ``proj_head_output``, ``logits_sup`` …). ``trainable=True`` normalizes
    with batch statistics, updates the moving ones and passes gradients to ``trainable_variables``.

    Attributes:
        variables: all variables of the network.
        trainable_variables: those that gradients update; also under the official name ``trainable_variables_list``.
        class_names: string variable ``[num_classes]``.
        class_names_file: the same names as a text asset, one per line.
    """

    def __init__(self, network: Network, image_size: int, class_names: Sequence[str], class_names_file: pathlib.Path):
        super().__init__()
        self._run = functools.partial(network, whole_head=True)  # a Keras model as an attribute would be saved too
        self.variables = [variable.value for variable in network.variables]
        self.trainable_variables = [variable.value for variable in network.trainable_variables]
        self.trainable_variables_list = self.trainable_variables
        self.class_names = tf.Variable(tf.constant(class_names, tf.string, [len(class_names)]), trainable=False)
        self.class_names_file = tf.saved_model.Asset(str(class_names_file))
        side = None if isinstance(network.encoder, ResNet) else image_size  # others may be built for one size
        self.views_spec = tf.TensorSpec([None, side, side, 3], tf.float32, name="images")
        for trainable in (True, False):
            self.__call__.get_concrete_function(self.views_spec, trainable=trainable)

    @tf.function(autograph=False)
    def __call__(self, inputs: tf.Tensor, trainable: bool) -> dict[str, tf.Tensor]:
        return self._run(inputs, training=trainable)

    def classify(self, views: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns ``features``, and with a classifier ``probabilities`` and ``class_name``, the most probable one."""
        outputs = features_and_probabilities(self(views, trainable=False))
        if "probabilities" in outputs:
            outputs["class_name"] = tf.gather(self.class_names, tf.argmax(outputs["probabilities"], axis=-1))
        return outputs


def build_signatures(
    model: ExportedModel, image_size: int, resize_method: str, image_bits: int = 0
) -> dict[str, Callable]:
    """Builds the signatures of a SavedModel. All but ``views`` and ``train`` crop and resize as evaluation does.

    * ``serving_default`` takes ``images``, uint8 ``[n, h, w, 3]``, and returns ``probabilities [n, num_classes]``,
      ``class_name [n]`` and ``features [n, d]``; without a classifier only the features.
    * ``serve_float`` does so for float32 images in [0, 1]. Other values raise InvalidArgumentError.
    * ``serve_encoded`` does so for ``image_bytes``, a string vector of JPEG and PNG files, which it decodes as training
      does: upright, on white, with ``image_bits`` of 16.
    * ``endpoints`` takes uint8 images and returns every endpoint.
    * ``views`` is ``model(images, trainable=False)``, for programs that call signatures alone.
    * ``train`` is ``model(images, trainable=True)``.
    """
    any_size, size = [None, None, None, 3], (image_size, image_size)
    decode_file = functools.partial(decode_in_graph, image_bits=image_bits)

    def crop(image: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(center_crop_and_resize(image, size, method=resize_method), [*size, 3])

    def crop_each(images: tf.Tensor, decode: Callable[[tf.Tensor], tf.Tensor] = tf.identity) -> tf.Tensor:
        view = tf.TensorSpec([*size, 3], tf.float32)
        return tf.map_fn(lambda image: crop(decode(image)), images, fn_output_signature=view)

    @tf.function(input_signature=[tf.TensorSpec(any_size, tf.uint8, name="images")], autograph=False)
    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return model.classify(crop_each(images))

    @tf.function(input_signature=[tf.TensorSpec(any_size, tf.float32, name="images")], autograph=False)
    def serve_float(images: tf.Tensor) -> dict[str, tf.Tensor]:
        is_in_range = tf.reduce_all((images > -1) & (images < 2))  # resizing overshoots slightly
        with tf.control_dependencies([tf.debugging.Assert(is_in_range, [NOT_IN_RANGE, tf.reduce_max(images)])]):
            return model.classify(crop_each(tf.identity(images)))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False)
    def serve_encoded(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return model.classify(crop_each(image_bytes, decode_file))

    @tf.function(input_signature=[tf.TensorSpec(any_size, tf.uint8, name="images")], autograph=False)
    def endpoints(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return model(crop_each(images), trainable=False)

    @tf.function(input_signature=[model.views_spec], autograph=False)
    def views(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return model(images, trainable=False)

    @tf.function(input_signature=[model.views_spec], autograph=False)
    def train(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return model(images, trainable=True)

    served = {"serve_float": serve_float, "serve_encoded": serve_encoded}
    return {"serving_default": serve, **served, "endpoints": endpoints, "views": views, "train": train}


def save_saved_model(
    network: Network,
    image_size: int,
    path: pathlib.Path,
    resize_method: str = "bicubic",
    class_names: Sequence[str] = (),
    image_bits: int = 0,
) -> None:
    """Writes a SavedModel directory; ``ExportedModel`` and ``build_signatures`` describe it.

    Args:
        network: built, without a distribution strategy, with ``BatchNormSettings(fused=True)``, whose gradient can be
            saved.
        image_size: px.
        path: the directory; an earlier one is replaced as a whole.
        resize_method: of the signatures, as for ``cropping.center_crop_and_resize``.
        class_names: by default the classes are numbered.
        image_bits: of encoded images with 16 bits per channel, the bits in use; 0: all.

    Raises:
        ValueError: if the number of names is not that of the classes, a setting is out of bounds, or the network is
            not built.
    """
    check_arguments(image_size=image_size, eval_resize=resize_method, image_bits=image_bits)
    if not network.built:
        raise ValueError("the network must be built before it is saved: call network.build()")
    names = printable_names(class_names, network.num_classes)
    with replacing(path) as unfinished:
        names_file = unfinished.with_name("class_names.txt")
        names_file.write_text(name_lines(names), encoding="utf-8")
        model = ExportedModel(network, image_size, names, names_file)
        signatures = build_signatures(model, image_size, resize_method, image_bits)
        tf.saved_model.save(model, str(unfinished), signatures)
