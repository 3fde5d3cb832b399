"""Measures replicas and workers on this machine: equal numbers, cost, and the end of a run after a kill.

    python benchmarks/replicas.py [equality] [cost] [kill]

Writes these sections of ``docs/scaling.md``. Workers are processes that communicate over loopback.
"""

import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable

sys.path.extend(str(pathlib.Path(__file__).parents[1] / folder) for folder in (".", "tests", "tests/distributed"))
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # for the children
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import children
import device_layouts
import keras
import numpy as np
import tensorflow as tf
import test_workers

from benchmarks.page import origin, write
from simclrv2_tf.distributed.devices import choose_strategy
from simclrv2_tf.methods.inference import distribute
from simclrv2_tf.models import BatchNorm
from simclrv2_tf.modes.setup import build_run
from simclrv2_tf.settings.config import Config

STEPS, TRIES = 5, 5
TRAINING = dict(dataset="digits", resnet_depth=18, width_multiplier=0.25, image_size=32, train_batch_size=128)
LAYERS, ACTIVATIONS = 20, (32, 8, 8, 64)
NORMS = {"ours": BatchNorm, "Keras's": lambda: keras.layers.BatchNormalization(synchronized=True)}


def together(count: int, function: Callable, *args: object) -> dict[str, device_layouts.Numbers]:
    """Runs ``function(environment, folder, index, *args)`` in ``count`` workers; loads the ``.npz`` files of each."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        environments = children.workers(count) if count > 1 else [{}]
        logs = [place / f"log{index}" for index in range(count)]
        workers = [
            children.start(log, function, environment, place, index, *args)
            for index, (log, environment) in enumerate(zip(logs, environments, strict=True))
        ]
        for worker, log in zip(workers, logs, strict=True):
            worker.join()
            if worker.exitcode:
                sys.exit(log.read_text()[-3000:])
        return {path.stem: dict(np.load(path)) for path in sorted(place.glob("*.npz"))}


def replicas(count: int, kind: str, precision: str) -> device_layouts.Numbers:
    """Trains on logical devices of this process."""
    tf.distribute.MirroredStrategy._collective_key_base += 1000  # else a strategy joins the one before it
    keras.backend.clear_session()
    return device_layouts.train(kind, tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)]), precision)


def equality() -> str:
    """Tabulates the largest difference of each layout from one device."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    lines = ["| layout | mode | metrics | weights, slots, statistics, memory | evaluation | float32 |"]
    lines += ["|" + "---|" * 6]
    for layout in ("2 replicas", "4 replicas", "2 workers", "3 workers"):
        count, what = int(layout[0]), layout[2:]
        results = {}
        for precision in ("float64", "float32"):
            outputs = together(count, device_layouts.work, precision) if what == "workers" else {}
            for kind in device_layouts.KINDS:
                keras.backend.clear_session()
                one = device_layouts.train(kind, tf.distribute.get_strategy(), precision)
                each = [outputs[f"{kind}-{i}"] for i in range(count)] if outputs else [replicas(count, kind, precision)]
                results[kind, precision] = largest(each, one)
        for kind in device_layouts.KINDS:
            wide = results[kind, "float64"]
            narrow = " / ".join(f"{value:.0e}" for value in results[kind, "float32"].values())
            lines.append(f"| {layout} | {kind} | {' | '.join(f'{v:.0e}' for v in wide.values())} | {narrow} |")
    return "\n".join(lines)


def largest(results: list[device_layouts.Numbers], expected: device_layouts.Numbers) -> dict[str, float]:
    """Computes the largest differences of metrics, variables and evaluation, relative to the largest number."""
    worst = dict.fromkeys(("metrics", "variables", "evaluation"), 0.0)
    for name, value in expected.items():
        group = "evaluation" if name.startswith("evaluated/") else "variables" if "/" in name else "metrics"
        for one in results:
            difference = np.abs(np.asarray(one[name], "float64") - value).max() / max(np.abs(value).max(), 1e-3)
            worst[group] = max(worst[group], float(difference))
    return worst


def messages(function: tf.types.experimental.ConcreteFunction) -> int:
    """Counts the all-reduces in a worker's function and in those that it calls."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for called in graph.library.function for node in called.node_def)]
    return sum(node.op.startswith("CollectiveReduce") for node in nodes)


def seconds(run: Callable[[], object]) -> float:
    """Times one call: the minimum of several."""
    run()
    results = []
    for _ in range(TRIES):
        before = time.perf_counter()
        run()
        results.append(time.perf_counter() - before)
    return min(results)


def norms(environment: dict[str, str], folder: pathlib.Path, index: int) -> None:
    """Runs a worker's part of a stack of batch norms, forward and backward."""
    os.environ |= environment
    strategy = choose_strategy(Config(train_batch_size=64, eval_batch_size=64))
    results = {}
    for name, make in NORMS.items():
        with strategy.scope():
            tower = [make() for _ in range(LAYERS)]
            for layer in tower:
                layer.build(ACTIVATIONS)
        x = tf.random.stateless_normal(ACTIVATIONS, [0, index])

        def step(x: tf.Tensor = x, tower: list = tower) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = x
                for layer in tower:
                    y = layer(y, training=True)
                loss = tf.reduce_sum(y**3)
            return tape.gradient(loss, x)

        run = tf.function(lambda step=step: strategy.run(step), autograph=False)
        concrete = run.get_concrete_function()
        results[name] = [messages(concrete) / LAYERS, 1000 * seconds(lambda run=run: run().numpy())]
    np.savez(folder / f"norms-{index}.npz", **results)


