"""Measures batch norm over two replicas without XLA, forward and backward: ours against Keras's, in CPU milliseconds.

    python benchmarks/batch_norm.py [--rounds=10]

Two logical CPU devices, one thread each; a replica's batch is 64 images. What counts is the CPU time of the process,
the least of several rounds.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

SHAPES = [(64, 32, 32, 64), (64, 8, 8, 256)]


def contestants() -> dict:
    import keras

    from simclrv2_tf.models import BatchNorm

    return {
        "ours, fused kernels": BatchNorm,
        "ours, op by op (for XLA)": lambda **how: BatchNorm(fused=False, **how),
        "Keras, synchronized": lambda **how: keras.layers.BatchNormalization(synchronized=True, **how),
        "ours, each replica alone": lambda **how: BatchNorm(synchronized=False, **how),
    }


def cost(strategy, make_layer, shape: tuple[int, ...], policy: str, rounds: int) -> float:
    """Measures the CPU milliseconds of one forward and backward pass on all replicas."""
    import tensorflow as tf

    with strategy.scope():
        layer = make_layer(dtype=policy)
        layer.build(shape)
    x, dy = (tf.cast(tf.random.stateless_normal(shape, [0, seed]), layer.compute_dtype) for seed in range(2))

    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, [x, layer.gamma.value, layer.beta.value], dy)

    run = tf.function(lambda: strategy.run(step, (x, dy)), autograph=False)
    run()
    seconds = []
    for _ in range(rounds):
        before = time.process_time()
        tf.nest.map_structure(lambda t: t.numpy(), strategy.experimental_local_results(run()[0]))
        seconds.append(time.process_time() - before)
    return 1000 * min(seconds)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rounds", type=int, default=10)
    arguments = flags.parse_args()
    from simclrv2_tf.env import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for policy in ("float32", "mixed_bfloat16"):
        for shape in SHAPES:
            costs = {
                name: cost(strategy, make, shape, policy, arguments.rounds) for name, make in contestants().items()
            }
            ours = costs["ours, fused kernels"]
            for name, milliseconds in costs.items():
                print(f"{policy:15s} {shape!s:18s} {name:25s} {milliseconds:7.1f} ms  {milliseconds / ours:.2f}x ours")


if __name__ == "__main__":
    main()
