"""Compares time and memory of NT-Xent from the whole similarity matrix and in tiles.

    python benchmarks/nt_xent.py [--rows 512 8192] [--xla] [--tile 0]

Each case runs in its own process: loss, accuracy, entropy and gradient for 128-dimensional projections in float32, one
replica. Times are the best of several calls. Memory is the peak resident set above that before the first call of this
size; on a GPU, TensorFlow's own peak.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WIDTH, TEMPERATURE = 128, 0.1


def measure(form: str, rows: int, xla: bool, tile: int) -> dict[str, float]:
    """Measures loss, wall and CPU milliseconds per call and peak MiB of one case, in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from simclrv2_tf.methods import losses, nt_xent_tiled

    if form == "plain":
        losses.MATRIX_ENTRIES = 2**62

    @tf.function(jit_compile=xla, autograph=False)
    def step(hidden):
        rows_per_tile = 0 if form == "plain" else nt_xent_tiled.tile_rows(hidden.shape[0], tile)
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            result = losses.nt_xent(*tf.split(hidden, 2), TEMPERATURE, tile=rows_per_tile)
        return *result, tape.gradient(result.loss, hidden)

    hidden = tf.random.stateless_normal([rows, WIDTH], (0, 0))
    step(hidden[:32])  # memory of the compiler and the libraries
    before = resident_bytes()
    wall, cpu, end = [], [], time.perf_counter() + 10
    while len(wall) < 3 or (len(wall) < 200 and time.perf_counter() < end):  # the first call traces
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        loss = float(step(hidden)[0])
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    if tf.config.list_physical_devices("GPU"):
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"loss": loss, "ms": 1e3 * min(wall), "cpu_ms": 1e3 * min(cpu), "mib": peak / 2**20}


def resident_bytes() -> int:
    """Returns the resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    """Measures every case and prints a table."""
    parser = argparse.ArgumentParser()
    sizes = [128, 256, 512, 1024, 2048, 4096, 8192]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes, help="2N, both views of the batch")
    parser.add_argument("--xla", action="store_true")
    parser.add_argument("--tile", type=int, default=0, help="rows per tile; 0: as tile_rows chooses")
    parser.add_argument("--forms", nargs="+", default=["plain", "tiled"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.rows[0], arguments.xla, arguments.tile)))
        return
    print("| rows (2N) | form | loss | ms | CPU ms | peak MiB |\n|---|---|---|---|---|---|")
    for rows in arguments.rows:
        results = {}
        for form in arguments.forms:
            command = [sys.executable, __file__, "--child", form, "--rows", str(rows), "--tile", str(arguments.tile)]
            output = subprocess.run(command + ["--xla"] * arguments.xla, check=True, capture_output=True, text=True)
            results[form] = result = json.loads(output.stdout.splitlines()[-1])
            numbers = f"{result['ms']:.1f} | {result['cpu_ms']:.1f} | {result['mib']:.0f}"
            print(f"| {rows:,} | {form} | {result['loss']:.6f} | {numbers} |", flush=True)
        if len(results) == 2:
            plain, tiled = results.values()
            ratios = " | ".join(f"{plain[name] / max(tiled[name], 1e-9):.2f}" for name in ("ms", "cpu_ms", "mib"))
            print(f"| {rows:,} | plain : tiled | | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
