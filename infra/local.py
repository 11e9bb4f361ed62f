"""Starts and stops the local stack without Docker: Prefect, MLflow and search, and a worker for deployed flows.

    python infra/local.py up | down | status

Everything listens on 127.0.0.1 and asks for a login: Prefect and MLflow for that in `.align/login`, search for its own
in `.align/login_search`, which opens nothing else. State is kept in the checkout: `.align/` (Prefect, logs, process
ids) and `mlflow.db` with `mlartifacts/`, which runs without a server use too. Ports: ALIGN_PREFECT_PORT,
ALIGN_MLFLOW_PORT, ALIGN_SEARCH_PORT. Runs that the worker works on at a time: ALIGN_WORKER_LIMIT.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import dropwhile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from align.config import load_params
from align.config.infrastructure import StoreConfig
from align.config.params import PARAMS_FILE
from align.config.release import RegisterConfig
from align.display.visible import visible
from align.errors import AlignError, ServiceError
from align.pipeline.run import (
    LOGIN_FILE,
    READER_LOGIN_FILE,
    SEARCH_LOGIN_FILE,
    SERVICES_FILE,
    created,
    flow_environment,
    has_accelerator,
    login,
    prefect_login,
    running_services,
)
from align.services.tracking.tracked_run import TRAINING, runs_address
from align.web.connections import shorten

HOST = "127.0.0.1"
POOL = WORKER = "local"
WORKER_LIMIT = 2  # runs at a time, each in a worktree of its own; more would only share the same cores
ON_A_GPU = 1  # of which two trainers would share the memory
START_TIMEOUT_S = 180.0
RUNS_STOP_TIMEOUT_S = 35.0  # a worker's flow runs have 30 s to save a checkpoint
STOP_TIMEOUT_S = 10.0  # Prefect's worker sometimes hangs when it is told to stop
LOGS = Path(".align/logs")
TRACEBACK = "Traceback (most recent call last):"
SERVER = Path(__file__).with_name("server.py")
#: Strangers ask it for pictures and texts: it need not know how to start runs or write databases.
NOT_FOR_SEARCH = ("PREFECT_", "PGPASSWORD", "MLFLOW_BACKEND_STORE_URI")

Services = dict[str, dict[str, Any]]


def up(root: Path) -> None:
    """Starts what does not run yet, deploys the flows, and waits until the servers answer and the worker asks for runs.

    Raises:
        ServiceError: a port is taken, or a server or the worker does not start; the message says how its log ends.
    """
    services = running_services(root)
    ports = {
        "prefect": _number("ALIGN_PREFECT_PORT", 4200),
        "mlflow": _number("ALIGN_MLFLOW_PORT", 5000),
        "search": _number("ALIGN_SEARCH_PORT", 7000),
    }
    limit = str(_number("ALIGN_WORKER_LIMIT", ON_A_GPU if has_accelerator() else WORKER_LIMIT))
    for name, port in ports.items():
        if name not in services:
            _check_free(name, port)
    url = services.get("prefect", {}).get("url") or f"http://{HOST}:{ports['prefect']}"
    # The login in the environment, not in arguments, which every user of the machine can read. The URL is for the UI in
    # the browser, and for everything that the worker starts.
    env = flow_environment(root) | prefect_login(root)
    env |= {"PREFECT_API_URL": f"{url}/api", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url, "ALIGN_ROOT": str(root)}
    health = {"prefect": "/api/health", "mlflow": "/health", "search": "/health"}
    for name in health:
        if name not in services:
            command, own = [sys.executable, str(SERVER), name, str(ports[name])], env
            if name == "search":
                command = [sys.executable, "-m", "align.cli", "serve", "--port", str(ports[name])]
                own = _search_environment(root, env, services["mlflow"]["url"])
            services[name] = _start(root, name, command, own) | {"url": f"http://{HOST}:{ports[name]}"}
            _save(root, services)
    for name, path in health.items():
        address = services[name]["url"] + path
        _wait_for(root, name, services[name], address, lambda url=address: _answer(url) is not None)
    _deploy(root, env)
    if "worker" not in services:
        worker = [sys.executable, "-m", "flows.worker", "worker", "start", "--pool", POOL, "--type", "process"]
        worker += ["--name", WORKER, "--limit", limit]
        # It and its runs wait for a server by themselves (flows/tasks/outages.py), without Prefect's doubling pauses.
        # A click waits for the worker's next look: ten seconds apart by default.
        ours = {"PREFECT_CLIENT_MAX_RETRIES": "2", "PREFECT_WORKER_QUERY_SECONDS": "2"}
        services["worker"] = _start(root, "worker", worker, ours | env)
        _save(root, services)
    # while the worker starts: a run that it starts repairs, too, and the two do not disturb each other
    subprocess.run([sys.executable, "-m", "flows.reconcile", "--quiet"], cwd=root, env=env, check=False)
    _wait_for(root, "worker", services["worker"], f"work pool {POOL}", lambda: _has_asked(root, services))
    print(f"Prefect  {services['prefect']['url']}   run `train-and-release` from Deployments")
    print(f"MLflow   {_mlflow_page(root, services['mlflow']['url'])}")
    print(f"search   {services['search']['url']}   follows the champion")
    print(f"log in   as align, with the password in {LOGIN_FILE}; Prefect asks for both as one: the file's line")
    print(f"         search has a password of its own, in {SEARCH_LOGIN_FILE}")
    print(f"logs     {LOGS}/   stop with: make down")


def _mlflow_page(root: Path, server: str) -> str:
    """Where people begin in MLflow: the list of this project's runs; before the first one, the experiments."""
    name = quote(load_params(root / PARAMS_FILE).section(RegisterConfig).experiment)
    found = _answer(f"{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}", login=login(root))
    if found is None:
        return f"{server}/#/experiments?{TRAINING}"
    return runs_address(server, json.loads(found)["experiment"]["experiment_id"])


