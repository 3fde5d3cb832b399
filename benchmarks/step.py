"""Compares a pretraining step with PyTorch's: ``SimCLR.train_step``, looped as in a run, and ``torch_step.py``.

    python benchmarks/step.py --torch-python=PATH [--device=cpu|gpu] [--rounds=2] [--case=NAME] [--toy]
    python benchmarks/step.py --profile [--device=cpu|gpu] [--threads=1] [--case=NAME]

Both take uint8 crops and do flip, colour, blur (unless a case leaves them out), network, NT-Xent and LARS in the step.
Ours takes its crops from ``tf.data`` as in training, copied to a GPU ahead of their step; PyTorch's lie on the device.
PyTorch has a Python of its own (``--torch-python``). Every contestant runs in a fresh process, one after the other, in
several rounds; of each the best round counts, as other programs can only slow it down. An image is two views. ``--toy``
tries all of it on a CPU.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
PEER = "torch_step.py"


class Case(NamedTuple):
    """The settings of every contestant."""

    depth: int
    image_size: int
    batch: int
    steps: int
    dtype: str
    augment: int = 1


LARGE, SMALL = Case(50, 224, 256, 30, "bfloat16"), Case(18, 32, 512, 300, "bfloat16")
CASES = {
    "cpu": {
        "ResNet-18, 32 px, 128 images, float32": Case(18, 32, 128, 3, "float32"),
        "ResNet-18, 32 px, 128 images, bfloat16": Case(18, 32, 128, 3, "bfloat16"),
    },
    "gpu": {
        "ResNet-50, 224 px, 256 images": LARGE,
        "ResNet-50, 224 px, 256 images, no augmentation": LARGE._replace(augment=0),
        "ResNet-18, 32 px, 512 images": SMALL,
        "ResNet-18, 32 px, 512 images, no augmentation": SMALL._replace(augment=0),
    },
}
CONTESTANTS = {  # XLA is what a run has by default: on with a GPU, off without
    "cpu": {"ours": "--jit=auto", "torch eager": "", "torch compiled": "--compiled"},
    "gpu": {"ours": "--jit=true", "ours without XLA": "--jit=false", "torch eager": "", "torch compiled": "--compiled"},
}


def prepare(arguments: argparse.Namespace):
    """Builds our model, and a function from a number of batches to these."""
    from simclrv2_tf.env import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    from simclrv2_tf.data.augment import NUM_DRAWS
    from simclrv2_tf.distributed.devices import choose_strategy
    from simclrv2_tf.methods.schedules import Plan
    from simclrv2_tf.methods.simclr import SimCLR
    from simclrv2_tf.modes.setup import build_network, build_views, compile_method
    from simclrv2_tf.settings.config import Config

    if arguments.threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    small = arguments.image_size <= 32
    config = Config(
        resnet_depth=arguments.depth,
        image_size=arguments.image_size,
        train_batch_size=arguments.batch,
        color_jitter_strength=arguments.augment * (0.5 if small else 1.0),
        use_blur=bool(arguments.augment) and not small,
        use_flip=bool(arguments.augment),
        jit_compile=arguments.jit,
        mixed_precision=arguments.dtype,
    )
    strategy = choose_strategy(config)
    with strategy.scope():
        network = build_network(config, strategy, num_classes=0)
        model = SimCLR.from_settings(network, build_views(config, SimCLR), config)
        compile_method(model, config, strategy, Plan.of(config, 1_281_167))
    batch = {
        "images": tf.cast(
            256 * tf.random.uniform([arguments.batch, 2, arguments.image_size, arguments.image_size, 3]), tf.uint8
        ),
        "draws": tf.random.uniform([arguments.batch, 2, NUM_DRAWS]),
        "labels": tf.zeros([arguments.batch], tf.int32),
    }
    return model, lambda steps: tf.data.Dataset.from_tensors(batch).repeat(steps).prefetch(2)


def measure(arguments: argparse.Namespace) -> dict[str, str | float]:
    """Measures the images/s of our step, in this process."""
    model, batches = prepare(arguments)
    from simclrv2_tf.distributed.devices import prefetch_device
    from simclrv2_tf.methods.inference import distribute
    from simclrv2_tf.settings.config import Config

    at_once = model.steps_per_execution
    calls = max(1, arguments.steps // at_once)
    iterator = iter(
        distribute(
            model.distribute_strategy,
            arguments.batch,
            lambda part: batches((calls + 2) * at_once),
            prefetch_device(Config()),
        )
    )

    def run(calls: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            float(model.run_steps(iterator, at_once)["loss"])
        return time.perf_counter() - wall, time.process_time() - cpu

    first, _ = run(1)
    run(1)
    wall, cpu = run(calls)
    images = calls * at_once * arguments.batch
    import tensorflow as tf

    name = f"tensorflow {tf.__version__}" + (" with XLA" if model.jit_compile else "")
    return {"name": name, "rate": images / wall, "per_cpu_second": images / cpu, "first_step": first}


def profile(arguments: argparse.Namespace) -> None:
    """Prints the milliseconds of our step by operation on a CPU, by kernel on a GPU."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

    model, batches = prepare(arguments)
    steps = model.steps_per_execution
    model.fit(batches(2 * steps), verbose=0, shuffle=False)
    with tempfile.TemporaryDirectory() as directory:
        with tf.profiler.experimental.Profile(directory):
            model.fit(batches(steps), verbose=0, shuffle=False)
        space = XSpace.FromString(next(pathlib.Path(directory).rglob("*.xplane.pb")).read_bytes())
    spent, count = Counter(), Counter()
    for plane in space.planes:
        if plane.name.startswith("/device:GPU" if arguments.device == "gpu" else "/host:CPU"):
            for line in plane.lines:
                for name, picoseconds in _own_time(line.events):
                    _, colon, operation = plane.event_metadata[name].name.rpartition(":")
                    kind = re.sub(r"[_.\d]+$", "", operation)
                    # The others are the executor, which waits for the operations.
                    if arguments.device == "gpu" or (colon and kind not in ("Run", "Process")):
                        spent[kind] += picoseconds
                        count[kind] += 1
    for kind, picoseconds in spent.most_common(20):
        share, times = picoseconds / sum(spent.values()), count[kind] / steps
        print(f"{picoseconds / 1e9 / steps:10.2f} ms a step {share:6.1%} {times:6.0f} x {kind[:80]}")


