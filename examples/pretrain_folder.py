"""Pretrains a ResNet on a folder of images, sub-folders too, without labels, and saves the encoder.

    pip install .
    python examples/pretrain_folder.py /data/birds --epochs=200

The encoder is a Keras model from images ``[n, size, size, 3]`` in [0, 1] to features: after ``from simclrv2_tf import
ResNet``, ``keras.saving.load_model("encoder.keras")`` brings it back. ``simclrv2-tf --mode=pretrain
--dataset=folder:/data/birds`` does the same with checkpoints, evaluation and a report.
"""

import argparse
import pathlib

import tensorflow as tf

from simclrv2_tf import LARS, BatchNormSettings, ResNet, SimCLR, ViewSettings, WarmUpCosine, view_batches

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--image_size", type=int, default=224)
parser.add_argument("--batch_size", type=int, default=256)
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--depth", type=int, default=50)
parser.add_argument("--width", type=float, default=1, help="multiplies the channels")
parser.add_argument("--output", default="encoder.keras")
args = parser.parse_args()

# The images, decoded one by one, of any sizes.
files = sorted(str(path) for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def read(path: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


images = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).map(read, tf.data.AUTOTUNE)

# Two random views of each, and the network that is to tell which belong together.
views = ViewSettings(args.image_size)
batches = view_batches(images, args.batch_size, views)
gpu = bool(tf.config.list_physical_devices("GPU"))  # where XLA is several times faster, and on a CPU it is slower
stem = "cifar" if args.image_size <= 32 else "imagenet"
encoder = ResNet(args.depth, args.width, stem=stem, batch_norm=BatchNormSettings(fused=not gpu))
model = SimCLR(encoder, views)

# LARS, warmed up over a tenth of the steps, then a cosine.
steps = args.epochs * len(batches)
rate = 0.3 * args.batch_size / 256
model.compile(LARS(WarmUpCosine(rate, steps, steps // 10), weight_decay=1e-4), jit_compile=gpu)
model.fit(batches, epochs=args.epochs)

encoder.save(args.output)
print(f"{args.output}: an encoder of {encoder.feature_dim} features, from {len(files):,} images")