def down(root: Path) -> None:
    """Stops only what `up` started, the worker and its runs first; if nothing runs, that is not an error."""
    services = running_services(root)
    worker = psutil.Process(services["worker"]["pid"]) if "worker" in services else None
    if worker:
        worker.suspend()  # it starts no run meanwhile, and its runs do not depend on whether it hears that it is to end
    runs = _runs(root)
    outlived = [run.pid for run in runs if not worker or run.ppid() != worker.pid]
    try:
        _stop(*runs)
    finally:
        if worker:
            worker.resume()
    if worker:
        _stop(worker)
        print("stopped worker")
    for pid in outlived:
        print(f"stopped a run that had outlived its worker (process {pid})")
    for name in ("search", "mlflow", "prefect"):
        if name in services:
            _stop(psutil.Process(services[name]["pid"]))
            print(f"stopped {name}")
    (root / SERVICES_FILE).unlink(missing_ok=True)


def status(root: Path) -> None:
    """Prints which parts of the stack run."""
    services = running_services(root)
    for name in ("prefect", "mlflow", "search", "worker"):
        service = services.get(name)
        print(f"{name:<8} {'pid ' + str(service['pid']) + '  ' + service.get('url', '') if service else 'not running'}")


def _search_environment(root: Path, env: Mapping[str, str], mlflow: str) -> dict[str, str]:
    """The environment of `align serve`: no login but its own, and one that reads MLflow and changes nothing there.

    It asks MLflow's server, not its database: a new one is made by that server meanwhile.
    """
    user, _, password = login(root, READER_LOGIN_FILE).partition(":")
    known = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password, "MLFLOW_TRACKING_URI": mlflow}
    # whose files may lie in S3, as may the pictures
    has_other = "MLFLOW_TRACKING_URI" in os.environ and "MLFLOW_BACKEND_STORE_URI" not in os.environ
    asks_s3 = has_other or str(load_params(root / PARAMS_FILE).section(StoreConfig).objects).startswith("s3://")
    left_out = NOT_FOR_SEARCH if asks_s3 else (*NOT_FOR_SEARCH, "AWS_")
    kept = {name: value for name, value in env.items() if not name.startswith(left_out)}
    return kept | {"ALIGN_SEARCH_LOGIN": login(root, SEARCH_LOGIN_FILE)} | ({} if has_other else known)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ServiceError(f"{variable}={text}: expected a positive whole number")
    return int(text)


