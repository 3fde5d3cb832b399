"""Rematerialisation: a layer whose activations are computed again in the backward pass instead of kept."""

import keras
import tensorflow as tf


def call_with_remat(layer: keras.layers.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """``layer(inputs, training=True)``, of which only the inputs are kept for the gradient ("Training Deep Nets with
    Sublinear Memory Cost", arXiv 1604.06174).

    The layer runs as a function of its variables, so that what it changes, the moving statistics of batch norm, is
    changed once, though it runs twice.
    """
    trainable, state = layer.trainable_variables, layer.non_trainable_variables

    @tf.recompute_grad
    def run(inputs: tf.Tensor, trained: list[tf.Tensor], state: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        return layer.stateless_call(trained, state, inputs, training=True)

    outputs, changed = run(inputs, [tf.identity(v.value) for v in trainable], [tf.identity(v.value) for v in state])
    for variable, value in zip(state, changed, strict=True):
        variable.assign(value)
    return outputs
