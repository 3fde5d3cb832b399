"""Tests the recipe ``own_images`` on four data sets for which it was not tuned together: does each step pay?

    python benchmarks/own_images.py run --folder=FOLDER [--only=NAME] [--seeds=0,1,2]
    python benchmarks/own_images.py draw --folder=FOLDER

``run`` makes the data sets in FOLDER and runs ``--mode=semi_supervised`` on each with 5 and 20 labels per class; the
same command resumes. ``draw`` writes the table of ``docs/results.md`` from the results there are. Needs scikit-image
and, for Fashion-MNIST, Debian's package ``dataset-fashion-mnist``.

* digits: scikit-learn's 1,797 digits as PNGs of 8 px;
* fashion: 5,000 training and 1,000 test images of Fashion-MNIST as an npz file;
* photographs: 1,500 crops of 15 photographs of scikit-image and scikit-learn as JPEGs of several sizes; the crops for
  training are from the left three quarters of each photograph, those for testing from the rest;
* records: the same crops as a TFDS data set, not square.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

LABELS = (5, 20)
HAND_TUNED = {"digits": "digits", "fashion": "fashion_mnist"}  # recipes to compare with
COLUMNS = ("supervised_top1", "finetune_top1", "distill_top1")
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field"),
    *("immunohistochemistry", "moon", "retina", "rocket"),
)
CROPS = {"train": 80, "test": 20}  # per photograph


def make_digits(folder: pathlib.Path) -> list[str]:
    """Writes the digits as PNG files; returns the flags of the data set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / ("train" if index < 1297 else "test") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image / 16 * 255).astype(np.uint8)).save(place / f"{index:04}.png")
    return [f"--dataset=folder:{folder}"]


def make_fashion(folder: pathlib.Path) -> list[str]:
    """Writes 6,000 images of Fashion-MNIST as an npz file."""
    from simclrv2_tf.data.catalog import open_source
    from simclrv2_tf.settings.config import Config

    arrays = {}
    for split, count in (("train", 5000), ("test", 1000)):
        source = open_source(Config(dataset="fashion_mnist"), split)
        rows = np.sort(np.random.default_rng(0).permutation(source.num_examples)[:count])
        arrays |= {f"x_{split}": source.images[rows, ..., 0], f"y_{split}": source.labels[rows]}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "fashion.npz", **arrays)
    return [f"--dataset=npz:{folder / 'fashion.npz'}"]


def crops() -> Iterator[tuple[str, str, Image.Image]]:
    """Yields split, class and a crop of a photograph, 60 to 200 px high, with noise, so that no two are alike."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    pictures = {name: getattr(data, name)() for name in PHOTOGRAPHS}
    pictures |= dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    rng = np.random.default_rng(0)
    for name, pixels in pictures.items():
        pixels = np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels[..., :3]
        height, width = pixels.shape[:2]
        border = width * 3 // 4
        for split, (left, right) in {"train": (0, border), "test": (border, width)}.items():
            for _ in range(CROPS[split]):
                side = int(rng.uniform(0.3, 0.9) * min(height, right - left))
                y, x = rng.integers(0, height - side), rng.integers(left, right - side)
                size = int(rng.integers(60, 201))
                crop = Image.fromarray(pixels[y : y + side, x : x + side]).resize((size * 4 // 3, size))
                noisy = np.asarray(crop, np.float32) + rng.normal(0, 4, (size, size * 4 // 3, 3))
                yield split, name, Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def make_photographs(folder: pathlib.Path) -> list[str]:
    """Writes the crops as JPEG files."""
    for index, (split, name, image) in enumerate(crops()):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        image.save(folder / split / name / f"{index:04}.jpg", quality=90)
    return [f"--dataset=folder:{folder}"]


def make_records(folder: pathlib.Path) -> list[str]:
    """Writes the crops as a TFDS data set."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    examples = list(crops())
    names = sorted({name for _, name, _ in examples})
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=names)}
    )

    def split(wanted: str) -> tf.data.Dataset:
        def generate() -> Iterator[dict]:
            for kind, name, image in examples:
                if kind == wanted:
                    yield {"image": np.asarray(image), "label": names.index(name)}

        shapes = {"image": tf.TensorSpec([None, None, 3], tf.uint8), "label": tf.TensorSpec([], tf.int64)}
        return tf.data.Dataset.from_generator(generate, output_signature=shapes)

    tfds.dataset_builders.store_as_tfds_dataset(
        name="crops", version="1.0.0", features=features, data_dir=str(folder), disable_shuffling=False,
        split_datasets={"train": split("train"), "test": split("test")},
    )  # fmt: skip
    return ["--dataset=crops", f"--data_dir={folder}"]


DATA_SETS: dict[str, Callable[[pathlib.Path], list[str]]] = {
    "digits": make_digits,
    "fashion": make_fashion,
    "photographs": make_photographs,
    "records": make_records,
}


def run(folder: pathlib.Path, names: list[str], seeds: list[int]) -> None:
    """Runs what is not complete yet."""
    for seed in seeds:
        for name in names:
            flags_file = folder / f"{name}.json"
            if not flags_file.exists():
                flags_file.write_text(json.dumps(DATA_SETS[name](folder / name)))
            flags = json.loads(flags_file.read_text())
            _run_once(folder, f"{name}-{seed}", [*flags, f"--seed={seed}"])
            for labels in LABELS if name in HAND_TUNED else ():
                tuned = [*flags, f"--recipe={HAND_TUNED[name]}", f"--seed={seed}", f"--labels_per_class={labels}"]
                _run_once(folder, f"{name}-tuned{labels}-{seed}", tuned)


def _run_once(folder: pathlib.Path, name: str, flags: list[str]) -> None:
    model_dir = folder / "runs" / name
    if not (model_dir / "result.json").exists():
        print(f"{name}: {' '.join(flags)}", flush=True)
        command = [sys.executable, str(ROOT / "run.py"), "--mode=semi_supervised", f"--model_dir={model_dir}"]
        subprocess.run([*command, "--noreport", *flags], check=True)


def draw(folder: pathlib.Path) -> None:
    """Writes the table into ``docs/results.md``."""
    import page

    header = ["data", "recipe", "labels per class", "supervised", "fine-tuned", "distilled", "kNN", "seeds"]
    rows = [header, ["---"] * len(header)]
    for name in DATA_SETS:
        for recipe in ("own_images", "tuned"):
            for labels in LABELS:
                pattern = f"{name}-tuned{labels}-[0-9]*" if recipe == "tuned" else f"{name}-[0-9]*"
                paths = sorted((folder / "runs").glob(f"{pattern}/result.json"))
                results = [json.loads(path.read_text()) for path in paths]
                table = [row for result in results for row in result["table"] if row["labels_per_class"] == labels]
                if table:
                    cells = [_spread([row[column] for row in table]) for column in COLUMNS]
                    knn = _spread([result["knn_top1"] for result in results])
                    title = HAND_TUNED[name] if recipe == "tuned" else recipe
                    rows.append([name, title, str(labels), *cells, knn, str(len(table))])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    page.write("results.md", "own images", f"{text}\n\n{page.origin('python benchmarks/own_images.py run')}")


def _spread(values: list[float]) -> str:
    """Formats mean and standard deviation in %."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def main() -> None:
    """Runs or draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "draw"))
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--only", choices=DATA_SETS, action="append", help="repeatable; default: all")
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    if arguments.action == "draw":
        draw(arguments.folder)
    else:
        run(arguments.folder.resolve(), arguments.only or list(DATA_SETS), list(map(int, arguments.seeds.split(","))))


if __name__ == "__main__":
    main()
