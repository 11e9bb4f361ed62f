"""The programs that serve a checkout on this machine: Prefect, MLflow, search and a worker. How they start and end.

`make up` (infra/local.py) starts all of them. `align run` starts Prefect in the same way if it does not run yet
(`prefect_for_a_run`), so there is one way in which a server runs.

.align/services.json   the programs that were started here: process, address
.align/login           the login of both servers, `user:password`; only its owner can read it. Search has a login of its
                       own, which opens nothing else, and asks MLflow with a third one, which changes nothing
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.display.console import say
from align.display.visible import visible
from align.durable.locks import locked, take, tried
from align.errors import ServiceError
from align.project.installed import installed
from align.web import HOST

if TYPE_CHECKING:
    import psutil

SERVICES_FILE = Path(".align/services.json")
PREFECT_HOME = Path(".align/prefect")
LOGS, LOCKS = Path(".align/logs"), Path(".align/locks")
LOGIN_FILE = Path(".align/login")
SEARCH_LOGIN_FILE = Path(".align/login_search")
READER_LOGIN_FILE = Path(".align/login_reader")
#: Service -> the variable with its port, the port without it, and where it says that it works.
PORTS = {
    "prefect": ("ALIGN_PREFECT_PORT", 4200, "/api/health"),
    "mlflow": ("ALIGN_MLFLOW_PORT", 5000, "/health"),
    "search": ("ALIGN_SEARCH_PORT", 7000, "/health"),
}
START_TIMEOUT_S = 180.0
#: Flow runs have 30 s to save a checkpoint; Prefect's worker sometimes hangs when it is told to stop.
RUNS_STOP_TIMEOUT_S, STOP_TIMEOUT_S = 35.0, 10.0
#: A client repeats a request that its server does not answer after 2, 4, 8, ... seconds: with 13 times for four hours.
OUTAGES = {"PREFECT_CLIENT_MAX_RETRIES": "13", "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504"}

#: Device files of the drivers of NVIDIA (one for each GPU) and AMD (one for all GPUs).
DEVICES = ("nvidia[0-9]*", "kfd")
#: With an empty value, or -1, each hides all GPUs from a process.
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

_TRACEBACK = "Traceback (most recent call last):"
#: A key of a service in SERVICES_FILE: a run started it, and the last one ends it.
_OF_RUNS = "of_runs"

Services = dict[str, dict[str, Any]]


def flow_environment(root: Path) -> dict[str, str]:
    """The environment of a flow or a server of the checkout `root`; variables that the user has set win.

    Prefect keeps its state in the checkout and nothing in the home directory. Telemetry is off. Prefect's server asks
    for the checkout's login: without it, any web page could start flows. Prefect itself starts no server, which would
    answer to any host name.
    """
    (root / PREFECT_HOME).mkdir(parents=True, exist_ok=True)  # Prefect creates one level of folders, SQLite none
    ours = OUTAGES | {
        "PREFECT_HOME": str(root / PREFECT_HOME),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
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
    # a login in the environment is for the server that the environment names
    logins = {} if "PREFECT_API_URL" in os.environ else prefect_login(root)
    return ours | dict(os.environ) | {"PATH": path} | logins


def prefect_login(root: Path) -> dict[str, str]:
    """The checkout's login as Prefect's servers and clients take it."""
    return dict.fromkeys(("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"), login(root))


def prefect_environment(root: Path, url: str) -> dict[str, str]:
    """The environment of the checkout's own server of Prefect at this address, and of all that asks it.

    The login is in it, not in arguments, which every user of the machine can read.
    """
    named = {"PREFECT_API_URL": f"{url}/api", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url, "ALIGN_ROOT": str(root)}
    return flow_environment(root) | prefect_login(root) | named


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


def has_accelerator(devices: Path = Path("/dev"), environment: Mapping[str, str] = os.environ) -> bool:
    """Whether stages that we start find a GPU, as far as we can tell without loading torch."""
    if any(environment.get(name, "all").strip() in ("", "-1") for name in HIDING):
        return False
    return any(any(devices.glob(pattern)) for pattern in DEVICES)


def running_services(root: Path) -> Services:
    """What was started in this checkout and still runs: name -> process, time of its creation, URL.

    A copied checkout has a copy of the list, too, but these servers are the original's: they work in another folder.
    """
    try:
        services: Services = json.loads((root / SERVICES_FILE).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return {name: service for name, service in services.items() if _is_ours(service, root)}


def save(root: Path, services: Services) -> None:
    """Writes the list of services."""
    file = root / SERVICES_FILE
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(services, indent=2) + "\n", encoding="utf-8")


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


@contextmanager
def prefect_for_a_run(root: Path, *, keep: bool = False) -> Iterator[Callable[[], None]]:
    """Prefect's server of the checkout, at `PREFECT_API_URL` of this process from now on; starts it if none runs.

    Yields what waits until it answers. At the end of the block, the last run ends a server that a run has started;
    with `keep` it stays, and so does one that `make up` has taken over.

    Raises:
        ServiceError: its port is taken, or (from what is yielded) it does not start.
    """
    (root / LOCKS).mkdir(parents=True, exist_ok=True)
    with (root / LOCKS / "prefect").open("a+", encoding="utf-8") as users:
        take(users, shared=True, patience_s=None)  # each run holds it to its end
        with _starting(root):
            services = running_services(root)
            if "prefect" not in services:
                url = f"http://{HOST}:{_free_port()}"
                services["prefect"] = start_server(root, "prefect", url, prefect_environment(root, url)) | {
                    _OF_RUNS: True
                }
                save(root, services)
        service = services["prefect"]
        os.environ |= prefect_environment(root, service["url"])
        try:
            yield lambda: wait_for_server(root, "prefect", service)
        finally:
            if not keep and take(users):
                with _starting(root):
                    _end_prefect_of_runs(root)


def take_over(services: Services) -> None:
    """The servers stay until `make down`: no run ends one of them."""
    for service in services.values():
        service.pop(_OF_RUNS, None)


def leave_to_runs(root: Path, services: Services) -> bool:
    """Leaves Prefect's server to the typed runs that use it, the last of which ends it. False if none does."""
    if "prefect" not in services:
        return False
    (root / LOCKS).mkdir(parents=True, exist_ok=True)
    with tried(root / LOCKS / "prefect") as is_unused:
        if is_unused:
            return False
    services["prefect"][_OF_RUNS] = True
    save(root, {"prefect": services["prefect"]})
    return True


