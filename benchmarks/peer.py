"""Compares the package with SimCLR in PyTorch and lightly: same images, labels, network, epochs and machine.

    python benchmarks/peer.py tune --folder=FOLDER --torch-python=PATH
    python benchmarks/peer.py run --folder=FOLDER --torch-python=PATH [--seeds=0,1,2,3,4]
    python benchmarks/peer.py draw

``run`` trains this package's recipe (``--mode=semi_supervised``) and the peer (``torch_peer.py``) on scikit-learn's
digits with the same label subsets. The same functions compute kNN and the linear probe on the frozen features of
both. Its results are lines of ``peer.jsonl``; what is there is not run again. ``tune`` prints the accuracies of the
peer's settings on 297 training images that it does not train on; ``PEER`` has the best. ``draw`` writes the tables of
``README.md`` and ``docs/results.md``. PATH is a Python with ``pip install torch torchvision lightly numpy``.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
import page

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from simclrv2_tf.data.catalog import label_subset, open_source  # noqa: E402
from simclrv2_tf.metrics import knn_accuracy, linear_probe  # noqa: E402
from simclrv2_tf.settings.config import Config  # noqa: E402

RESULTS = ROOT / "benchmarks" / "peer.jsonl"
LABELS = (1, 2, 5, 10)
COLUMNS = ("supervised_top1", "finetune_top1", "distill_top1")
HELD_OUT = 297  # of the 1,297 training images
COMMON = dict(
    size=16, width=0.25, epochs=60, warmup_epochs=5, batch_size=128, crop_min=0.6, flip=False, temperature=0.5
)
FINETUNE = dict(batch_size=50, crop_min=0.6, steps=100)
PEER = dict(pretrain=dict(optimizer="lars", rate=1.0), finetune=FINETUNE | dict(rate=0.0014, head_layers=1))
# tried by ``tune``
PRETRAINING = [dict(optimizer="lars", rate=rate) for rate in (1.0, 2.0)]
PRETRAINING += [dict(optimizer="sgd", rate=rate) for rate in (0.06, 0.12)]
FINETUNING = [
    FINETUNE | dict(rate=rate, head_layers=head_layers) for rate in (0.0014, 0.0028, 0.0056) for head_layers in (0, 1)
]


def digits(seed: int, is_held_out: bool = False) -> dict[str, np.ndarray]:
    """Returns images, labels and the subsets of labels that the package chooses with a seed."""
    train, test = (open_source(Config(dataset="digits"), split) for split in ("train", "test"))
    if is_held_out:
        rows = np.arange(train.num_examples)
        train, test = train.subset(rows[:-HELD_OUT]), train.subset(rows[-HELD_OUT:])
    arrays = {"train_images": train.images, "train_labels": train.labels}
    arrays |= {"test_images": test.images, "test_labels": test.labels}
    arrays = {name: np.asarray(values) for name, values in arrays.items()}
    return arrays | {f"rows_{count}": label_subset(train.labels, count, 0.0, seed) for count in LABELS}


def train_peer(
    python: str, folder: pathlib.Path, name: str, data: dict, seed: int, pretraining: dict, finetuning: list[dict]
) -> dict:
    """Trains the peer, unless it was; returns its accuracies and seconds."""
    out = folder / f"{name}.npz"
    if not out.exists():
        np.savez(folder / f"{name}-data.npz", **data)
        settings = COMMON | pretraining | {"seed": seed}
        command = [python, str(ROOT / "benchmarks" / "torch_peer.py"), f"--data={folder / f'{name}-data.npz'}"]
        command += [f"--settings={json.dumps(settings)}", f"--finetune={json.dumps(finetuning)}", f"--out={out}"]
        subprocess.run(command, check=True)
    with np.load(out) as arrays:
        results = dict(arrays)
    frozen = _frozen(results["train"], data["train_labels"], results["test"], data["test_labels"])
    finetuned = json.loads(str(results["accuracies"]))
    return frozen | {"finetuned": finetuned, "seconds": json.loads(str(results["seconds"]))}


def _frozen(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> dict[str, float]:
    """Accuracies of frozen features."""
    arrays = train, train_labels, test, test_labels
    return {"knn_top1": knn_accuracy(*arrays), "probe_top1": linear_probe(*arrays)}


def train_ours(folder: pathlib.Path, seed: int) -> dict:
    """Trains the package's recipe; returns its accuracies."""
    model_dir = folder / f"ours-{seed}"
    run = [sys.executable, str(ROOT / "run.py")]
    stages = ["--mode=semi_supervised", "--dataset=digits", f"--seed={seed}", f"--model_dir={model_dir}", "--noreport"]
    subprocess.run([*run, *stages], check=True)
    subprocess.run([*run, "--mode=embed", f"--checkpoint={model_dir / 'pretrain'}"], check=True)
    result = json.loads((model_dir / "result.json").read_text())
    with np.load(model_dir / "pretrain" / "embeddings.npz") as arrays:
        names = ("x_train", "y_train", "x_test", "y_test")
        frozen = _frozen(*(arrays[name] for name in names))
    return frozen | {"linear_top1": result["linear_top1"], "table": result["table"], "seconds": result["seconds"]}


