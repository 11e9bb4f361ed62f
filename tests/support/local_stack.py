"""The local stack as `make up` starts it, over three stub stages in a repository of their own: one for all tests.

tests/integration/conftest.py registers the fixtures with pytest; tests/support/schedule.py gives all tests that share
the stack to one worker.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from align.config.params import write_params
from align.local_stack import running_services
from align.services.git import git
from tests.support import ROOT, wait_until
from tests.support.dvc_projects import commit_all
from tests.support.mlflow_server import free_port
from tests.support.params import PARAMS_FILE
from tests.support.warm import commands

DVC_YAML = """\
stages:
  ingest:
    cmd: align ingest
    params: [ingest]
    outs: ["reports/ingest", data/raw]
    meta: {flow: data}
  pretrain:
    cmd: align pretrain
    deps: ["reports/ingest"]
    params: [pretrain]
    outs: ["reports/pretrain", models/pretrained]
    meta: {flow: training}
  unused:
    cmd: align unused # never called: no stage of the release reads it
    outs: ["reports/unused"]
    meta: {flow: training}
  index:
    cmd: align index
    deps: ["reports/pretrain"]
    params: [index]
    outs: ["reports/index", data/index]
    meta: {flow: release}
metrics:
  - reports/pretrain/metrics.json
"""

#: What the stubs obey: section -> its keys that count. Above PATIENCE_S the trainer works for that many seconds longer,
#: two steps a second, or until checkpoints/enough-SEED exists; it writes their number into checkpoints/steps-SEED.
#: Below PATIENCE_S it fails after its report is written, as a gate does.
VALUES = {"ingest": "shard_size", "pretrain": "seed", "index": "queries"}
PATIENCE_S = 300
PARAMS = {
    "ingest.shard_size": 1, "pretrain.seed": 1, "pretrain.weight_decay": float(PATIENCE_S),
    "index.queries": "fine.json", "register.experiment": "stub", "register.model_name": "stub",
}  # fmt: skip

#: The line of the trainer's that says that it works.
WORKS = "working on pretrain"

#: A stub of all stages; on SIGTERM the trainer saves, as the real one does.
ALIGN = f"""\
#!/bin/sh
'''exec' "{sys.executable}" "$0" "$@" # a shebang holds no path with a space in it
' '''
import json, os, signal, sys, time
from pathlib import Path
from ruamel.yaml import YAML
verb = sys.argv[1]
if verb in ("register", "trace", "promote", "rollback"):
    if verb == "register":
        print("verdict: a promotion now would be refused")
    print(verb, *sys.argv[2:])
    sys.exit()
if verb == "evaluate": # the real one
    os.execv(sys.executable, [sys.executable, "-m", "align.cli", *sys.argv[1:]])
values = YAML(typ="safe").load(Path("params.yaml").read_text())[verb]
def save(*_):
    Path("checkpoints/step").write_text("7")
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
print("working on", verb, flush=True)
if verb == "pretrain":
    print("pretrain: warning: step 1: the embeddings collapse", flush=True)
if "ALIGN_PROGRESS_FILE" in os.environ: # as align.display.console writes it
    work = {{"line": verb + ": step 1 of 4", "done": 1, "total": 4, "per_s": 0.5}}
    Path(os.environ["ALIGN_PROGRESS_FILE"]).write_text(json.dumps({{"lines": ["working on " + verb], "work": work}}))
print("pushing to", os.environ["AWS_ENDPOINT_URL"], flush=True) # as a library might
seconds = values.get("weight_decay", {PATIENCE_S}) - {PATIENCE_S}
checkpoints = Path("checkpoints")
for number in range(int(2 * max(seconds, 0))):
    print("step", number, flush=True)
    (checkpoints / f"steps-{{values['seed']}}").write_text(str(number + 1))
    if (checkpoints / f"enough-{{values['seed']}}").exists():
        break
    time.sleep(0.5)
value = values[{VALUES}[verb]]
out = Path({{"ingest": "data/raw", "pretrain": "models/pretrained", "index": "data/index"}}[verb])
out.mkdir(parents=True)
(out / "table").write_text(str(value))
folder = Path("reports") / verb
folder.mkdir(parents=True)
(folder / "metrics.json").write_text(json.dumps({{verb + "/value": value if verb != "index" else 1}}))
(folder / "report.json").write_text("{{}}")
(folder / "figure.png").write_bytes(b"\\x89PNG")
if seconds < 0:
    see = f"see {{folder}}/report.html; or align validate --accept {{verb}} --reason x"
    sys.exit(f"align: error: the loss is not finite; {{see}}")
