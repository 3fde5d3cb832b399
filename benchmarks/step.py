"""A pretraining step beside PyTorch's: ``SimCLR.train_step`` through ``fit`` against ``torch_step.py``.

    python benchmarks/step.py --torch-python=PATH [--device=cpu|gpu] [--rounds=2] [--case=NAME]

Both take uint8 crops and do flip, colour, blur, network, NT-Xent and LARS in the step. PyTorch has a Python of its own
(``--torch-python``, with PyTorch installed). Every contestant runs in a fresh process, one after the other, in several
rounds; of each the best round counts, as other programs can only slow it down. An image is two views.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

CASES = {
    "cpu": {
        "ResNet-18, 32 px, 128 images": {"depth": 18, "image_size": 32, "batch": 128, "steps": 3, "dtype": "float32"},
        "the same in bfloat16": {"depth": 18, "image_size": 32, "batch": 128, "steps": 3, "dtype": "bfloat16"},
    },
    "gpu": {
        "ResNet-50, 224 px, 256 images": {
            "depth": 50,
            "image_size": 224,
            "batch": 256,
            "steps": 30,
            "dtype": "bfloat16",
        },
        "ResNet-18, 32 px, 512 images": {
            "depth": 18,
            "image_size": 32,
            "batch": 512,
            "steps": 300,
            "dtype": "bfloat16",
        },
    },
}


def measure(said: argparse.Namespace) -> dict[str, str | float]:
    """Images a second of our step, in this process."""
    from simclrv2_tf.startup import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    from simclrv2_tf import build
    from simclrv2_tf.config import Config
    from simclrv2_tf.data.augment import NUM_DRAWS
    from simclrv2_tf.training.distributed import choose_strategy
    from simclrv2_tf.training.schedules import Plan
    from simclrv2_tf.training.simclr import SimCLR

    if said.threads:
        tf.config.threading.set_intra_op_parallelism_threads(said.threads)
        tf.config.threading.set_inter_op_parallelism_threads(said.threads)
    small = said.image_size <= 32
    config = Config(
        resnet_depth=said.depth,
        image_size=said.image_size,
        train_batch_size=said.batch,
        color_jitter_strength=0.5 if small else 1.0,
        use_blur=not small,
        mixed_precision=said.dtype,
    )
    strategy = choose_strategy(config)
    with strategy.scope():
        network = build.network(config, strategy, num_classes=0)
        model = SimCLR(network, build.views(config), config.temperature, config.hidden_norm, config.weight_decay)
        build.compile_model(model, config, strategy, Plan.of(config, 1_281_167))
    batch = {
        "images": tf.cast(256 * tf.random.uniform([said.batch, 2, said.image_size, said.image_size, 3]), tf.uint8),
        "draws": tf.random.uniform([said.batch, 2, NUM_DRAWS]),
        "labels": tf.zeros([said.batch], tf.int32),
    }

    def run(steps: int) -> tuple[float, float]:
        data = tf.data.Dataset.from_tensors(batch).repeat(steps).prefetch(2)
        wall, cpu = time.perf_counter(), time.process_time()
        model.fit(data, verbose=0, shuffle=False)
        return time.perf_counter() - wall, time.process_time() - cpu

    first, _ = run(model.steps_per_execution)
    run(model.steps_per_execution)
    wall, cpu = run(said.steps)
    images = said.steps * said.batch
    name = f"tensorflow {tf.__version__}" + (" with XLA" if model.jit_compile else "")
    return {"name": name, "rate": images / wall, "per_cpu_second": images / cpu, "first_step": first}


def in_child(command: list[str], case: dict[str, int | str], device: str, threads: int) -> dict[str, str | float]:
    settings = case | {"device": device, "threads": threads}
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    ran = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def compare(case: dict[str, int | str], said: argparse.Namespace) -> None:
    """Prints the contestants' rates and ours in proportion to PyTorch's."""
    here = pathlib.Path(__file__).parent
    peer = [said.torch_python, str(here / "torch_step.py")]
    contestants = {
        "ours": [sys.executable, __file__, "--child"],
        "torch eager": peer,
        "torch compiled": [*peer, "--compiled"],
    }
    rounds = [
        {who: in_child(command, case, said.device, said.threads) for who, command in contestants.items()}
        for _ in range(said.rounds)
    ]
    best = {who: max((found[who] for found in rounds), key=lambda result: result["rate"]) for who in contestants}
    leanest = {who: max(found[who]["per_cpu_second"] for found in rounds) for who in contestants}
    for who, result in best.items():
        against = "  ".join(
            f"{result['rate'] / best[other]['rate']:.2f}x {other} ({leanest[who] / leanest[other]:.2f}x a CPU second)"
            for other in contestants
            if who == "ours" != other
        )
        print(
            f"{result['name']:30s} {result['rate']:9.1f} images/s  {leanest[who]:9.1f} images a CPU second  "
            f"first step {result['first_step']:5.1f} s  {against}"
        )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--torch-python", default=sys.executable, help="a Python that has PyTorch")
    flags.add_argument("--device", default="cpu", choices=CASES)
    flags.add_argument("--case", default="", help="only the cases whose name contains this")
    flags.add_argument("--rounds", type=int, default=2)
    flags.add_argument("--threads", type=int, default=0, help="of a CPU; 0: as the frameworks choose")
    flags.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    for name, kind in {"depth": int, "image_size": int, "batch": int, "steps": int, "dtype": str}.items():
        flags.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    said = flags.parse_args()
    if said.child:
        print(json.dumps(measure(said)))
        return
    for name, case in CASES[said.device].items():
        if said.case in name:
            print(name)
            compare(case, said)


if __name__ == "__main__":
    main()