def run(folder: pathlib.Path, python: str, seeds: list[int]) -> None:
    """Runs what has no results yet."""
    done = [(line["name"], line["seed"]) for line in page.read_lines(RESULTS)]
    for seed in seeds:
        if ("ours", seed) not in done:
            page.append_line(RESULTS, {"name": "ours", "seed": seed} | train_ours(folder, seed) | page.stamp())
        if ("peer", seed) not in done:
            finetuning = [PEER["finetune"] | {"labels": count} for count in LABELS]
            results = train_peer(python, folder, f"peer-{seed}", digits(seed), seed, PEER["pretrain"], finetuning)
            page.append_line(RESULTS, {"name": "peer", "seed": seed} | results | page.stamp())


def tune(folder: pathlib.Path, python: str, seeds: list[int]) -> None:
    """Prints the accuracies of the peer's settings on held-out training images."""
    for pretraining in PRETRAINING:
        for seed in seeds:
            finetuning = [settings | {"labels": count} for settings in FINETUNING for count in (1, 5, 10)]
            name = f"tune-{pretraining['optimizer']}-{pretraining['rate']}-{seed}"
            data = digits(seed, is_held_out=True)
            result = train_peer(python, folder, name, data, seed, pretraining, finetuning)
            print(f"{name}: kNN {result['knn_top1']:.1%}, linear {result['probe_top1']:.1%}", flush=True)
            for line in result["finetuned"]:
                print("   ", json.dumps(line), flush=True)


def draw(root: pathlib.Path = ROOT) -> None:
    """Writes the table of the README, and of ``docs/results.md`` the comparison with the peer, paired by seed."""
    lines = page.read_lines(RESULTS)
    ours = [line["table"] for line in lines if line["name"] == "ours"]
    table = [["labels per class", "supervised from scratch", "fine-tuned", "distilled"]]
    for rows in zip(*ours, strict=True):  # of one number of labels, a row per seed
        cells = [page.spread([row[column] for row in rows]) for column in COLUMNS]
        table.append([str(rows[0]["labels_per_class"]), *cells])
    origin = f"`python benchmarks/peer.py run`; {page.stamps(lines)}"
    page.write(root.absolute() / "README.md", "results", f"{page.markdown(table)}\n\n{origin}; {len(ours)} seeds.")
    by_seed: dict[int, dict[str, dict[str, float]]] = {}
    for line in lines:
        by_seed.setdefault(line["seed"], {})[line["name"]] = _accuracies(line)
    pairs = [both for both in by_seed.values() if len(both) == 2]
    rows = [["", "ours", "the peer", "difference, paired by seed"]]
    for metric in pairs[0]["peer"]:
        values = [[both[name][metric] for both in pairs] for name in ("ours", "peer")]
        differences = [a - b for a, b in zip(*values, strict=True)]
        rows.append([metric, *map(page.spread, values), page.spread(differences, "+")])
    linear = [100 * (line["linear_top1"] - line["probe_top1"]) for line in lines if line["name"] == "ours"]
    gap = f"`--mode=linear_eval` differs from the linear probe by {min(linear):+.1f} to {max(linear):+.1f} points."
    text = f"Top-1 in %, mean ± standard deviation over the seeds.\n\n{page.markdown(rows)}\n\n{gap}\n\n"
    page.write(root.absolute() / "docs/results.md", "peer", f"{text}{origin}; {len(pairs)} seeds.")


def _accuracies(line: dict) -> dict[str, float]:
    """Accuracies of a line by name."""
    if line["name"] == "ours":
        finetuned = {row["labels_per_class"]: row["finetune_top1"] for row in line["table"]}
    else:
        finetuned = {row["labels"]: row["top1"] for row in line["finetuned"]}
    frozen = {"kNN on frozen features": line["knn_top1"], "linear probe on frozen features": line["probe_top1"]}
    return frozen | {f"fine-tuned, {count} labels per class": finetuned[count] for count in LABELS}


def main() -> None:
    """Tunes, runs or draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("tune", "run", "draw"))
    parser.add_argument("--folder", type=pathlib.Path, help="for data and runs")
    parser.add_argument("--torch-python", help="a Python with PyTorch and lightly")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    arguments = parser.parse_args()
    if arguments.action == "draw":
        draw()
    elif not (arguments.folder and arguments.torch_python):
        parser.error("--folder and --torch-python are needed")
    else:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        act = run if arguments.action == "run" else tune
        act(arguments.folder.resolve(), arguments.torch_python, list(map(int, arguments.seeds.split(","))))


if __name__ == "__main__":
    main()
