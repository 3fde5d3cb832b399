"""Pretrains a ResNet without labels on a folder of images, including its sub-folders, and saves the encoder.

    pip install .
    python examples/pretrain_folder.py /data/birds --epochs=200

The encoder is a Keras model from images ``[n, size, size, 3]`` in [0, 1] to features. To load it, call
``keras.saving.load_model("encoder.keras")`` after ``import simclrv2_tf``. The command line does the same with
checkpoints, evaluation and a report: ``simclrv2-tf --mode=pretrain --dataset=folder:/data/birds``.
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
parser.add_argument("--width", type=float, default=1, help="multiplies every channel count")
parser.add_argument("--output", default="encoder.keras")
args = parser.parse_args()

# Images of any size, decoded one by one.
files = sorted(str(path) for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def read_image(path: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


images = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).map(read_image, tf.data.AUTOTUNE)

# Two random views of each image, and the network that learns which views belong together.
views = ViewSettings(args.image_size)
batches = view_batches(images, args.batch_size, views)
gpu = bool(tf.config.list_physical_devices("GPU"))  # XLA is several times faster there, and slower on a CPU
stem = "cifar" if args.image_size <= 32 else "imagenet"
encoder = ResNet(args.depth, args.width, stem=stem, batch_norm=BatchNormSettings(fused=not gpu))
model = SimCLR(encoder, views)

# LARS with linear warm-up over a tenth of the steps, then cosine decay.
steps = args.epochs * len(batches)
peak_rate = 0.3 * args.batch_size / 256
model.compile(LARS(WarmUpCosine(peak_rate, steps, steps // 10), weight_decay=1e-4), jit_compile=gpu)
model.fit(batches, epochs=args.epochs)

encoder.save(args.output)
print(f"{args.output}: encoder with {encoder.feature_dim} features, pretrained on {len(files):,} images")
