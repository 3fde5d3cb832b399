"""Encoder, projection head and classifier as one network with named endpoints."""

import os
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.models.batch_norm import statistics_dtype
from simclrv2_tf.models.heads import Classifier, ProjectionHead
from simclrv2_tf.models.input_range import InputRange, checked_input_range


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class Network(keras.Model):
    """Network for pretraining, fine-tuning and distillation.

    ``build((None, None, None, 3))`` creates all variables without running the network.

    Args:
        encoder: a ``ResNet``, or any Keras model from images to features ``[n, d]`` or to a dict with features
            ``final_avg_pool``.
        projection_head: by default a head of three layers.
        num_classes: 0 for no classifier.
        head_input: tap of the head that the classifier reads (``ft_proj_selector``): 0 the features, k the k-th layer.
        zero_init_classifier: start the classifier from zeros.
        input_range: values that the encoder expects: "0..1", "-1..1", "0..255", "imagenet" or "caffe", see
            ``InputRange``. The network itself takes images in [0, 1].

    Raises:
        ValueError: if the head has no tap ``head_input``, or a Rescaling or Normalization layer of the encoder expects
            another input range.

    Example:
        >>> network = Network(ResNet(10, 0.0625, stem="cifar"), ProjectionHead(out_dim=16), num_classes=10)
        >>> endpoints = network(np.ones((2, 32, 32, 3), "float32"), whole_head=True)
        >>> [tuple(endpoints[name].shape) for name in ("final_avg_pool", "proj_head_output", "logits_sup")]
        [(2, 32), (2, 16), (2, 10)]
    """

    def __init__(
        self,
        encoder: keras.Model,
        projection_head: ProjectionHead | None = None,
        num_classes: int = 0,
        head_input: int = 0,
        zero_init_classifier: bool = False,
        input_range: str = "0..1",
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", encoder.dtype_policy)
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.encoder = encoder
        self.input_range = checked_input_range(encoder, input_range)
        self.convert = None
        if input_range != "0..1":
            dtype = statistics_dtype(self.variable_dtype).name  # in half precision the mean would lose digits
            self.convert = InputRange(input_range, dtype=dtype, name="input_range")
        self.projection_head = projection_head or ProjectionHead(dtype=policy, name="projection_head")
        self.num_classes = num_classes
        self.zero_init_classifier = zero_init_classifier
        self.classifier = None
        if num_classes:
            self.classifier = Classifier(num_classes, zero_init_classifier, dtype=policy, name="classifier")
        self.head_input = self._checked_tap(head_input)

    def _checked_tap(self, tap: int) -> int:
        if not 0 <= tap <= self.projection_head.depth:
            raise ValueError(f"ft_proj_selector must be 0 to {self.projection_head.depth} for this head, not {tap}")
        return tap

    def build(self, input_shape: tuple[int | None, ...] = (None, None, None, 3)) -> None:
        self.feature_dim = feature_dim = _feature_dim(self.encoder, input_shape)
        if not self.projection_head.built:  # a deserialised head is
            self.projection_head.build((None, feature_dim))
        if self.classifier is not None:
            self.classifier.build((None, self.projection_head.tap_dim(self.head_input, feature_dim)))

    def __call__(self, images: tf.Tensor, *args: Any, **kwargs: Any) -> dict[str, tf.Tensor]:
        """Calls the network, see ``call``.

        Raises:
            ValueError: if the images are not RGB.
        """
        check_images(images)
        return super().__call__(images, *args, **kwargs)

    def call(
        self,
        images: tf.Tensor,
        training: bool = False,
        head_input: int | None = None,
        whole_head: bool = False,
        stop_gradient_to_classifier: bool = False,
    ) -> dict[str, tf.Tensor]:
        """Runs the network.

        Args:
            images: ``[n, h, w, 3]`` floats in [0, 1].
            training: normalise with batch statistics, except in frozen parts.
            head_input: tap that the classifier reads instead of the network's own; it must have the same width.
            whole_head: run the whole head even if there is a classifier. By default, layers above the classifier's tap
                do not run: they cost nothing and keep their moving statistics. Without a classifier all layers run.
            stop_gradient_to_classifier: block the classifier's gradient to the layers below (online evaluation).

        Returns:
            The encoder's endpoints; ``proj_head_input`` and ``proj_head_1`` … for the layers of the head that run;
            ``proj_head_output``, the last of them, if the whole head runs; and with a classifier
            ``logits_sup [n, num_classes]``, float32.
        """
        images = images if self.convert is None else self.convert(images)
        # a frozen encoder's features are those of evaluation, also without its dropout
        outputs = self.encoder(images, training=training and self.encoder.trainable)
        endpoints = dict(outputs) if isinstance(outputs, dict) else {"final_avg_pool": outputs}
        tap = self.head_input if head_input is None else self._checked_tap(head_input)
        depth = self.projection_head.depth if whole_head or self.classifier is None else tap
        taps = self.projection_head(endpoints["final_avg_pool"], training=training, depth=depth)
        endpoints["proj_head_input"] = taps[0]
        endpoints |= {f"proj_head_{index}": output for index, output in enumerate(taps) if index > 0}
        if depth == self.projection_head.depth:
            endpoints["proj_head_output"] = taps[-1]
        if self.classifier is not None:
            features = tf.stop_gradient(taps[tap]) if stop_gradient_to_classifier else taps[tap]
            endpoints["logits_sup"] = self.classifier(features)
        return endpoints

    @classmethod
    def from_official(cls, path: str | os.PathLike[str], head_input: int | None = None) -> "Network":
        """Builds the network of a checkpoint of google-research/simclr and loads its weights.

        Args:
            path: a TF1 or TF2 checkpoint without suffix (``…/model.ckpt-250228``) or its directory.
            head_input: layer of the projection head that the classifier reads, see ``official_checkpoints.md``.

        Returns:
            The network, built. In inference it equals the authors' network for RGB images in [0, 1].

        Raises:
            ValueError: if it cannot be read or does not contain a complete SimCLR network.
        """
        from simclrv2_tf.runs.official import load_official_network  # reads files, and builds on this module

        return load_official_network(os.fspath(path), head_input)

    @property
    def output_shape(self) -> tuple[int | None, int]:
        """Returns the shape of the logits, or without a classifier of the projections; shown by ``summary``."""
        return (None, self.num_classes or self.projection_dim)

    @property
    def projection_dim(self) -> int:
        """Returns the width of ``proj_head_output``."""
        return self.projection_head.tap_dim(self.projection_head.depth, self.feature_dim)

    def parts(self) -> dict[str, keras.layers.Layer]:
        """Returns the encoder, the projection head and, if there is one, the classifier, by name."""
        parts = {"encoder": self.encoder, "projection_head": self.projection_head}
        return parts | ({} if self.classifier is None else {"classifier": self.classifier})

    def freeze_encoder(self, after_block: int) -> None:
        """Freezes the encoder up to a block group; frozen batch norms keep their statistics.

        Args:
            after_block: −1 freezes nothing, 0 the stem, k the stem and block groups 1 to k; 4 freezes everything.

        Raises:
            ValueError: for 0 to 3 if the encoder has no block groups.
        """
        if hasattr(self.encoder, "freeze_after_block"):
            self.encoder.freeze_after_block(after_block)
        elif after_block in (-1, 4):
            self.encoder.trainable = after_block == -1
        else:
            raise ValueError(f"fine_tune_after_block={after_block}: this encoder has no block groups; use -1 or 4")

    @property
    def encoder_variables(self) -> list[keras.Variable]:
        """Returns the encoder's trainable variables, without those of frozen parts."""
        return self.encoder.trainable_variables

    def head_variables(self, selector: int | None = None) -> list[keras.Variable]:
        """Returns the trainable variables of the head's layers 1 to ``selector``, which ``head_input=selector`` trains.

        Args:
            selector: None for all layers.

        Raises:
            ValueError: if the head has no such layer.
        """
        depth = self.projection_head.depth if selector is None else self._checked_tap(selector)
        return [v for layer in self.projection_head.layers[:depth] for v in layer.trainable_variables]

    @property
    def classifier_variables(self) -> list[keras.Variable]:
        """Returns the classifier's trainable variables; none without a classifier."""
        return [] if self.classifier is None else self.classifier.trainable_variables

    def get_config(self) -> dict:
        return super().get_config() | {
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "projection_head": keras.saving.serialize_keras_object(self.projection_head),
            "num_classes": self.num_classes,
            "head_input": self.head_input,
            "zero_init_classifier": self.zero_init_classifier,
            "input_range": self.input_range,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Network":
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("encoder", "projection_head")
        }
        return cls(**(config | parts))


def check_images(images: Any) -> None:
    """Raises ValueError if the known part of the shape is not ``[n, h, w, 3]``."""
    shape = tf.TensorShape(images.shape)
    if not shape.is_compatible_with([None, None, None, 3]):
        raise ValueError(f"images must be RGB, [n, height, width, 3], not {shape}")


def built_network(model: keras.Model, image_size: int, input_range: str | None = None) -> Network:
    """Returns a network built for square images; gives any other Keras model a projection head of three layers.

    Raises:
        ValueError: if a ``Network`` has another input range.
    """
    network = model if isinstance(model, Network) else Network(model, input_range=input_range or "0..1", name="network")
    if input_range not in (None, network.input_range):
        raise ValueError(f'input_range="{input_range}": the network has "{network.input_range}"; pass it to Network(…)')
    shape = (None, image_size, image_size, 3)
    if not network.built:
        network.build(shape)
    if not network._build_shapes_dict:  # which ``summary`` needs to show shapes
        network._build_shapes_dict = {"input_shape": shape}
    return network


def _feature_dim(encoder: keras.Model, input_shape: tuple[int | None, ...]) -> int:
    """Builds the encoder and returns the width of its features.

    Raises:
        ValueError: if they are not ``[n, d]`` with a known d.
    """
    if not encoder.built:
        encoder.build(input_shape)
    if hasattr(encoder, "feature_dim"):
        return encoder.feature_dim
    images = keras.KerasTensor(input_shape, dtype=encoder.compute_dtype)
    features = encoder.compute_output_spec(images)
    features = features["final_avg_pool"] if isinstance(features, dict) else features
    if len(features.shape) != 2 or features.shape[-1] is None:
        raise ValueError(
            f"the encoder's features must be [n, d] with d known, not {tuple(features.shape)}; "
            'models of keras.applications take include_top=False, pooling="avg"'
        )
    return features.shape[-1]