def start_server(root: Path, name: str, url: str, env: Mapping[str, str]) -> dict[str, Any]:
    """Starts Prefect's or MLflow's server at an address of this machine; does not wait for it."""
    command = [sys.executable, str(installed("infra/server.py")), name, url.rpartition(":")[2]]
    return start(root, name, command, env) | {"url": url}


def start(root: Path, name: str, command: list[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Starts a program that outlives this one, with a log of its own; returns what SERVICES_FILE has of it."""
    from align.web.server import shorten

    log = root / LOGS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    shorten(log)
    started = time.time()
    with log.open("ab") as output:
        begins = output.tell()
        process = subprocess.Popen(
            command, cwd=root, env={**env, "ALIGN_SERVER_LOG": str(log)}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return {"pid": process.pid, "created": created(process.pid), "started": started, "log_begins": begins}


def port(name: str) -> int:
    """The port of a service. Raises ServiceError: its variable holds none."""
    variable, default, _ = PORTS[name]
    return number(variable, default)


def number(variable: str, default: int) -> int:
    """A positive whole number of the environment. Raises ServiceError: the variable holds something else."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ServiceError(f"{variable}={text}: expected a positive whole number")
    return int(text)


def require_free(name: str) -> int:
    """The port of a service, which no program uses. Raises ServiceError: it is taken."""
    wanted = port(name)
    if not _is_free(wanted):
        taken = f"{name}: port {wanted} is taken by another program"
        raise ServiceError(f"{taken}: stop it, or set {PORTS[name][0]} to another")
    return wanted


def wait_for_server(root: Path, name: str, service: Mapping[str, Any]) -> None:
    """Waits until a server answers. Raises ServiceError: see `wait_for`."""
    address = service["url"] + PORTS[name][2]
    wait_for(root, name, service, address, lambda: answer(address) is not None)


def wait_for(root: Path, name: str, service: Mapping[str, Any], where: str, works: Callable[[], bool]) -> None:
    """Returns once `works` says so.

    Raises:
        ServiceError: the process has ended, or START_TIMEOUT_S have passed; the message says how its log ends.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while name in running_services(root) and time.monotonic() < deadline:
        if works():
            return
        time.sleep(0.3)
    end = _end_of_log(root / LOGS / f"{name}.log", service.get("log_begins", 0))
    raise ServiceError(f"{name} did not start at {where}; see {LOGS}/{name}.log, which ends: {end}")


def answer(url: str, body: bytes | None = None, login: str | None = None) -> bytes | None:
    """What a server answers to a GET, or to a POST if there is a body; None if it does not answer."""
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5) as answered:
            return bytes(answered.read())
    except OSError:
        return None


def stop(*leaders: psutil.Process) -> None:
    """Tells these processes, or the groups that they lead, to end, and waits; kills what does not."""
    import psutil

    children = [child for leader in leaders for child in leader.children(recursive=True)]
    for leader in leaders:
        with suppress(ProcessLookupError):
            leads = os.getpgid(leader.pid) == leader.pid
            (os.killpg if leads else os.kill)(leader.pid, signal.SIGTERM)
    for family, timeout_s in ((children, RUNS_STOP_TIMEOUT_S), (leaders, STOP_TIMEOUT_S)):
        deadline = time.monotonic() + timeout_s
        while (left := [one for one in family if _works(one)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()


@contextmanager
def _starting(root: Path) -> Iterator[None]:
    """One program at a time starts servers here, or ends them."""
    with locked(root / LOCKS / "services", "a program that starts servers", say):
        yield


def _end_prefect_of_runs(root: Path) -> None:
    import psutil

    services = running_services(root)
    if services.get("prefect", {}).get(_OF_RUNS):
        stop(psutil.Process(services.pop("prefect")["pid"]))
        save(root, services)


def _free_port() -> int:
    """Prefect's port, if no program uses it or the user has chosen it; else any free one."""
    variable = PORTS["prefect"][0]
    if variable in os.environ or _is_free(port("prefect")):
        return require_free("prefect")
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(number: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, number))
        except OSError:
            return False
    return True


def _is_ours(service: Mapping[str, Any], root: Path) -> bool:
    import psutil

    try:
        process = psutil.Process(service["pid"])
        same = service["created"] == created(process.pid)
        return _works(process) and same and Path(process.cwd()).samefile(root)
    except (psutil.Error, OSError):
        return False


def _works(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE  # which its parent did not wait for
    except psutil.NoSuchProcess:
        return False


def _end_of_log(log: Path, begins: int) -> str:
    """The last lines that a service printed since its start, or what its last exception says."""
    lines = log.read_bytes()[begins:].decode("utf-8", "replace").splitlines()
    said = [line.rstrip() for line in lines if line.strip()]
    if _TRACEBACK in said:
        after = said[len(said) - said[::-1].index(_TRACEBACK) :]
        said = list(dropwhile(lambda line: line[0].isspace(), after))[:3]
    return visible(" | ".join(line.strip() for line in said[-3:])) or "nothing, it printed no line"
