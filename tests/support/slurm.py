"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd, without systemd or cgroups.

`apt-get install slurm-wlm munge` brings them. All their files are in a folder of their own: what the machine itself has
in /etc/slurm is neither read nor changed.
"""

import functools
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.support import missing, wait_until
from tests.support.killing import lives
from tests.support.mlflow_server import free_port

#: Names of machines are addresses, too.
NODES = ("127.0.0.1", "127.0.0.2")
#: What SLURM grants to the tasks of a step that it ends, between SIGTERM and SIGKILL.
KILL_WAIT_S = 5
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
#: A requeued job waits for cred_expire; a node without an answer for SlurmdTimeout is lost, and its job is requeued.
_CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdTimeout=10
KillWait={kill_wait_s}
ReturnToService=2
JobRequeue=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
MpiDefault=none
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 CoresPerSocket=2 RealMemory=8000
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 CoresPerSocket=2 RealMemory=8000
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """The folder of its files, and its daemons by name: munged, slurmctld and the nodes."""

    folder: Path
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def lose(self, node):
        """SIGKILL to a node's daemon and to all that runs there, as a machine that loses its power."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        self._kill_jobs(node)

    def start(self, node):
        """Starts a node."""
        self._daemon(node, "slurmd", "-D", "-N", node)

    def logs(self):
        """The ends of the daemons' logs."""
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log")))

    def _kill_jobs(self, node=None):
        """The processes of jobs, on all nodes or on one, and SLURM's own above them."""
        doomed = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                ours = "SLURMD_NODENAME" in environment and environment.get("SLURM_CONF") == os.environ["SLURM_CONF"]
                if ours and node in (None, environment["SLURMD_NODENAME"]):
                    steps = (one for one in process.parents() if one.name() == "slurmstepd")
                    doomed |= {process, *steps}
        for process in doomed:
            with suppress(psutil.Error):
                process.kill()

    def _daemon(self, name, *command):
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )


def said(*command):
    """What a command of SLURM prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def jobs():
    """`JOB STATE NODE` of each task of each job that is not over."""
    return said("squeue", "--noheader", "--array", "--format=%i %T %N").splitlines()


@contextmanager
def running():
    """Starts the cluster, and names it to SLURM's commands by SLURM_CONF; ends it, and its jobs."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin")
        if absent := [name for name in _PROGRAMS if shutil.which(name) is None]:
            missing(f"SLURM's {absent[0]} is not installed: apt-get install slurm-wlm munge")
        # beside pytest's own folders: their names are too long for a socket
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        claims = [free_port() for _ in range(3)]
        for claim, _ in claims:
            stack.enter_context(claim)
        values = {
            "host": socket.gethostname(), "user": getpass.getuser(), "ports": [port for _, port in claims],
            "kill_wait_s": KILL_WAIT_S,
        }  # fmt: skip
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text(_CONF.format(folder=folder, **values))
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (folder / "key").write_bytes(secrets.token_bytes(128))
        (folder / "key").chmod(0o600)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        cluster = Cluster(folder)
        stack.callback(_end, cluster)
        files = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("socket", "pid-file", "seed-file")]
        logs = [f"--log-file={folder}/munge.log", f"--key-file={folder}/key"]
        cluster._daemon("munged", "munged", "--foreground", "--force", *files, *logs)
        alive = functools.partial(_all_live, cluster)
        wait_until((folder / "munge.socket").exists, 60, alive=alive, says=cluster.logs)
        cluster._daemon("slurmctld", "slurmctld", "-D")
        for node in NODES:
            cluster.start(node)
        wait_until(lambda: _states() == {"idle"}, 60, alive=alive, says=cluster.logs)
        yield cluster


def _states():
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T"], capture_output=True, text=True, check=False, timeout=60
    )
    return set(done.stdout.split())


def _all_live(cluster):
    return all(lives(process.pid) for process in cluster.daemons.values())


def _end(cluster):
    cluster._kill_jobs()
    for process in reversed(cluster.daemons.values()):
        process.terminate()
    for process in cluster.daemons.values():
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    cluster._kill_jobs()
