"""Compiles a program for TPUs that are not attached: ``python compiler.py PROGRAM TOPOLOGY`` prints JSON.

It runs in a process of its own and imports neither TensorFlow nor the rest of the package: libtpu ends its process on
an input that it does not know, and its memory is free again afterwards. PROGRAM is a file with a serialized HLO module
that every replica of TOPOLOGY, such as ``v4:2x2x4``, runs.
"""

import json
import os
import pathlib
import re
import sys

# Keeps libtpu from looking for a TPU of this machine and lets several processes use it at the same time.
LIBTPU_ENVIRONMENT = dict(
    JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v4-8", TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)  # fmt: skip
TOO_LARGE = r"Used ([\d.]+)G of ([\d.]+)G hbm"
GIGABYTE = 2**30


def compile_program(program: bytes, topology: str) -> dict[str, float]:
    """Compiles a program; returns bytes of memory (``needed``, ``limit`` if that is exceeded), operations, bytes moved.

    Args:
        program: a serialized HLO module.
        topology: generation and chips.
    """
    import numpy as np
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax, xla_client
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies

    one_device_per_chip = {"chip_config_name": "megacore_dense"} if topology.startswith("v4") else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **one_device_per_chip).devices
    options = xla_client.CompileOptions()
    options.num_replicas = len(devices)
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id] for device in devices]))
    text = _jax.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(program))
    text = text.decode() if isinstance(text, bytes) else text
    with mlir.make_ir_context():
        # StableHLO has no copy; a barrier is one that the compiler may leave out as well.
        module = ir.Module.parse(text.replace("mhlo.copy", "stablehlo.optimization_barrier"))
        try:
            compiled = devices[0].client.compile(module, xla_client.DeviceList(tuple(devices)), options)
        except Exception as error:
            match = re.search(TOO_LARGE, str(error))
            if not match:
                raise
            return {"needed": float(match[1]) * GIGABYTE, "limit": float(match[2]) * GIGABYTE}
    memory, costs = compiled.get_compiled_memory_stats(), compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    variables_and_input = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    code = memory.generated_code_size_in_bytes
    return {
        "needed": variables_and_input + memory.temp_size_in_bytes + code,
        "variables and input": variables_and_input,
        "temporaries": memory.temp_size_in_bytes,
        "program": code,
        "operations": costs["flops"],
        "moved": costs["bytes accessed"],
        "all-reduces": len(re.findall(r" all-reduce(?:-start)?\(", compiled.hlo_modules()[0].to_string())),
    }


if __name__ == "__main__":
    os.environ.update(LIBTPU_ENVIRONMENT)
    print(json.dumps(compile_program(pathlib.Path(sys.argv[1]).read_bytes(), sys.argv[2])))