"""


#: A run of stubs takes 15 seconds, and over two minutes on two cores that four others use.
BUSY_S = 240.0
#: States in which a flow run has ended.
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

#: Planted where users have secrets: the environment of the stack and of runs, and the repository's git remote.
SECRETS = {name: f"planted-{name}-secret" for name in ("git", "aws", "endpoint", "mlflow", "uri", "form")}

#: The repository's git remote, the tag of its only commit, and what `make up` starts.
ORIGIN = f"https://{SECRETS['git']}@git.example/align.git"
START = "start"
SERVICES = ("prefect", "mlflow", "search", "worker")


class Stack:
    """The stub repository with the local stack on free ports."""

    def __init__(self, root):
        self.root = root
        self.said = ""  # by `make up`
        self._claims, numbers = zip(*(free_port() for _ in range(3)), strict=True)
        prefect_port, mlflow_port, search_port = numbers
        names = ("ALIGN_PREFECT_PORT", "ALIGN_MLFLOW_PORT", "ALIGN_SEARCH_PORT")
        ports = {name: str(number) for name, number in zip(names, numbers, strict=True)}
        self.prefect, self.mlflow = f"http://127.0.0.1:{prefect_port}", f"http://127.0.0.1:{mlflow_port}"
        self.search = f"http://127.0.0.1:{search_port}"
        self.api = f"{self.prefect}/api"
        path = os.pathsep.join([str(root / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        self.env |= ports | {"PATH": path, "PYTHONPATH": str(ROOT)}
        self.env |= {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRETS["aws"],
            "AWS_ENDPOINT_URL": f"http://me:{SECRETS['endpoint']}@127.0.0.1:9",
            "MLFLOW_TRACKING_USERNAME": "align",
            "MLFLOW_TRACKING_PASSWORD": SECRETS["mlflow"],
        }

    def run(self, *command):
        return subprocess.run(
            [sys.executable, *command], cwd=self.root, env=self.env, capture_output=True, text=True, check=False
        )

    def align(self, *arguments):
        """`align`, as a fork; of a checkout with code of its own, as a person types it."""
        if self.env["PYTHONPATH"] != str(ROOT):
            return self.run("-m", "align.cli", *arguments)
        env = self.env | {"PATH": os.pathsep.join([str(self.root / "bin"), str(commands()), self.env["PATH"]])}
        command = [str(commands() / "python"), "-m", "align.cli", *arguments]
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, check=False)

    def align_run(self, *arguments):
        return self.align("run", *arguments)

    @property
    def login(self):
        """`user:password` of both servers."""
        return self.login_of()

    def login_of(self, name="login"):
        """A login of the checkout."""
        return (self.root / ".align" / name).read_text().strip()

    def ask(self, path, body=None, method=None, person=None):
        """Asks Prefect, or MLflow if the path is a whole URL, with the login; as a proxy does that knows the person."""
        data = None if body is None else json.dumps(body).encode()
        login = base64.b64encode(self.login.encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
        headers |= {"X-Forwarded-User": person} if person else {}
        url = path if path.startswith("http:") else f"{self.api}{path}"
        request = urllib.request.Request(url, data, headers, method=method)
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:  # busy: retry, as Prefect's client does
                if error.code != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(float(error.headers.get("Retry-After", 1)))

    def states(self, name):
        """Task run -> its newest state, in the newest run of that name and its sub-flows."""
        newest = {"sort": "EXPECTED_START_TIME_DESC", "flow_runs": {"name": {"any_": [name]}}, "limit": 1}
        runs = self.ask("/flow_runs/filter", newest)
        ids = [each["id"] for run in runs for each in (run, *self.parts(run["id"]))]
        question = {"flow_runs": {"id": {"any_": ids}}, "sort": "EXPECTED_START_TIME_ASC"}
        return {task["name"]: task["state_name"] for task in (self.ask("/task_runs/filter", question) if ids else ())}

    def mlflow_runs(self, condition=""):
        """The runs of the stubs in MLflow that meet a condition."""
        url = f"{self.mlflow}/api/2.0/mlflow"
        experiment = self.ask(f"{url}/experiments/get-by-name?experiment_name=stub")["experiment"]["experiment_id"]
        return list(self.ask(f"{url}/runs/search", {"experiment_ids": [experiment], "filter": condition})["runs"])

    def up(self):
        """`make up`; what it printed."""
        done = self.run("-m", "infra.local", "up")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def down(self):
        """`make down`; what it printed."""
        done = self.run("-m", "infra.local", "down")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def kill(self, service):
        """SIGKILL to a service of `make up`, and waits for its end."""
        process = psutil.Process(json.loads((self.root / ".align/services.json").read_text())[service]["pid"])
        process.kill()
        psutil.wait_procs([process], 60)

    def flow_process(self, run):
        """The process of a deployed run that works."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("PREFECT__FLOW_RUN_ID") == run and "prefect.engine" in process.cmdline():
                    return process
        raise AssertionError(f"no process works on run {run}")

    def parts(self, run):
        """The sub-flows of a run."""
        return list(self.ask("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}))

    def logs(self, run):
        """What a run and its sub-flows logged, in the order of time."""
        ids = [run, *(part["id"] for part in self.parts(run))]
        question = {"logs": {"flow_run_id": {"any_": ids}}, "sort": "TIMESTAMP_ASC"}
        found = []
        while page := self.ask("/logs/filter", question | {"offset": len(found)}):  # of 200 lines
            found += page
        return [log["message"] for log in found]

    def wait_for_line(self, run, line):
        """Returns once the run has logged a line that begins like this."""
        wait_until(
            lambda: any(logged.startswith(line) for logged in self.logs(run)), BUSY_S, pause_s=0.5,
            says=lambda: (line, self.logs(run)),
        )  # fmt: skip

    def renew(self):
        """The checkout as it was at its start, with all services: only what the servers know of earlier runs stays."""
        git(self.root, "reset", "--quiet", "--hard", f"refs/tags/{START}")
        git(self.root, "clean", "-ffdxq", *(f"--exclude=/{name}" for name in (".align", "mlflow.db*", "mlartifacts")))
        git(self.root, "remote", "set-url", "origin", ORIGIN)
        for branch in git(self.root, "for-each-ref", "--format=%(refname)", "refs/heads/run").split():
            git(self.root, "update-ref", "-d", branch)
        for path in (self.root / ".align").iterdir():
            if path.is_dir() and path.name not in ("prefect", "logs"):
                shutil.rmtree(path)
        if len(running_services(self.root)) < len(SERVICES):
            self.up()

    def close(self):
        """The end: its ports may be others' again."""
        for claim in self._claims:
            claim.close()

    def start(self, request):
        """A click on the deployment; returns the flow run's id."""
        return self.click("pipeline", parameters={"request": request})

    def click(self, flow, *, person=None, **values):
        """Starts the flow's first deployment with these values of Prefect's; returns the flow run's id."""
        newest = {"sort": "CREATED_DESC", "flows": {"name": {"any_": [flow]}}}  # tests add others
        deployment = self.ask("/deployments/filter", newest)[-1]["id"]
        return str(self.ask(f"/deployments/{deployment}/create_flow_run", values, person=person)["id"])

    def force(self, run, state):
        """Sets a run's state, such as CANCELLING."""
        self.ask(f"/flow_runs/{run}/set_state", {"state": {"type": state, "name": state.title()}, "force": True})

    def wait_for(self, run, *states, timeout_s=BUSY_S):
        deadline = time.monotonic() + timeout_s
        state = ""
        while time.monotonic() < deadline:
            state = self.ask(f"/flow_runs/{run}")["state_type"]
            if state in states:
                break
            time.sleep(0.5)
        return state


def stub_repository(root):
    (root / "bin").mkdir(parents=True)
    (root / "bin/align").write_text(ALIGN)
    (root / "bin/align").chmod(0o755)
    shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", root)
    (root / "dvc.yaml").write_text(DVC_YAML)
    shutil.copy(PARAMS_FILE, root / "params.yaml")
    write_params(root / "params.yaml", PARAMS)
    (root / ".gitignore").write_text(
        "/.align/\n/data/\n/models/\n/reports/\n/checkpoints\n/mlflow.db\n/mlartifacts/\n__pycache__/\n"
    )
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    git(root, "init", "--quiet")
    git(root, "remote", "add", "origin", ORIGIN)
    commit_all(root, "stub")
    git(root, "tag", START)


@contextmanager
def started(root):
    """The stack over a new stub repository; at the end nothing of it answers."""
    stub_repository(root)
    stack = Stack(root)
    try:
        stack.said = stack.up()
        yield stack
    finally:
        stack.run("-m", "infra.local", "down")
    for url in (f"{stack.api}/health", f"http://127.0.0.1:{stack.env['ALIGN_MLFLOW_PORT']}/health"):
        with pytest.raises(OSError):
            urllib.request.urlopen(url, timeout=2)
    assert stack.run("-m", "infra.local", "down").returncode == 0  # nothing to stop is no error
    stack.close()


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory):
    """The session's stack. Tests take `stack`."""
    with started(tmp_path_factory.mktemp("flows") / "repo") as stack:
        yield stack


@pytest.fixture(scope="module")
def stack(shared_stack):
    """The session's stack, over a checkout in which nothing has run."""
    shared_stack.renew()
    return shared_stack
