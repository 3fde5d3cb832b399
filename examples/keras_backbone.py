"""Pretrains a network from keras.applications without labels, then fine-tunes it on a few.

    pip install .
    python examples/keras_backbone.py

The images are scikit-learn's 1,797 handwritten digits, which need no download. Instead of MobileNet you can use any
Keras model from images to features ``[n, d]``, and instead of the digits any ``tf.data.Dataset`` of images.
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
parser.add_argument("--alpha", type=float, default=0.25, help="width multiplier of MobileNet")
args = parser.parse_args()

keras.utils.set_random_seed(0)
digits = load_digits()
enlarged = tf.image.resize(digits.images[..., None] / 16, [args.image_size] * 2)
images = np.repeat(enlarged, 3, axis=-1)  # float32 [1797, size, size, 3] in [0, 1]
train_images, test_images = images[:1297], images[1297:]
train_labels, test_labels = digits.target[:1297], digits.target[1297:]

# The lower half of MobileNet: the whole network would reduce images this small to one pixel. SimCLR adds a projection
# head of three layers. Keras's batch norm needs a thousand steps to learn its statistics; with momentum 0.9, fifty.
mobilenet = keras.applications.MobileNet(images.shape[1:], args.alpha, include_top=False, weights=None)
pooled = keras.layers.GlobalAveragePooling2D()(mobilenet.get_layer("conv_pw_5_relu").output)
backbone = keras.Model(mobilenet.input, pooled, name="backbone")
for layer in backbone.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.9

# 1. Pretrain without labels. Digits have no colors, and their mirror images mean something else.
views = ViewSettings(args.image_size, crop_area_min=0.4, flip=False, color_jitter_strength=0, blur_probability=0)
unlabelled = tf.data.Dataset.from_tensor_slices(train_images).shuffle(len(train_images))
simclr = SimCLR(backbone, views, temperature=0.5)
batches = view_batches(unlabelled, args.batch_size, views)
steps = args.epochs * len(batches)
simclr.compile(LARS(WarmUpCosine(1.0, steps, steps // 10), weight_decay=1e-4))
simclr.fit(batches, epochs=args.epochs)

features = [backbone.predict(part, verbose=0) for part in (train_images, test_images)]
print(f"kNN on the features: {knn_accuracy(features[0], train_labels, features[1], test_labels):.1%}")

# 2. Fine-tune on a few labels per class, from the first layer of the projection head.
few = np.concatenate([np.flatnonzero(train_labels == label)[: args.labels_per_class] for label in range(10)])
labelled = tf.data.Dataset.from_tensor_slices((train_images[few], train_labels[few])).shuffle(len(few))
network = Network(backbone, simclr.network.projection_head, num_classes=10, head_input=1)
tuned = ClassificationModel(network, views)
tuned.compile(LARS(WarmUpCosine(0.1, args.epochs, args.epochs // 10)))  # or any Keras optimizer
tuned.fit(view_batches(labelled, min(len(few), args.batch_size), views, num_views=1), epochs=args.epochs)

predictions = network.predict(test_images, verbose=0)["logits_sup"].argmax(axis=1)
print(f"fine-tuned on {args.labels_per_class} labels per class: {np.mean(predictions == test_labels):.1%}")
