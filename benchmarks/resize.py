"""Compares the cost of bicubic and bilinear crops, on the host and in the step; writes a table of ``docs/fidelity.md``.

    pip install -r benchmarks/requirements.txt
    python benchmarks/resize.py [--rounds=9]

The two alternate in one process. Each round measures the CPU time of the process (user and system, all threads), since
wall time would include other programs; the table shows medians over the rounds. On the host an image is a JPEG of
500×375, read, decoded and cropped into two views of 224 px; the difference of a long and a short run excludes start-up.
"""

import argparse
import os
import pathlib
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np
import tensorflow as tf

from benchmarks.make_jpegs import make_jpegs
from benchmarks.page import origin, write
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.cropping import CROP_DRAWS, crop_and_resize, random_crop_boxes
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.sources import FileSource

METHODS = ("bicubic", "bilinear")
BATCH, SHORT, LONG = 32, 4, 24  # images, steps, steps


def cpu_seconds(function: Callable[[], object]) -> float:
    """Measures the CPU seconds of this process while a function runs."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    function()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def on_host(folder: pathlib.Path) -> Callable[[str], float]:
    """Measures the CPU milliseconds per image of the input pipeline, by method."""
    source = FileSource("photographs", tuple(sorted(map(str, folder.glob("*.jpg")))), None, ())

    def measure(method: str) -> float:
        data = TrainingInput(source, BATCH, 2, ViewSettings(224, resize_method=method), seed=0)
        short, long = (cpu_seconds(lambda n=n: [None for _ in data.batches(0, n)]) for n in (SHORT, LONG))
        return 1000 * (long - short) / (BATCH * (LONG - SHORT))

    return measure


def in_step(size: int, batch: int = 256) -> Callable[[str], float]:
    """Measures the CPU milliseconds per image of ``crop_and_resize`` to two views of the image's size, by method."""
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, (batch, size, size, 3), np.uint8))
    boxes = random_crop_boxes(rng.random((batch, 2, CROP_DRAWS), np.float32), size, size, ViewSettings(size))
    step = tf.function(crop_and_resize, autograph=False)

    def measure(method: str, calls: int = 10) -> float:
        step(images, boxes, size, method)
        return 1000 / (batch * calls) * cpu_seconds(lambda: [step(images, boxes, size, method) for _ in range(calls)])

    return measure


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    lines = ["| CPU ms per image, two views | bicubic | bilinear | ratio | range over rounds |"]
    lines += ["|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        make_jpegs(pathlib.Path(folder))
        places = {
            "host: JPEG of 500 x 375 to 224 px": on_host(pathlib.Path(folder)),
            "step: 32 px (`crop_and_resize`)": in_step(32),
            "step: 96 px (`crop_and_resize`)": in_step(96),
        }
        for name, measure in places.items():
            found = [[measure(method) for method in METHODS] for _ in range(rounds + 1)][1:]  # the first one warms up
            bicubic, bilinear = map(statistics.median, zip(*found, strict=True))
            ratios = [one / other for one, other in found]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            lines.append(f"| {name} | {bicubic:.3g} | {bilinear:.3g} | {bicubic / bilinear:.2f} | {spread} |")
            print(lines[-1], flush=True)
    command = f"python benchmarks/resize.py --rounds={rounds}"
    write("fidelity.md", "crops", "\n".join([f"{origin(command)} Medians of {rounds} rounds.", "", *lines]))


if __name__ == "__main__":
    main()
