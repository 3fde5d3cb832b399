"""Compares runs that differ in threads, cores or replicas, bit by bit; prints the table of ``docs/design.md``.

    python benchmarks/determinism.py

Each run pretrains a ResNet-18 on the digits for a few steps, in a process of its own. All tensors of its last
checkpoint and all rows of ``metrics.csv``, apart from the speed, are compared with those of another run. Needs Linux
and two cores.
"""

import contextlib
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

import children

RUN = {
    "resnet_depth": 18,
    "width_multiplier": 0.25,
    "image_size": 16,
    "train_batch_size": 64,
    "train_steps": 5,
    "checkpoint_steps": 5,
    "keep_checkpoint_max": 1,
}


class OneCore(contextlib.AbstractContextManager):
    """Runs its body on one core, for which TensorFlow then chooses the number of threads."""

    def __enter__(self) -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def __exit__(self, *error: object) -> None:
        """The process ends."""


# Name, name of the run that it is compared with, context, environment, settings.
REFERENCE, REPLICAS = "two cores", "two replicas"
NONE, ONE_CORE = children.NO_FAULT, OneCore()
CASES = [
    (REFERENCE, "", NONE, {}, {}),
    ("the same again", REFERENCE, NONE, {}, {}),
    ("one core", REFERENCE, ONE_CORE, {}, {}),
    ("one thread per operation", REFERENCE, NONE, {"TF_NUM_INTRAOP_THREADS": "1"}, {}),
    ("eight threads per operation", REFERENCE, NONE, {"TF_NUM_INTRAOP_THREADS": "8"}, {}),
    ("one operation at a time", REFERENCE, NONE, {"TF_NUM_INTEROP_THREADS": "1"}, {}),
    ("without `--deterministic`", REFERENCE, NONE, {}, {"deterministic": "false"}),
    ("without it, again", "without `--deterministic`", NONE, {}, {"deterministic": "false"}),
    (REPLICAS, REFERENCE, NONE, {}, {"cpu_replicas": 2}),
    ("two replicas, again", REPLICAS, NONE, {}, {"cpu_replicas": 2}),
    ("two replicas, one core", REPLICAS, ONE_CORE, {}, {"cpu_replicas": 2}),
    ("four replicas", REPLICAS, NONE, {}, {"cpu_replicas": 4}),
    ("five steps per call", REFERENCE, NONE, {}, {"steps_per_execution": 5}),
    ("smaller evaluation batches", REFERENCE, NONE, {}, {"eval_batch_size": 20}),
]


def main() -> None:
    print("| run | compared with | tensors that differ | rows of `metrics.csv` |")
    print("|---|---|---|---|")
    records: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, other, context, environment, settings) in enumerate(CASES):
            settings = children.TOY | RUN | settings | {"model_dir": pathlib.Path(folder, str(number))}
            log = pathlib.Path(folder, "log")
            child = children.start(log, children.program, settings, context, environment)
            child.join()
            if child.exitcode:
                sys.exit(log.read_text())
            records[name] = children.records(settings["model_dir"])
            if other:
                print(f"| {name} | {other} | {compare(records[name], records[other])} |", flush=True)


def compare(one: dict, two: dict) -> str:
    """Returns the cells of a row: the number of tensors that differ, and whether the rows do."""
    pairs = [(value, two["variables"][name]) for name, value in one["variables"].items() if "OBJECT_GRAPH" not in name]
    num_different = sum(a.tobytes() != b.tobytes() for a, b in pairs)
    return f"{num_different} of {len(pairs)} | {'equal' if one['rows'] == two['rows'] else 'differ'}"


if __name__ == "__main__":
    main()
