"""NT-Xent in tiles against the textbook form, differentiated by TensorFlow: seconds, memory, and their ratios.

    python benchmarks/nt_xent.py [--rows 8192 32768] [--xla] [--tile 0]

Each case runs in a process of its own: loss, accuracy, entropy and gradient for 128-dimensional projections. Memory is
the process's greatest resident set above what it held before the first call; on a GPU, TensorFlow's own peak.
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


def textbook(view1, view2):
    """Loss, accuracy and entropy from the whole matrix of similarities."""
    import tensorflow as tf

    n = view1.shape[0]
    rows = tf.math.l2_normalize(tf.concat([view1, view2], 0), axis=1)
    logits = tf.matmul(rows, rows, transpose_b=True) / TEMPERATURE
    positives = tf.concat([tf.range(n, 2 * n), tf.range(n)], 0)
    others = tf.linalg.set_diag(logits, tf.fill([2 * n], logits.dtype.min))
    loss = 2 * tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(positives, others))
    cross = logits[:n, n:]
    shares = tf.nn.softmax(cross)
    hits = tf.argmax(cross, axis=1, output_type=tf.int32) == tf.range(n)
    entropy = -tf.reduce_mean(tf.reduce_sum(shares * tf.math.log(shares + 1e-8), axis=1))
    return loss, tf.reduce_mean(tf.cast(hits, tf.float32)), entropy


def measure(form: str, rows: int, xla: bool, tile: int) -> dict[str, float]:
    """Seconds a call and GiB of one case, in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from simclrv2_tf.methods.losses import nt_xent

    gpus = tf.config.list_physical_devices("GPU")

    @tf.function(jit_compile=xla, autograph=False)
    def step(hidden):
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            views = tf.split(hidden, 2)
            result = textbook(*views) if form == "textbook" else nt_xent(*views, TEMPERATURE, tile=tile)
        return *result, tape.gradient(result[0], hidden)

    hidden = tf.random.stateless_normal([rows, WIDTH], (0, 0))
    step(hidden[:256])  # the compiler's and the libraries' own memory
    before = resident()
    seconds = []
    for _ in range(1 if rows > 100_000 else 2 if rows > 10_000 else 5):  # the first one compiles, in less than a second
        start = time.perf_counter()
        loss = float(step(hidden)[0])
        seconds.append(time.perf_counter() - start)
    if gpus:
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"loss": loss, "seconds": min(seconds), "gib": peak / 2**30}


def resident() -> int:
    """Bytes this process has in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    """Runs every case and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[8192, 32768], help="2N, views of the batch")
    parser.add_argument("--xla", action="store_true")
    parser.add_argument("--tile", type=int, default=0)
    parser.add_argument("--forms", nargs="+", default=["textbook", "tiled"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.rows[0], arguments.xla, arguments.tile)))
        return
    print("| rows (2N) | form | loss | seconds | GiB |\n|---|---|---|---|---|")
    for rows in arguments.rows:
        found = {}
        for form in arguments.forms:
            command = [sys.executable, __file__, "--child", form, "--rows", str(rows), "--tile", str(arguments.tile)]
            output = subprocess.run(command + ["--xla"] * arguments.xla, check=True, capture_output=True, text=True)
            found[form] = one = json.loads(output.stdout.splitlines()[-1])
            print(f"| {rows} | {form} | {one['loss']:.6f} | {one['seconds']:.2f} | {one['gib']:.2f} |", flush=True)
        if len(found) == 2:
            plain, tiled = found.values()
            ratios = [plain[name] / tiled[name] for name in ("seconds", "gib")]
            print(f"| {rows} | textbook : tiled | | {ratios[0]:.2f} | {ratios[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
