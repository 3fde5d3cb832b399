"""Classifies image files with an exported network. Needs only TensorFlow, not this package.

    python run.py --mode=export --checkpoint=runs/birds-r18
    python examples/serve.py runs/birds-r18/saved_model photo.jpg another.png

A network that was only pretrained has no classifier; for it the script prints a summary of the features.
"""

import argparse

import tensorflow as tf

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("saved_model", help="load only a SavedModel that you trust: it is a program")
parser.add_argument("images", nargs="+", help="JPEG or PNG files")
parser.add_argument("--top", type=int, default=3, help="number of classes to print")
args = parser.parse_args()

model = tf.saved_model.load(args.saved_model)
class_names = [name.decode() for name in model.class_names.numpy()]
for path in args.images:
    outputs = model.signatures["serve_encoded"](image_bytes=tf.io.read_file(path)[None])
    if class_names:
        best = tf.math.top_k(outputs["probabilities"][0], min(args.top, len(class_names)))
        pairs = zip(best.indices.numpy(), best.values.numpy(), strict=True)
        print(f"{path}: " + ", ".join(f"{class_names[label]} {probability:.1%}" for label, probability in pairs))
    else:
        features = outputs["features"][0]
        print(f"{path}: {features.shape[0]} features, the largest at index {tf.argmax(features)}")
