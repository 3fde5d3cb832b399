"""Measures memory and time of a pretraining step with GradCache and with recomputed activations, as ratios.

    python benchmarks/memory.py [--resnet_depth=50] [--image_size=64] [--batch=128] [--micro_batch=16] [--xla]

Each case runs in a process of its own: augmentation, network, NT-Xent, LARS, on random pixels. Memory is the process's
greatest resident set above what it held when the network was built; on a GPU, TensorFlow's own peak.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CASES = {"plain": set(), "remat": {"remat"}, "micro-batches": {"micro_batch"}, "both": {"remat", "micro_batch"}}


def measure(case: str, depth: int, size: int, batch: int, micro_batch: int, xla: bool) -> dict[str, float]:
    """Measures seconds per step and GiB of one case, in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from simclrv2_tf.data.augment import NUM_DRAWS
    from simclrv2_tf.methods.optimizers import build_optimizer
    from simclrv2_tf.methods.simclr import SimCLR
    from simclrv2_tf.modes.setup import build_network, build_views
    from simclrv2_tf.settings.config import Config

    config = Config(
        resnet_depth=depth,
        image_size=size,
        train_batch_size=batch,
        jit_compile=str(xla).lower(),
        remat="remat" in CASES[case],
        grad_cache_micro_batch=micro_batch if "micro_batch" in CASES[case] else 0,
    )
    network = build_network(config, tf.distribute.get_strategy(), num_classes=0)
    model = SimCLR(network, build_views(config, SimCLR), micro_batch=config.grad_cache_micro_batch)
    model.compile(build_optimizer("lars", 0.1), jit_compile=xla)
    pixels = tf.random.stateless_uniform([batch, 2, size, size, 3], (0, 0), 0, 256, tf.int32)
    images = {
        "images": tf.cast(pixels, tf.uint8),
        "labels": tf.fill([batch], -1),
        "draws": tf.random.stateless_uniform([batch, 2, NUM_DRAWS], (0, 1)),
    }
    step, batches = model.make_train_function(), iter(tf.data.Dataset.from_tensors(images).repeat())
    before = resident()
    seconds = []
    for _ in range(3):  # the first one compiles
        start = time.perf_counter()
        loss = float(step(batches)["loss"])
        seconds.append(time.perf_counter() - start)
    if tf.config.list_physical_devices("GPU"):
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"loss": loss, "seconds": min(seconds[1:]), "gib": peak / 2**30}


def resident() -> int:
    """Returns the resident memory of this process, bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    """Runs every case and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--resnet_depth", type=int, default=50)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128, help="images, of two views")
    parser.add_argument("--micro_batch", type=int, default=16)
    parser.add_argument("--xla", action="store_true")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    sizes = (settings.resnet_depth, settings.image_size, settings.batch, settings.micro_batch, settings.xla)
    if settings.child:
        print(json.dumps(measure(settings.child, *sizes)))
        return
    print("| case | loss | seconds a step | GiB | seconds : plain | plain : GiB |\n|---|---|---|---|---|---|")
    results = {}
    for case in settings.cases:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", case]
        output = subprocess.run(command, check=True, capture_output=True, text=True)
        results[case] = one = json.loads(output.stdout.splitlines()[-1])
        first = results[settings.cases[0]]
        ratios = f"{one['seconds'] / first['seconds']:.2f} | {first['gib'] / one['gib']:.1f}"
        print(f"| {case} | {one['loss']:.4f} | {one['seconds']:.1f} | {one['gib']:.2f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
