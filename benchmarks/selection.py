"""Which images to label: typicality and k-center against a random choice, on frozen features.

    python benchmarks/selection.py run NAME=RUN [NAME=RUN ...]
    python benchmarks/selection.py draw

``run`` reads pretrained runs, one per data set and seed (``digits-0=runs/digits-seed0/pretrain``), selects among all of
their training images as if none had a label, trains a logistic regression on the features of the selected ones and
tests it on the test images. Lines go to ``selection.jsonl``; ``draw`` writes the table of ``docs/results.md``.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import page

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "selection.jsonl"
PER_CLASS = (1, 2, 5, 10)
RANDOM_DRAWS = 20


def features(run: str) -> dict[str, np.ndarray]:
    """Returns the features and labels of both splits of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "run.py"), "--mode=embed", f"--checkpoint={run}", f"--model_dir={folder}"]
        subprocess.run([*command, "--quiet"], check=True)
        with np.load(pathlib.Path(folder) / "embeddings.npz") as archive:
            return dict(archive)


def accuracy(arrays: dict[str, np.ndarray], rows: np.ndarray) -> float:
    """Returns the test accuracy of a logistic regression that is trained on some of the training images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(arrays["x_train"])
    model = LogisticRegression(max_iter=2000).fit(scaler.transform(arrays["x_train"][rows]), arrays["y_train"][rows])
    return float(model.score(scaler.transform(arrays["x_test"]), arrays["y_test"]))


def measure(name: str, arrays: dict[str, np.ndarray]) -> Iterator[dict]:
    """Yields a line per number of images and way to select them."""
    from simclrv2_tf.selection import SELECTIONS

    labels, num_classes = arrays["y_train"], len(arrays["class_names"])
    random = np.random.default_rng(0)
    for per_class in PER_CLASS:
        count = per_class * num_classes
        rows = {how: [select(arrays["x_train"], labels < -1, count)] for how, select in SELECTIONS.items()}
        rows["random"] = [random.choice(len(labels), count, replace=False) for _ in range(RANDOM_DRAWS)]
        for how, draws in rows.items():
            yield {
                "run": name,
                "count": count,
                "by": how,
                "top1": statistics.mean(accuracy(arrays, draw) for draw in draws),
                "classes": statistics.mean(len(set(labels[draw])) for draw in draws),
            } | page.stamp()


def draw() -> None:
    """Writes the table: means over the runs of a data set, and the differences paired by run."""
    lines = page.read_lines(RESULTS)
    header = ["data", "images", "random", "typicality", "k-center", "typicality - random", "k-center - random", "runs"]
    table = [header]
    values = {(line["run"], line["count"], line["by"]): line["top1"] for line in lines}
    for data in dict.fromkeys(line["run"].rpartition("-")[0] for line in lines):
        runs = [run for run in dict.fromkeys(line["run"] for line in lines) if run.rpartition("-")[0] == data]
        for count in dict.fromkeys(line["count"] for line in lines if line["run"] in runs):
            random, typical, center = (
                [values[run, count, how] for run in runs] for how in ("random", "typicality", "k_center")
            )
            gains = [[a - b for a, b in zip(better, random, strict=True)] for better in (typical, center)]
            cells = [*map(page.spread, (random, typical, center)), *(page.spread(gain, "+") for gain in gains)]
            table.append([data, str(count), *cells, str(len(runs))])
    caption = f"Top-1 in %, mean ± standard deviation over pretraining runs; random: mean of {RANDOM_DRAWS} draws each."
    page.write(
        "results.md",
        "selection",
        f"{caption}\n\n{page.markdown(table)}\n\n`python benchmarks/selection.py run`; {page.stamps(lines)}.",
    )


def main() -> None:
    """Runs or draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "draw"))
    parser.add_argument("runs", nargs="*", help="NAME-SEED=RUN")
    arguments = parser.parse_args()
    if arguments.action == "draw":
        return draw()
    for named in arguments.runs:
        name, _, run = named.partition("=")
        for line in measure(name, features(run)):
            page.append_line(RESULTS, line)
            print(line, flush=True)
    return None


if __name__ == "__main__":
    main()
