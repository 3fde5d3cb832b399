"""Classifies image files with an exported network. Needs only TensorFlow, not this package.

    python run.py --mode=export --checkpoint=runs/birds-r18
    python examples/serve.py runs/birds-r18/saved_model photo.jpg another.png

A network that was only pretrained has no classifier; for it the script prints a summary of the features.
"""

import argparse

import tensorflow as tf

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("saved_model", help="load only a SavedModel that you trust: it is a program")
parser.add_argument("images", nargs="+")
parser.add_argument("--top", type=int, default=3, help="number of classes to print")
args = parser.parse_args()

serve = tf.saved_model.load(args.saved_model).signatures["serve"]
for path in args.images:
    image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)  # uint8 [h, w, 3]
    outputs = serve(images=image[None])
    if "logits_sup" in outputs:
        best = tf.math.top_k(tf.nn.softmax(outputs["logits_sup"][0]), min(args.top, outputs["logits_sup"].shape[1]))
        pairs = zip(best.indices.numpy(), best.values.numpy(), strict=True)
        print(f"{path}: " + ", ".join(f"class {label} {probability:.1%}" for label, probability in pairs))
    else:
        features = outputs["final_avg_pool"][0]
        print(f"{path}: {features.shape[0]} features, the largest at index {tf.argmax(features)}")
