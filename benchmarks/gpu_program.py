"""Lists the kernels that XLA compiles for a training step on an H100, without one, and the memory that they move.

    python -m venv /tmp/jax && /tmp/jax/bin/pip install "jax[cuda12]"
    python benchmarks/gpu_program.py --jax-python=/tmp/jax/bin/python [--depth=50] [--image_size=224] [--batch=256]

TensorFlow lowers the step; XLA's compiler for GPUs, which JAX brings along, compiles it for a description of the GPU.
It shows how XLA fuses, not how long a kernel takes: without the GPU nothing is tuned. A kernel's bytes are those of its
operands and results, each counted whole, which is too much where a slice is read; the time is what moving them takes at
the full bandwidth, a lower bound. The stem's max-pool is compiled by itself, too, beside TensorFlow's.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections import Counter

os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

BANDWIDTH = 3.35e12  # bytes a second
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
ITEMSIZE = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
WITHOUT_KERNEL = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast")


def step_program(arguments: argparse.Namespace) -> str:
    """Lowers ``SimCLR.train_step`` for one GPU to StableHLO."""
    import tensorflow as tf

    from simclrv2_tf.data.augment import NUM_DRAWS
    from simclrv2_tf.methods.schedules import Plan
    from simclrv2_tf.methods.simclr import SimCLR
    from simclrv2_tf.modes.setup import build_network, build_views, compile_method
    from simclrv2_tf.settings.config import Config

    settings = {"color_jitter_strength": 0.5, "use_blur": False} if arguments.image_size <= 32 else {}
    config = Config(
        resnet_depth=arguments.depth,
        image_size=arguments.image_size,
        train_batch_size=arguments.batch,
        jit_compile="true",
        mixed_precision="bfloat16",
        **settings,
    )
    strategy = tf.distribute.get_strategy()
    network = build_network(config, strategy, num_classes=0)
    model = SimCLR.from_settings(network, build_views(config, SimCLR), config)
    compile_method(model, config, strategy, Plan.of(config, 1_281_167))
    batch = {
        "images": tf.zeros([arguments.batch, 2, arguments.image_size, arguments.image_size, 3], tf.uint8),
        "draws": tf.zeros([arguments.batch, 2, NUM_DRAWS]),
        "labels": tf.zeros([arguments.batch], tf.int32),
    }
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    return step.experimental_get_compiler_ir(batch)(stage="stablehlo")


def pool_program(views: int, ours: bool) -> str:
    """Lowers the ReLU and the max-pool of the stem at 224 px, forward and backward, to StableHLO."""
    import tensorflow as tf

    from simclrv2_tf.models.layers import max_pool

    pool = max_pool if ours else lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME")

    @tf.function(jit_compile=True, autograph=False)
    def forward_and_backward(x: tf.Tensor, dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = pool(tf.nn.relu(x))
        return y, tape.gradient(y, x, dy)

    shapes = [(views, 112, 112, 64), (views, 56, 56, 64)]
    program = forward_and_backward.experimental_get_compiler_ir(
        *(tf.TensorSpec(shape, tf.bfloat16) for shape in shapes)
    )
    return program(stage="stablehlo")


def compile_for_gpu(program: str) -> str:
    """Returns the HLO of a program after XLA's passes for an H100; runs in a Python with JAX."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax
    from jax.experimental.topologies import get_topology_desc
    from jaxlib.mlir import ir

    # TensorFlow's MLIR writes eight booleans a byte, JAX's reads one.
    unpacked = lambda match: "".join(  # noqa: E731
        f"{byte >> bit & 1:02X}" for byte in bytes.fromhex(match[1]) for bit in range(8)
    )
    program = re.sub(r'(?<=dense<"0x)([0-9A-F]+)(?="> : tensor<[0-9x]+xi1>)', unpacked, program)
    program = program.replace("mhlo.copy", "stablehlo.optimization_barrier")
    devices = get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1").devices
    options = compiler.get_compile_options(num_replicas=1, num_partitions=1)
    with mlir.make_ir_context():
        compiled = devices[0].client.compile(ir.Module.parse(program), _jax.DeviceList(tuple(devices)), options)
    return compiled.hlo_modules()[0].to_string()


def kernels(hlo: str) -> list[tuple[int, str, str]]:
    """Returns bytes, name and origin of every kernel of the entry computation."""
    kernel_list, sizes = [], {}
    for line in hlo[hlo.index("ENTRY") :].splitlines():
        match = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)", line)
        if match is None:
            continue
        name, shapes, op, operands, rest = match.groups()
        sizes[name] = sum(_bytes(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", shapes))
        if op not in WITHOUT_KERNEL:
            moved = sizes[name] + sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", operands))
            target, origin = (re.search(f'{key}="([^"]+)"', rest) for key in ("custom_call_target", "op_name"))
            kind = "convolution" if target and "cudnn" in target[1] else re.sub(r"[.\d]+$", "", name)
            kernel_list.append((moved, kind, origin[1] if origin else ""))
    return kernel_list


def _bytes(dtype: str, sides: str) -> int:
    size = ITEMSIZE.get(dtype, 0)
    for side in sides.split(",") if sides else ():
        size *= int(side)
    return size


def report(title: str, program: str, arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "program.mlir")
        path.write_text(program)
        command = [arguments.jax_python, __file__, "--compile", str(path)]
        kernel_list = kernels(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    print(f"\n{title}: {len(kernel_list)} kernels, {_amount(sum(moved for moved, _, _ in kernel_list))}")
    total, count = Counter(), Counter()
    for moved, kind, _ in kernel_list:
        total[kind] += moved
        count[kind] += 1
    for kind, moved in total.most_common(arguments.top):
        print(f"  {count[kind]:5d} {kind:40s} {_amount(moved)}")


def _amount(moved: int) -> str:
    return f"{moved / 1e9:8.2f} GB {1000 * moved / BANDWIDTH:6.2f} ms"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--jax-python", default=sys.executable, help="a Python that has JAX for CUDA")
    for name, default in {"depth": 50, "image_size": 224, "batch": 256, "top": 15}.items():
        flags.add_argument(f"--{name}", type=int, default=default)
    flags.add_argument("--compile", help=argparse.SUPPRESS)
    arguments = flags.parse_args()
    if arguments.compile:
        print(compile_for_gpu(pathlib.Path(arguments.compile).read_text()))
        return
    for ours in (True, False):
        name = "ours" if ours else "TensorFlow's"
        report(f"max-pool, {name}, {2 * arguments.batch} views", pool_program(2 * arguments.batch, ours), arguments)
    report(
        f"ResNet-{arguments.depth}, {arguments.image_size} px, {arguments.batch} images",
        step_program(arguments),
        arguments,
    )


if __name__ == "__main__":
    main()