def steps(environment: dict[str, str], folder: pathlib.Path, index: int, replicas: int, threads: int) -> None:
    """Runs a worker's part of pretraining steps; saves seconds and all-reduces per step."""
    os.environ |= environment
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    config = Config(mode="pretrain", model_dir=str(folder), recipe="none", cpu_replicas=replicas, **TRAINING)
    strategy = choose_strategy(config)
    run = build_run(config, strategy)
    count = (TRIES + 2) * STEPS
    iterator = iter(distribute(strategy, run.data.batch_size, lambda part: run.data.of(part).batches(0, count)))
    took = seconds(lambda: float(run.model.run_steps(iterator, STEPS)["loss"])) / STEPS
    concrete = run.model._run_steps.get_concrete_function(iterator, tf.constant(1))
    np.savez(folder / f"steps-{index}.npz", seconds=took, sent=messages(concrete))


def cost() -> str:
    """Compares batch norm with Keras's, and a step on workers and replicas with that of one process."""
    results = together(2, norms)["norms-0"]
    lines = ["| batch norm, 2 workers | all-reduces per layer, forward and backward | ms per layer | |"]
    lines += ["|---|---|---|---|"]
    for name, (count, milliseconds) in results.items():
        ratio = milliseconds / results["ours"][1]
        lines.append(f"| {name} | {count:g} | {milliseconds / LAYERS:.2f} | {ratio:.2f}x |")
    lines += ["", "| pretraining step, 128 images | ms | images/s | | all-reduces |", "|" + "---|" * 5]
    whole = None
    for name, (workers, replicas, threads) in {
        "1 process, both cores": (1, 0, 2),
        "1 process, one core": (1, 0, 1),
        "2 replicas in one process": (1, 2, 2),
        "2 workers, one core each": (2, 0, 1),
    }.items():
        one = together(workers, steps, replicas, threads)["steps-0"]
        took = float(one["seconds"])
        whole = whole or took
        sent = int(one["sent"]) or "none"
        lines.append(f"| {name} | {1000 * took:.0f} | {128 / took:.0f} | {whole / took:.2f}x | {sent} |")
    return "\n".join(lines)


def kill() -> str:
    """Kills one of two workers, logs both, repeats the command, and compares the end with a run on one device."""
    place = pathlib.Path(tempfile.mkdtemp())
    settings = test_workers.SETTINGS
    assert children.run(settings | {"model_dir": place / "one"}, place / "log") == 0
    told = []
    for what, fault in {
        "worker 1 gets SIGTERM": children.SignalAt(test_workers.CALLS, signal.SIGTERM),
        "worker 1 gets SIGKILL": children.SignalAt(test_workers.CALLS // 2),
        "the same command again": children.NO_FAULT,
    }.items():
        logs = [place / f"log{index}" for index in range(2)]
        for log in logs:
            log.unlink(missing_ok=True)
        chief, other = (
            children.start(log, children.program, settings | {"model_dir": place / "run"}, each, environment)
            for log, each, environment in zip(logs, (children.NO_FAULT, fault), children.workers(2), strict=True)
        )
        other.join()
        gone = time.monotonic()
        chief.join()
        told.append(f"# {what}")
        for name, worker, log in (("chief", chief, logs[0]), ("other", other, logs[1])):
            lines = [line for line in log.read_text().splitlines() if re.search(r"^(Resuming|Stopped|error|SIG)", line)]
            ended = f"exit status {worker.exitcode}"
            if name == "chief":
                ended += f", {time.monotonic() - gone:.1f} s after the other"
            told += [f"{name}: {line}" for line in [*lines, ended]]
    one, run = (children.records(place / name)["variables"] for name in ("one", "run"))
    wide = {name: value for name, value in one.items() if isinstance(value, np.ndarray) and value.dtype == "float64"}
    worst = largest([run], wide)
    told.append(f"# {len(wide)} tensors of the last checkpoint, compared with an uninterrupted run on one device")
    told.append(f"largest difference, relative to the largest value of a tensor: {max(worst.values()):.0e}")
    shutil.rmtree(place)
    return "```\n" + "\n".join(told).replace(str(place), "runs") + "\n```"


def main() -> None:
    """Measures and writes."""
    sections = {"equality": equality, "cost": cost, "kill": kill}
    for name in sys.argv[1:] or sections:
        text = f"{origin(f'python benchmarks/replicas.py {name}')}\n\n{sections[name]()}"
        print(text, flush=True)
        write("scaling.md", name, text)


if __name__ == "__main__":
    main()
