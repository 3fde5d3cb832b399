"""Tests the recipe ``own_images`` on four data sets for which it was not tuned together: does each step pay?

    python benchmarks/own_images.py run --folder=FOLDER [--only=NAME] [--seeds=0,1,2]
    python benchmarks/own_images.py draw

``run`` makes the data sets in FOLDER and runs ``--mode=semi_supervised`` on each with 5 and 20 labels per class. Its
results are lines of ``own_images.jsonl``; what is there is not run again, and a killed run resumes. ``draw`` writes the
tables of ``docs/results.md``. Needs scikit-image and, for Fashion-MNIST, Debian's package ``dataset-fashion-mnist``.

* digits: scikit-learn's 1,797 digits as PNGs of 8 px;
* fashion: 5,000 training and 1,000 test images of Fashion-MNIST as an npz file;
* photographs: 1,500 crops of 15 photographs of scikit-image and scikit-learn as JPEGs of several sizes; the crops for
  training are from the left three quarters of each photograph, those for testing from the rest;
* records: the digits as a TFDS data set of gray images of 20 x 28 px, each digit somewhere in its image.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import page
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "own_images.jsonl"
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
    """Writes the digits as a TFDS data set of larger images."""
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from sklearn.datasets import load_digits

    digits, random = load_digits(), np.random.default_rng(0)
    canvases = np.zeros([len(digits.images), 20, 28, 1], np.uint8)
    for canvas, image in zip(canvases, digits.images, strict=True):
        large = np.asarray(Image.fromarray((image / 16 * 255).astype(np.uint8)).resize((16, 16)))
        y, x = random.integers(0, 5), random.integers(0, 13)
        canvas[y : y + 16, x : x + 16, 0] = large

    def split(first: int, end: int) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(
            {"image": canvases[first:end], "label": digits.target[first:end].astype(np.int64)}
        )

    features = {"image": tfds.features.Image(shape=(20, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="wide_digits", version="1.0.0", features=tfds.features.FeaturesDict(features), data_dir=str(folder),
        disable_shuffling=False, split_datasets={"train": split(0, 1297), "test": split(1297, None)},
    )  # fmt: skip
    return ["--dataset=wide_digits", f"--data_dir={folder}"]


DATA_SETS: dict[str, Callable[[pathlib.Path], list[str]]] = {
    "digits": make_digits,
    "fashion": make_fashion,
    "photographs": make_photographs,
    "records": make_records,
}


def run(folder: pathlib.Path, names: list[str], seeds: list[int]) -> None:
    """Runs what has no results yet."""
    for seed in seeds:
        for name in names:
            flags_file = folder / f"{name}.json"
            if not flags_file.exists():
                flags_file.write_text(json.dumps(DATA_SETS[name](folder / name)))
            flags = [*json.loads(flags_file.read_text()), f"--seed={seed}"]
            _run_once(folder, {"data": name, "recipe": "own_images", "seed": seed}, flags)
            for labels in LABELS if name in HAND_TUNED else ():
                recipe = HAND_TUNED[name]
                tuned = [*flags, f"--recipe={recipe}", f"--labels_per_class={labels}"]
                _run_once(folder, {"data": name, "recipe": recipe, "seed": seed, "only": labels}, tuned)


def _run_once(folder: pathlib.Path, key: dict, flags: list[str]) -> None:
    if any(line.items() >= key.items() for line in page.read_lines(RESULTS)):
        return
    model_dir = folder / "runs" / "-".join(map(str, key.values()))
    print(f"{model_dir.name}: {' '.join(flags)}", flush=True)
    command = [sys.executable, str(ROOT / "run.py"), "--mode=semi_supervised", f"--model_dir={model_dir}", "--noreport"]
    subprocess.run([*command, *flags], check=True)
    result = json.loads((model_dir / "result.json").read_text())
    rows = [{name: row[name] for name in ("labels_per_class", *COLUMNS)} for row in result["table"]]
    page.append_line(RESULTS, key | {"knn_top1": result["knn_top1"], "table": rows} | page.stamp())


def draw() -> None:
    """Writes the tables: the accuracies, and the differences paired by seed."""
    header = ["data", "recipe", "labels per class", "supervised", "fine-tuned", "distilled", "kNN", "seeds"]
    gains = ["data", "labels per class", "fine-tuned - supervised", "distilled - fine-tuned", "- tuned by hand"]
    accuracies, differences = [header], [gains]
    lines = page.read_lines(RESULTS)
    for name in DATA_SETS:
        for labels in LABELS:
            own = _select(lines, name, "own_images", labels)
            tuned = _select(lines, name, HAND_TUNED.get(name, ""), labels)
            for recipe, rows in (("own_images", own), (HAND_TUNED.get(name), tuned)):
                if rows:
                    cells = [page.spread([row[column] for row in rows.values()]) for column in (*COLUMNS, "knn_top1")]
                    accuracies.append([name, recipe, str(labels), *cells, str(len(rows))])
            if own:
                pairs = [("finetune_top1", "supervised_top1"), ("distill_top1", "finetune_top1")]
                cells = [page.spread([row[better] - row[than] for row in own.values()], "+") for better, than in pairs]
                both = [own[seed]["distill_top1"] - tuned[seed]["distill_top1"] for seed in own if seed in tuned]
                differences.append([name, str(labels), *cells, page.spread(both, "+") if both else ""])
    tables = map(page.markdown, (accuracies, differences))
    text = "Top-1 in %, mean ± standard deviation over the seeds. The last column compares the distilled networks."
    origin = f"`python benchmarks/own_images.py run`; {page.stamps(lines)}."
    page.write("results.md", "own images", "\n\n".join([text, *tables, origin]))


def _select(lines: list[dict], data: str, recipe: str, labels: int) -> dict[int, dict]:
    """Returns the results of a data set, recipe and number of labels, by seed."""
    return {
        line["seed"]: row | {"knn_top1": line["knn_top1"]}
        for line in lines
        if (line["data"], line["recipe"]) == (data, recipe)
        for row in line["table"]
        if row["labels_per_class"] == labels
    }


def main() -> None:
    """Runs or draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "draw"))
    parser.add_argument("--folder", type=pathlib.Path, help="for data and runs")
    parser.add_argument("--only", choices=DATA_SETS, action="append", help="repeatable; default: all")
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    if arguments.action == "draw":
        draw()
    elif not arguments.folder:
        parser.error("run needs --folder=FOLDER, for data and runs")
    else:
        run(arguments.folder.resolve(), arguments.only or list(DATA_SETS), list(map(int, arguments.seeds.split(","))))


if __name__ == "__main__":
    main()
