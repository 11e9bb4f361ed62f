"""Starts and stops the local stack without Docker: Prefect, MLflow and search, and a worker for deployed flows.

    python infra/local.py up | down | status

Everything listens on 127.0.0.1 and asks for a login: Prefect and MLflow for that in `.align/login`, search for its own
in `.align/login_search`, which opens nothing else. State is kept in the checkout: `.align/` (Prefect, logs, process
ids) and `mlflow.db` with `mlartifacts/`, which runs without a server use too. Ports: ALIGN_PREFECT_PORT,
ALIGN_MLFLOW_PORT, ALIGN_SEARCH_PORT. Runs that the worker works on at a time: ALIGN_WORKER_LIMIT.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import psutil

from align import local_stack
from align.config import load_params
from align.config.infrastructure import StoreConfig
from align.config.params import PARAMS_FILE
from align.config.release import RegisterConfig
from align.errors import AlignError, ServiceError
from align.local_stack import (
    LOGIN_FILE,
    LOGS,
    PORTS,
    READER_LOGIN_FILE,
    SEARCH_LOGIN_FILE,
    SERVICES_FILE,
    Services,
    answer,
    has_accelerator,
    login,
    running_services,
    save,
)
from align.services.tracking.tracked_run import TRAINING, runs_address
from align.web import HOST
from align.web.server import shorten

POOL = WORKER = "local"
WORKER_LIMIT = 2  # runs at a time, each in a worktree of its own; more would only share the same cores
ON_A_GPU = 1  # of which two trainers would share the memory
#: What deployed runs print (work_pool.json).
RUNS_LOG = LOGS / "runs.log"
#: Strangers ask it for pictures and texts: it need not know how to start runs or write databases.
NOT_FOR_SEARCH = ("PREFECT_", "PGPASSWORD", "MLFLOW_BACKEND_STORE_URI")


def up(root: Path) -> None:
    """Starts what does not run yet, deploys the flows, and waits until the servers answer and the worker asks for runs.

    Raises:
        ServiceError: a port is taken, or a server or the worker does not start; the message says how its log ends.
    """
    services = running_services(root)
    limit = str(local_stack.number("ALIGN_WORKER_LIMIT", ON_A_GPU if has_accelerator() else WORKER_LIMIT))
    urls = {
        name: services[name]["url"] if name in services else f"http://{HOST}:{local_stack.require_free(name)}"
        for name in PORTS
    }
    env = local_stack.prefect_environment(root, urls["prefect"])
    for name, url in urls.items():
        if name not in services:
            if name == "search":
                command = [sys.executable, "-m", "align.cli", "serve", "--port", url.rpartition(":")[2]]
                own = _search_environment(root, env, urls["mlflow"])
                services[name] = local_stack.start(root, name, command, own) | {"url": url}
            else:
                services[name] = local_stack.start_server(root, name, url, env)
            print(f"starting {name} …", flush=True)
        local_stack.take_over(services)
        save(root, services)
    for name in PORTS:
        local_stack.wait_for_server(root, name, services[name])
    _deploy(root, env)
    shorten(root / RUNS_LOG)
    if "worker" not in services:
        worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
        worker += ["--name", WORKER, "--limit", limit]
        # a click waits for the worker's next look: ten seconds apart by default
        services["worker"] = local_stack.start(root, "worker", worker, {"PREFECT_WORKER_QUERY_SECONDS": "2"} | env)
        print("starting worker …", flush=True)
        save(root, services)
    # while the worker starts: a run that it starts repairs, too, and the two do not disturb each other
    subprocess.run([sys.executable, "-m", "flows", "ended", "--quiet"], cwd=root, env=env, check=False)
    where = f"work pool {POOL}"
    local_stack.wait_for(root, "worker", services["worker"], where, lambda: _has_asked(root, services))
    print(f"Prefect  {services['prefect']['url']}   run `train-and-release` from Deployments")
    print(f"MLflow   {_mlflow_page(root, services['mlflow']['url'])}")
    print(f"search   {services['search']['url']}   follows the champion")
    print(f"log in   as align, with the password in {LOGIN_FILE}; Prefect asks for both as one: the file's line")
    print(f"         search has a password of its own, in {SEARCH_LOGIN_FILE}")
    print(f"logs     {LOGS}/   stop with: make down")


def _mlflow_page(root: Path, server: str) -> str:
    """Where people begin in MLflow: the list of this project's runs; before the first one, the experiments."""
    name = quote(load_params(root / PARAMS_FILE).section(RegisterConfig).experiment)
    found = answer(f"{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}", login=login(root))
    if found is None:
        return f"{server}/#/experiments?{TRAINING}"
    return runs_address(server, json.loads(found)["experiment"]["experiment_id"])


def down(root: Path) -> None:
    """Stops only what was started here, the worker and its runs first; if nothing runs, that is not an error."""
    services = running_services(root)
    worker = psutil.Process(services["worker"]["pid"]) if "worker" in services else None
    if worker:
        worker.suspend()  # it starts no run meanwhile, and its runs do not depend on whether it hears that it is to end
    runs = _runs(root)
    outlived = [run.pid for run in runs if not worker or run.ppid() != worker.pid]
    try:
        local_stack.stop(*runs)
    finally:
        if worker:
            worker.resume()
    if worker:
        local_stack.stop(worker)
        print("stopped worker")
    for pid in outlived:
        print(f"stopped a run that had outlived its worker (process {pid})")
    for name in ("search", "mlflow"):
        if name in services:
            local_stack.stop(psutil.Process(services[name]["pid"]))
            print(f"stopped {name}")
    if local_stack.leave_to_runs(root, services):
        print("prefect stays for a run that works here, and ends with it")
        return
    if "prefect" in services:
        local_stack.stop(psutil.Process(services["prefect"]["pid"]))
        print("stopped prefect")
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


def _has_asked(root: Path, services: Services) -> bool:
    """Whether the worker has asked Prefect for runs since its start."""
    question = f"{services['prefect']['url']}/api/work_pools/{POOL}/workers/filter"
    workers = json.loads(answer(question, b"{}", login(root)) or b"[]")
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
    """The processes of deployed runs of this checkout."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "prefect.engine" in process.cmdline() and process.environ().get("ALIGN_ROOT") == str(root):
                found.append(process)
    return found


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
