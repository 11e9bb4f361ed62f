"""`align run`: runs the whole pipeline in this checkout, under Prefect, and records it as branch run/<name>.

Owns the environment that flows run in. The flow itself is another program, so that nothing here imports Prefect.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from align.config import Params
from align.config.params import chosen_values
from align.durable.locks import take
from align.errors import ConfigError

#: `make up` lists here what it started; Prefect keeps its database there. Servers and flows share both.
SERVICES_FILE = Path(".align/services.json")
PREFECT_HOME = Path(".align/prefect")
#: The login of both servers, `user:password`, for this checkout; only its owner can read it. Search has a login of its
#: own, which opens nothing else, and asks MLflow with a third one, which changes nothing.
LOGIN_FILE = Path(".align/login")
SEARCH_LOGIN_FILE = Path(".align/login_search")
READER_LOGIN_FILE = Path(".align/login_reader")

#: Device files of the drivers of NVIDIA (one for each GPU) and AMD (one for all GPUs).
DEVICES = ("nvidia[0-9]*", "kfd")
#: With an empty value, or -1, each hides all GPUs from a process.
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

#: Prefect 3.9 allows its temporary server 20 s, which is too little on a busy machine with two cores.
SERVER_START_TIMEOUT_S = 180


def main(params: Params, args: argparse.Namespace) -> None:
    """Replaces this process by the flow's. `params` was read only to refuse a bad override before anything starts.

    Raises:
        ConfigError: --params is given: a run reads the params.yaml of its checkout.
    """
    become("flows", "pipeline", request(params, args))


def request(params: Params, args: argparse.Namespace) -> str:
    """What a person asks for, as JSON of `flows.request.Request`.

    Raises:
        ConfigError: --params is given.
    """
    if args.params is not None:
        raise ConfigError(f"align {args.verb} reads ./params.yaml; change single values with --set SECTION.KEY=VALUE")
    fields = ("name", "ref", "only", "from_stage", "to_stage", "snapshot_dirty")
    asked = {field: getattr(args, field) for field in fields}
    return json.dumps(asked | {"overrides": chosen_values(params, args.overrides)}, default=str)


def become(module: str, *arguments: str) -> NoReturn:
    """Replaces this process by a program of `flows`, in the environment of flows."""
    command = [sys.executable, "-m", module, *arguments]
    os.execve(command[0], command, flow_environment(Path.cwd()))


def flow_environment(root: Path) -> dict[str, str]:
    """The environment of a flow or a server of the checkout `root`; variables that the user has set win.

    Prefect keeps its state in the checkout and nothing in the home directory. Telemetry is off. Servers that `make up`
    started are used if they answer. Prefect's server, also the temporary one that a flow starts if none answers, asks
    for the checkout's login: without it, any web page could start flows.
    """
    (root / PREFECT_HOME).mkdir(parents=True, exist_ok=True)  # Prefect creates one level of folders, SQLite none
    ours = {
        "PREFECT_HOME": str(root / PREFECT_HOME),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(SERVER_START_TIMEOUT_S),
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes for evaluations of language models
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    scripts = str(Path(sys.executable).parent)  # for dvc and align, even if the virtual environment is not active
    path = os.environ.get("PATH", os.defpath)
    if scripts not in path.split(os.pathsep):
        path = f"{scripts}{os.pathsep}{path}"
    env = ours | dict(os.environ) | {"PATH": path}
    if "PREFECT_API_URL" not in env:  # a login in the environment is then for another server
        env |= prefect_login(root)
        if url := _running_prefect(root):
            env["PREFECT_API_URL"] = url
    return env


def prefect_login(root: Path) -> dict[str, str]:
    """The checkout's login as Prefect's servers and clients take it."""
    return dict.fromkeys(("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"), login(root))


def has_accelerator(devices: Path = Path("/dev"), environment: Mapping[str, str] = os.environ) -> bool:
    """Whether stages that we start find a GPU, as far as we can tell without loading torch."""
    if any(environment.get(name, "all").strip() in ("", "-1") for name in HIDING):
        return False
    return any(any(devices.glob(pattern)) for pattern in DEVICES)


def login(root: Path, kept: Path = LOGIN_FILE) -> str:
    """A login of the checkout's servers, `user:password`; generated once, and kept in a file of mode 0600."""
    file = root / kept
    file.parent.mkdir(exist_ok=True)
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8") as stream:
        os.fchmod(stream.fileno(), 0o600)  # a copied file may have another mode
        take(stream, patience_s=None)  # two runs may start at the same time
        if not (text := stream.read().strip()):
            text = f"align:{secrets.token_urlsafe(32)}"
            stream.write(f"{text}\n")
    return text


def running_services(root: Path) -> dict[str, dict[str, Any]]:
    """What `make up` started in this checkout and still runs: name -> process, time of its creation, URL.

    A copied checkout has a copy of the list, too, but these servers are the original's: they work in another folder.
    """
    try:
        services: dict[str, dict[str, Any]] = json.loads((root / SERVICES_FILE).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return {name: service for name, service in services.items() if _is_ours(service, root)}


def created(pid: int) -> str | float:
    """Tells a process from a later one with the same number.

    On Linux by its ticks since the start: dates move with the clock.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    import psutil

    process = psutil.Process(pid)
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text('utf-8').strip()} {ticks}"
    except (OSError, IndexError):
        return process.create_time()


def _is_ours(service: Mapping[str, Any], root: Path) -> bool:
    import psutil

    try:
        process = psutil.Process(service["pid"])
        ended = process.status() == psutil.STATUS_ZOMBIE
        same = service["created"] == created(process.pid)
        return not ended and same and Path(process.cwd()).samefile(root)
    except (psutil.Error, OSError):
        return False


def _running_prefect(root: Path) -> str | None:
    try:
        url: str = running_services(root)["prefect"]["url"]
        with urllib.request.urlopen(f"{url}/api/health", timeout=2) as answer:
            return f"{url}/api" if answer.status == 200 else None
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None
