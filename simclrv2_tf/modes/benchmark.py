"""Benchmark of a run: measures its input and its step, alone and together, and reports the bottleneck."""

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from simclrv2_tf.data.input import Part
from simclrv2_tf.distributed.devices import has_workers, prefetch_device
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.inference import distribute
from simclrv2_tf.modes.resolve import Result, Strategy
from simclrv2_tf.modes.setup import build_run
from simclrv2_tf.report.console import box
from simclrv2_tf.runs.loop import Run
from simclrv2_tf.settings.config import Config

SECONDS = 10.0  # per measurement
ENDLESS = 10**9  # steps
BUSY = 0.95  # fraction of the step's own rate at which the input counts as fast enough


def benchmark(config: Config, strategy: Strategy) -> Result:
    """Prints images/s of the input alone, of the step alone on a single batch, and of both; writes nothing.

    The run is the same as in ``preview``.
    """
    if has_workers(strategy):
        raise SettingError("--mode=benchmark: works on a single machine; measure each one separately")
    run = build_run(config, strategy)
    method, data, steps = run.method, run.data, run.method.steps_per_execution

    def make_iterator(make: Callable[[Part], tf.data.Dataset]) -> Any:
        return iter(distribute(strategy, data.batch_size, make, prefetch_device(config)))

    batches = make_iterator(lambda part: data.of(part).batches(0, ENDLESS))
    single_batch = make_iterator(lambda part: data.of(part).batches(0, 1).cache().repeat())
    rates = {
        "input": _calls_per_second(lambda: [next(batches) for _ in range(steps)]),
        "step": _calls_per_second(lambda: float(method.run_steps(single_batch, steps)["loss"])),
        "both": _calls_per_second(lambda: float(method.run_steps(batches, steps)["loss"])),
    }
    rates = {name: rate * steps * data.batch_size for name, rate in rates.items()}
    limit = describe_limit(config, run, **rates)
    lines = {name: f"{rate:,.1f} images/s" for name, rate in rates.items()} | {"limit": limit}
    print(box(f"{config.mode} of {data.source.name}, {data.batch_size} images per step", lines))
    return {"mode": "benchmark", **rates, "limit": limit}


def _calls_per_second(call: Callable[[], Any]) -> float:
    """Measures calls per second after the first calls, which compile and empty full buffers."""
    for _ in range(3):
        call()
    started, calls = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < SECONDS or not calls:
        call()
        calls += 1
    return calls / seconds


def describe_limit(config: Config, run: Run, input: float, step: float, both: float) -> str:
    """Describes what limits a run with these images/s, and which flags would make it faster."""
    busy = f"the step runs at {min(both / step, 1):.0%} of its own rate"
    if both >= BUSY * step:
        return f"the step: {busy}. To go faster: {_faster_step(config, run)}."
    if input < step:
        return f"the input: {busy}. To go faster: {_faster_input(config, run)}."
    return (
        f"neither alone: {busy}, because both share the CPU cores or wait for each other. To go faster: more CPU "
        f"cores, or a larger --steps_per_execution than {run.method.steps_per_execution}; {_faster_step(config, run)}."
    )


def _faster_step(config: Config, run: Run) -> str:
    has_accelerator = config.use_tpu or bool(tf.config.list_physical_devices("GPU"))
    advice = {
        "a GPU or a TPU": not has_accelerator,
        "--mixed_precision=bfloat16": has_accelerator and run.method.network.compute_dtype == "float32",
        "--jit_compile=true": has_accelerator and not run.method.jit_compile,
        "--remat=false if the memory allows": config.remat,
        f"a --grad_cache_micro_batch above {config.grad_cache_micro_batch}": bool(config.grad_cache_micro_batch),
        "a smaller --image_size, --resnet_depth or --width_multiplier": True,
    }
    return "; ".join(text for text, applies in advice.items() if applies)


def _faster_input(config: Config, run: Run) -> str:
    encoded = run.data.source.images is None
    advice = {
        f"a --resident_mb above {config.resident_mb}": not encoded and run.data.resident is None,
        "--jpeg_scaling if the photographs have a megapixel or more": encoded and not config.jpeg_scaling,
        "--resize_method=bilinear": encoded and config.resize_method != "bilinear",
        "--cache_dataset if the disk is slow and the files fit into memory": encoded and not config.cache_dataset,
        "more CPU cores": True,
    }
    return "; ".join(text for text, applies in advice.items() if applies)
