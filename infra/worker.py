"""Starts a worker that trains here for runs of other machines: `make worker POOL=gpu`. It works until it is ended.

    python infra/worker.py POOL

In a clone of the same git repository, with the same remote of DVC, and Prefect's server in PREFECT_API_URL. Makes the
work pool and its deployment of flow `part` if they are missing. Credentials are this machine's environment.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from align.errors import AlignError, ConfigError, ServiceError
from align.local_stack import flow_environment, prefect_environment, running_services

DEPLOYMENT = Path(__file__).with_name("worker.yaml")
JOBS = Path(__file__).with_name("work_pool.json")
LIMIT = "1"  # parts at a time; the next one waits for this worker, or goes to another


def main(argv: list[str]) -> int:
    """Becomes Prefect's worker. Returns 1 after a line that says what is missing."""
    if len(argv) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    root = Path.cwd()
    try:
        env = environment(root, argv[0])
        deploy(root, argv[0], env)
    except AlignError as error:
        print(f"align: error: {error}", file=sys.stderr)
        return 1
    # a machine that lost its power cannot say that its runs have ended
    subprocess.run([sys.executable, "-m", "flows", "ended", "--quiet"], cwd=root, env=env, check=False)
    return _become_worker(root, argv[0], env)


def _become_worker(root: Path, pool: str, env: dict[str, str]) -> NoReturn:
    limit = os.environ.get("ALIGN_WORKER_LIMIT", LIMIT)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    command += ["--name", f"{socket.gethostname()}-{os.getpid()}", "--limit", limit]
    os.execve(command[0], command, env | {"ALIGN_ROOT": str(root)})


def environment(root: Path, pool: str) -> dict[str, str]:
    """The environment of the worker.

    Raises:
        ConfigError: the pool's name is none, or no server is named.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", pool):
        raise ConfigError(f"POOL={pool}: expected letters, digits, `.`, `_` and `-`")
    own = running_services(root).get("prefect") if "PREFECT_API_URL" not in os.environ else None
    env = prefect_environment(root, own["url"]) if own else flow_environment(root)
    if "PREFECT_API_URL" not in env:
        raise ConfigError("PREFECT_API_URL is not set: the address, ending in /api, of the server that knows the runs")
    return env | {"ALIGN_POOL": pool}


def deploy(root: Path, pool: str, env: dict[str, str]) -> None:
    """Makes the pool, and the deployment of flow `part` in it. What people changed of a pool stays.

    Raises:
        ServiceError: Prefect's server refuses, or does not answer.
    """
    # without ALIGN_ROOT, Prefect would write this machine's folder into a deployment that serves others, too
    here = {name: value for name, value in env.items() if name != "ALIGN_ROOT"}
    template = ["--base-job-template", str(JOBS)]
    if _called(["prefect", "work-pool", "update", pool, *template], root, here):  # it is not there yet
        _must(["prefect", "work-pool", "create", pool, "--type", "process", *template], root, here)
    _must(["prefect", "deploy", "--all", "--prefect-file", str(DEPLOYMENT)], root, here)


def _must(command: Sequence[str], root: Path, env: Mapping[str, str]) -> None:
    if reason := _called(command, root, env):
        raise ServiceError(f"`{' '.join(command[:3])}` at {env['PREFECT_API_URL']}: {reason}")


def _called(command: Sequence[str], root: Path, env: Mapping[str, str]) -> str:
    """Calls Prefect's command line. Returns the last line of what it said if it failed, else nothing."""
    done = subprocess.run(command, cwd=root, env=dict(env), capture_output=True, text=True, check=False)
    if not done.returncode:
        return ""
    return ((done.stderr or done.stdout).strip().splitlines() or ["no reason given"])[-1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
