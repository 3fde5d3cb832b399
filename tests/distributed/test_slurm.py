"""deploy/slurm/pretrain.sbatch on a real Slurm of two nodes: preempted, requeued, and resumed to the same bits."""

import os
import pathlib
import re
import subprocess
import sys

import children
import pytest
import slurm_cluster

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = children.TOY | {"memory_size": 0, "checkpoint_steps": 100, "worker_timeout": 300}
del SETTINGS["mode"]  # the script has it

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_cluster.missing_programs()), reason="needs slurm-wlm, munge, iproute2 and root"),
]


def submit(environment, folder, callbacks=""):
    """Submits the script and waits for the end of the job; returns its output."""
    flags = SETTINGS | {"model_dir": folder / "run", "callbacks": callbacks}
    command = ["sbatch", "--wait", f"--output={folder}/log", f"--chdir={ROOT}", "deploy/slurm/pretrain.sbatch"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    output = (folder / "log").read_text()
    assert run.returncode == 0, (run.stderr, output)
    return output


def test_a_preempted_job_is_requeued_and_ends_with_the_same_bits(tmp_path):
    for name in ("whole", "preempted"):
        (tmp_path / name).mkdir()
    with slurm_cluster.slurm_cluster() as environment:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/distributed")])
        environment |= {"PYTHON": sys.executable, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
        whole = submit(environment, tmp_path / "whole")
        preempted = submit(environment, tmp_path / "preempted", "preempted:notice")
    assert "MultiWorkerMirroredStrategy, 25 images per replica" in whole and "requeueing" not in whole
    assert re.search(r"Stopped at step [45] of 11\.", preempted)
    assert re.search(r"Exit status 143: requeueing job \d+\.", preempted)
    assert re.search(r"Resuming from step [45] of 11", preempted) and preempted.count("pretrain: done") == 1
    children.assert_same_records(tmp_path / "preempted/run", tmp_path / "whole/run")
