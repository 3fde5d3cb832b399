"""Pretrains a network of keras.applications on images without labels, then fine-tunes it on a few labels.

    pip install .
    python examples/keras_backbone.py

The images are scikit-learn's 1,797 handwritten digits, which need no download. Any Keras model that maps images to
features ``[n, d]`` can take MobileNet's place, and any ``tf.data.Dataset`` of images the digits'.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from simclrv2_tf import (
    LARS,
    ClassificationModel,
    Network,
    SimCLR,
    ViewSettings,
    WarmUpCosine,
    knn_accuracy,
    view_batches,
)

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--image_size", type=int, default=32)
parser.add_argument("--batch_size", type=int, default=128)
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--labels_per_class", type=int, default=10)
parser.add_argument("--alpha", type=float, default=0.25, help="MobileNet's width")
args = parser.parse_args()

keras.utils.set_random_seed(0)
digits = load_digits()
enlarged = tf.image.resize(digits.images[..., None] / 16, [args.image_size] * 2)
images = np.repeat(enlarged, 3, axis=-1)  # float32 [1797, size, size, 3] in [0, 1]
train_images, test_images = images[:1297], images[1297:]
train_labels, test_labels = digits.target[:1297], digits.target[1297:]

# The lower half of MobileNet, as images this small are nothing but a pixel after the whole; SimCLR puts a projection
# head of three layers on it. Keras's batch norms take a thousand steps to know their statistics: 0.9 takes fifty.
whole = keras.applications.MobileNet(images.shape[1:], args.alpha, include_top=False, weights=None)
pooled = keras.layers.GlobalAveragePooling2D()(whole.get_layer("conv_pw_5_relu").output)
backbone = keras.Model(whole.input, pooled, name="backbone")
for layer in backbone.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.9

# 1. Without labels. Digits have no colours, and mean something else in a mirror.
views = ViewSettings(args.image_size, crop_area_min=0.4, flip=False, color_jitter_strength=0, blur_probability=0)
unlabelled = tf.data.Dataset.from_tensor_slices(train_images).shuffle(len(train_images))
simclr = SimCLR(backbone, views, temperature=0.5)
batches = view_batches(unlabelled, args.batch_size, views)
steps = args.epochs * len(batches)
simclr.compile(LARS(WarmUpCosine(1.0, steps, steps // 10), weight_decay=1e-4))
simclr.fit(batches, epochs=args.epochs)

features = [backbone.predict(part, verbose=0) for part in (train_images, test_images)]
print(f"nearest neighbours: {knn_accuracy(features[0], train_labels, features[1], test_labels):.1%}")

# 2. On a few labels of each class, from the first layer of the projection head.
few = np.concatenate([np.flatnonzero(train_labels == label)[: args.labels_per_class] for label in range(10)])
labelled = tf.data.Dataset.from_tensor_slices((train_images[few], train_labels[few])).shuffle(len(few))
network = Network(backbone, simclr.network.projection_head, num_classes=10, head_input=1)
tuned = ClassificationModel(network, views)
tuned.compile(LARS(WarmUpCosine(0.1, args.epochs, args.epochs // 10)))  # any Keras optimizer does
tuned.fit(view_batches(labelled, min(len(few), args.batch_size), views, num_views=1), epochs=args.epochs)

found = network.predict(test_images, verbose=0)["logits_sup"].argmax(axis=1)
print(f"fine-tuned on {args.labels_per_class} labels a class: {np.mean(found == test_labels):.1%}")