def _check_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ServiceError(
                f"{name}: port {port} is taken by another program: stop it, or set ALIGN_{name.upper()}_PORT to another"
            ) from None


def _start(root: Path, name: str, command: list[str], env: Mapping[str, str]) -> dict[str, Any]:
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
    print(f"starting {name} …", flush=True)
    return {"pid": process.pid, "created": created(process.pid), "started": started, "log_begins": begins}


def _wait_for(root: Path, name: str, service: Mapping[str, Any], where: str, works: Callable[[], bool]) -> None:
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


def _end_of_log(log: Path, begins: int) -> str:
    """The last lines that a service printed since its start, or what its last exception says."""
    lines = log.read_bytes()[begins:].decode("utf-8", "replace").splitlines()
    said = [line.rstrip() for line in lines if line.strip()]
    if TRACEBACK in said:
        after = said[len(said) - said[::-1].index(TRACEBACK) :]
        said = list(dropwhile(lambda line: line[0].isspace(), after))[:3]
    return visible(" | ".join(line.strip() for line in said[-3:])) or "nothing, it printed no line"


def _answer(url: str, body: bytes | None = None, login: str | None = None) -> bytes | None:
    """What a server answers to a GET, or to a POST if there is a body; None if it does not answer."""
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def _has_asked(root: Path, services: Services) -> bool:
    """Whether the worker has asked Prefect for runs since its start."""
    question = f"{services['prefect']['url']}/api/work_pools/{POOL}/workers/filter"
    workers = json.loads(_answer(question, b"{}", login(root)) or b"[]")
    asked = [one["last_heartbeat_time"] for one in workers if one["name"] == WORKER and one["last_heartbeat_time"]]
    started = services["worker"].get("started", 0)
    return any(datetime.fromisoformat(when).timestamp() > started for when in asked)


def _deploy(root: Path, env: Mapping[str, str]) -> None:
    command = [sys.executable, str(Path(__file__).with_name("deploy.py"))]
    done = subprocess.run(command, cwd=root, env=dict(env), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError((done.stderr or done.stdout).strip().removeprefix("align: error: ")[-500:])
    print(done.stdout.strip())


def _runs(root: Path) -> list[psutil.Process]:
    """The processes of deployed runs of this checkout; each leads a session of its own."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "prefect.engine" in process.cmdline() and process.environ().get("ALIGN_ROOT") == str(root):
                found.append(process)
    return found


def _stop(*leaders: psutil.Process) -> None:
    """Tells the process groups of these leaders to end, and waits; kills what does not."""
    children = [child for leader in leaders for child in leader.children(recursive=True)]
    for leader in leaders:
        with suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGTERM)
    for family, timeout_s in ((children, RUNS_STOP_TIMEOUT_S), (leaders, STOP_TIMEOUT_S)):
        deadline = time.monotonic() + timeout_s
        while (left := [one for one in family if _works(one)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def _works(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE  # which its parent did not wait for
    except psutil.NoSuchProcess:
        return False


def _save(root: Path, services: Services) -> None:
    file = root / SERVICES_FILE
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(services, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str]) -> int:
    """`python infra/local.py up|down|status`."""
    verbs = {"up": up, "down": down, "status": status}
    if len(argv) != 1 or argv[0] not in verbs:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        verbs[argv[0]](Path.cwd())
    except AlignError as error:
        print(f"align: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
