"""Callback for the test of deploy/slurm: sends SIGTERM to its own job, as Slurm does before a preemption."""

import os
import subprocess

import keras


class Preemption(keras.callbacks.Callback):
    """Sends the signal after the fourth step of the first start of the job."""

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        is_first_start = os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
        if batch == 3 and is_first_start and os.environ["SLURM_PROCID"] == "0":
            subprocess.run(["scancel", "--signal=TERM", os.environ["SLURM_JOB_ID"]], check=True)


def notice() -> Preemption:
    """Returns the callback."""
    return Preemption()
