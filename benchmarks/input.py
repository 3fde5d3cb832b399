"""What an image costs the host, from the JPEG to two views of 224 px: ours beside the official code's and lightly's.

    python benchmarks/input.py --torch-python=PATH [--folder=FOLDER] [--rounds=3]

Each contestant goes through the same files in a process of its own, one after the other, several rounds; what counts
is the CPU time of the process (user and system, all threads), as a clock would count other programs too. Start-up
costs nothing: an image's share is the difference between a long run and a short one. The best round counts.

    python benchmarks/input.py --baseline=CHECKOUT [--folder=FOLDER] [--rounds=3]

compares ours with ours of another checkout instead, in turn.

* ours: what ``TrainingInput.batches`` leaves to the host; flip, colour and blur run in the compiled step.
* official: a ``tf.data`` pipeline with the operations of the official code; blur it leaves to the device, too.
* lightly: ``SimCLRTransform``, on PIL images, one thread, in a Python of its own that has ``lightly`` installed.
"""

import argparse
import importlib
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

SIZE = 224
SHORT, LONG = 200, 1200  # images

# TensorFlow and PyTorch do not get on in one process: a contestant's module is imported where it runs.
CONTESTANTS = {
    "decoding alone": ("tensorflow_inputs", "decoded", {}),
    "ours, bilinear": ("tensorflow_inputs", "ours", {"resize_method": "bilinear"}),
    "ours, bicubic": ("tensorflow_inputs", "ours", {}),
    "ours, bicubic, all of it on the host": ("tensorflow_inputs", "ours", {"augment_on_host": True}),
    "official": ("tensorflow_inputs", "official", {}),
    "lightly": ("lightly_input", "lightly", {}),
}


def network_cost(name: str, folder: pathlib.Path) -> float:
    """CPU milliseconds an image, in this process."""
    module, function, settings = CONTESTANTS[name]
    run = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    paths = sorted(str(path) for path in folder.glob("*.jpg"))
    short, long = (_cpu_seconds(run(paths, images, SIZE, **settings)) for images in (SHORT, LONG))
    return 1000 * (long - short) / (LONG - SHORT)


def _cpu_seconds(views: Iterable) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in views:
        pass
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _cost_in_child(name: str, folder: pathlib.Path, torch_python: str, script: str | pathlib.Path = __file__) -> float:
    python = torch_python if CONTESTANTS[name][0] == "lightly_input" else sys.executable
    command = [python, script, f"--folder={folder}", f"--contestant={name}"]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        sys.exit(f"{name}: status {child.returncode}\n{child.stderr}")
    return float(child.stdout)


def _compare_with_baseline(folder: pathlib.Path, baseline: pathlib.Path, rounds: int) -> None:
    names = ("ours, bilinear", "ours, bicubic")
    scripts = {"baseline": baseline / "benchmarks" / "input.py", "ours": __file__}
    cost: dict[tuple[str, str], list[float]] = {(name, kind): [] for name in names for kind in scripts}
    for _ in range(rounds):
        for name, kind in cost:
            cost[name, kind].append(_cost_in_child(name, folder, sys.executable, scripts[kind]))
    print(f"{'':38} CPU ms an image: ours   baseline   ratio")
    for name in names:
        ours, theirs = min(cost[name, "ours"]), min(cost[name, "baseline"])
        print(f"{name:38} {ours:21.3f} {theirs:10.3f} {ours / theirs:7.3f}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, help="JPEGs to read; default: made for the occasion")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has lightly")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--baseline", type=pathlib.Path, help="another checkout")
    parser.add_argument("--contestant", choices=CONTESTANTS, help="measure this one, in this process")
    arguments = parser.parse_args()
    if arguments.contestant:
        print(network_cost(arguments.contestant, arguments.folder))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or pathlib.Path(made)
        if arguments.folder is None:
            from benchmarks.make_jpegs import make_jpegs

            make_jpegs(folder)
        if arguments.baseline:
            _compare_with_baseline(folder, arguments.baseline, arguments.rounds)
            return
        rounds = [
            {name: _cost_in_child(name, folder, arguments.torch_python) for name in CONTESTANTS}
            for _ in range(arguments.rounds)
        ]
    cost = {name: min(one[name] for one in rounds) for name in CONTESTANTS}
    print(f"{'':38} CPU ms an image   times the rate of: official   lightly")
    for name, each in cost.items():
        ratios = "".join(f"{cost[peer] / each:{width}.2f}" for peer, width in (("official", 29), ("lightly", 10)))
        print(f"{name:38} {each:15.2f}{ratios}")


if __name__ == "__main__":
    main()
