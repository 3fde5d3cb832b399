"""Slurm cluster on one machine, for tests: munge, a controller, and two nodes in network namespaces.

``python tests/distributed/slurm_cluster.py COMMAND …`` runs a command in it.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "nsenter")  # apt-get install slurm-wlm munge iproute2
NETWORK = "10.213.47"  # nodes are named by address, which needs no entry in /etc/hosts
CONTROLLER, NODES = f"{NETWORK}.254", (f"{NETWORK}.1", f"{NETWORK}.2")
CONFIG = """
ClusterName=test
SlurmctldHost={host}({controller})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
JobRequeue=1
ReturnToService=2
SchedulerParameters=bf_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
NodeName={nodes[0]} NodeAddr={nodes[0]} CPUs=1 State=UNKNOWN
NodeName={nodes[1]} NodeAddr={nodes[1]} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Returns the programs that are not installed, and "root" for other users: the daemons need it."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    return [name for name in PROGRAMS if not shutil.which(name, path=path)] + (["root"] if os.geteuid() else [])


@contextlib.contextmanager
def slurm_cluster() -> Iterator[dict[str, str]]:
    """Starts the daemons, yields the environment for Slurm's commands, and stops the daemons at the end."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": os.environ.get("PATH", "") + ":/usr/sbin",
    }
    names = {"host": socket.gethostname(), "controller": CONTROLLER, "nodes": NODES}
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, **names))
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}={folder}/munge.{name[:3]}" for name in ("pid-file", "log-file", "seed-file")]
    daemons = [munge, ["slurmctld", "-D", "-c"]]  # `ip netns exec` would hide the cgroups from slurmd
    daemons += [["nsenter", f"--net=/run/netns/slurm-{node}", "slurmd", "-D", "-c", "-N", node] for node in NODES]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(_network())
        for number, command in enumerate(daemons):
            output = stack.enter_context((folder / f"daemon{number}.out").open("w"))
            daemon = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
        subprocess.run(["scontrol", "--quiet", "ping"], env=environment, check=False, timeout=60)
        yield environment | {"SLURM_TEST_FOLDER": str(folder)}


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Connects one network namespace per node to this machine by a bridge without outside access."""

    def ip(arguments: str) -> None:
        subprocess.run(["ip", *arguments.split()], check=True)

    with contextlib.ExitStack() as stack:
        ip("link add slurm-test type bridge")
        stack.callback(ip, "link del slurm-test")
        ip(f"addr add {CONTROLLER}/24 dev slurm-test")
        ip("link set slurm-test up")
        for number, node in enumerate(NODES):
            ip(f"netns add slurm-{node}")
            stack.callback(ip, f"netns del slurm-{node}")
            ip(f"link add slurm-test{number} type veth peer name eth0 netns slurm-{node}")
            ip(f"link set slurm-test{number} master slurm-test up")
            for command in (f"addr add {node}/24 dev eth0", "link set eth0 up", "link set lo up"):
                ip(f"-n slurm-{node} {command}")
        yield


if __name__ == "__main__":
    with slurm_cluster() as environment:
        sys.exit(subprocess.run(sys.argv[1:], env=environment, check=False).returncode)