def _own_time(events) -> Iterator[tuple[int, int]]:
    """Yields the name of each event, and its duration without the events inside it."""
    open_ones = []  # [end, name, own]
    for event in sorted(events, key=lambda event: (event.offset_ps, -event.duration_ps)):
        while open_ones and open_ones[-1][0] <= event.offset_ps:
            yield tuple(open_ones.pop()[1:])
        if open_ones:
            open_ones[-1][2] -= event.duration_ps
        open_ones.append([event.offset_ps + event.duration_ps, event.metadata_id, event.duration_ps])
    for event in open_ones:
        yield tuple(event[1:])


def in_child(who: str, case: Case, arguments: argparse.Namespace) -> dict[str, str | float]:
    """Runs a contestant in a process of its own and returns what it measured."""
    here, switch = pathlib.Path(__file__), CONTESTANTS[arguments.device][who]
    command = (
        [sys.executable, here, "--child"] if who.startswith("ours") else [arguments.torch_python, here.parent / PEER]
    )
    settings = case._asdict() | {"device": "cpu" if arguments.toy else arguments.device, "threads": arguments.threads}
    flags = [switch] * bool(switch) + [f"--{name}={value}" for name, value in settings.items()]
    ran = subprocess.run([*map(str, command), *flags], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def compare(name: str, case: Case, arguments: argparse.Namespace) -> None:
    """Prints a row per contestant: its rate, and the ratio to those of PyTorch."""
    rounds = [
        {who: in_child(who, case, arguments) for who in CONTESTANTS[arguments.device]} for _ in range(arguments.rounds)
    ]
    best = {who: max((results[who] for results in rounds), key=lambda result: result["rate"]) for who in rounds[0]}
    leanest = {who: max(results[who]["per_cpu_second"] for results in rounds) for who in rounds[0]}
    for who, result in best.items():
        cells = [name, f"{who} ({result['name']})", f"{result['rate']:,.4g}"]
        cells += [f"{result['rate'] / best[peer]['rate']:.2f}" for peer in ("torch eager", "torch compiled")]
        cells += [f"{leanest[who]:,.4g}", f"{leanest[who] / leanest['torch eager']:.2f}", f"{result['first_step']:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--torch-python", default=sys.executable, help="a Python that has PyTorch")
    flags.add_argument("--device", default="cpu", choices=CASES)
    flags.add_argument("--case", default="", help="only the cases whose name contains this")
    flags.add_argument("--rounds", type=int, default=2)
    flags.add_argument("--threads", type=int, default=0, help="of a CPU; 0: as the frameworks choose")
    flags.add_argument("--profile", action="store_true", help="where the time of our step goes, instead")
    flags.add_argument("--toy", action="store_true", help="tiny sizes, on a CPU: does it run?")
    flags.add_argument("--jit", default="auto", help=argparse.SUPPRESS)
    flags.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    for name, kind in Case.__annotations__.items():
        flags.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    arguments = flags.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments)))
        return
    if not arguments.profile:
        print("| step | who | images/s | x eager | x compiled | images a CPU second | x eager | first step, s |")
        print("|---" * 8 + "|")
    for name, case in CASES[arguments.device].items():
        if arguments.toy:
            case = case._replace(depth=18, image_size=min(case.image_size, 64), batch=8, steps=2)
        if arguments.case not in name:
            continue
        if arguments.profile:
            print(name)
            profile(argparse.Namespace(**vars(arguments) | case._asdict()))
        else:
            compare(f"{name}{', toy size' * arguments.toy}", case, arguments)


if __name__ == "__main__":
    main()
