"""Compiles a program for TPUs that are not there: ``python tpu_compiler.py PROGRAM TOPOLOGY`` prints JSON.

A program of its own, which imports neither TensorFlow nor the rest of the package: libtpu ends its process where it
meets what it does not know, and its memory is free again when it is done. PROGRAM is a file with a serialised HLO
module that every replica of TOPOLOGY, such as ``v4:2x2x4``, runs.
"""

import json
import os
import pathlib
import re
import sys

# libtpu is told not to look for this machine's TPU, and that others may use it at the same time.
NOWHERE = dict(
    JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v4-8", TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)  # fmt: skip
TOO_LARGE = r"Used ([\d.]+)G of ([\d.]+)G hbm"
GIGABYTE = 2**30


def compile_for(program: bytes, topology: str) -> dict[str, float]:
    """What the compiler tells: bytes of memory (``needed``, ``limit`` if it is too much), operations, bytes moved."""
    import numpy as np
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax, xla_client
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies

    one_device_a_chip = {"chip_config_name": "megacore_dense"} if topology.startswith("v4") else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **one_device_a_chip).devices
    options = xla_client.CompileOptions()
    options.num_replicas = len(devices)
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id] for device in devices]))
    text = _jax.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(program))
    text = text.decode() if isinstance(text, bytes) else text
    with mlir.make_ir_context():
        # StableHLO has no copy; a barrier is one that the compiler may leave out likewise.
        module = ir.Module.parse(text.replace("mhlo.copy", "stablehlo.optimization_barrier"))
        try:
            compiled = devices[0].client.compile(module, xla_client.DeviceList(tuple(devices)), options)
        except Exception as error:
            found = re.search(TOO_LARGE, str(error))
            if not found:
                raise
            return {"needed": float(found[1]) * GIGABYTE, "limit": float(found[2]) * GIGABYTE}
    memory, costs = compiled.get_compiled_memory_stats(), compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    kept, code = memory.argument_size_in_bytes, memory.generated_code_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "needed": kept + results + memory.temp_size_in_bytes + code,
        "variables and input": kept + results,
        "temporaries": memory.temp_size_in_bytes,
        "program": code,
        "operations": costs["flops"],
        "moved": costs["bytes accessed"],
        "all-reduces": len(re.findall(r" all-reduce(?:-start)?\(", compiled.hlo_modules()[0].to_string())),
    }


if __name__ == "__main__":
    os.environ.update(NOWHERE)
    print(json.dumps(compile_for(pathlib.Path(sys.argv[1]).read_bytes(), sys.argv[2])))
