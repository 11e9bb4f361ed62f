"""Journeys: the commands of a page in docs/, run as a person types them.

A journey is the fenced `bash` blocks of a page between `<!-- journey: NAME -->` and `<!-- end of journey -->`, in
order: the page is the script, so that it cannot say what does not work.
"""

import hashlib
import re
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from align.services.git import git
from align.services.tracking.tracker import BRANCH, REVISION, Tracker
from tests.support import ROOT
from tests.support.dvc_projects import environment

DOCS = ROOT / "docs"
#: What the demo leaves in a checkout. No journey touches it.
OUTS = ("data", "models", "reports", "checkpoints", "runtime", "mlartifacts", "mlflow.db", "dvc.lock", "params.yaml")
#: `align run` commits.
AUTHOR = {f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.M | re.S)


def names(page):
    """The journeys of a page; one may have several parts."""
    return list(dict.fromkeys(re.findall(r"^<!-- journey: ([\w-]+) -->$", page.read_text("utf-8"), re.M)))


def script(page, name):
    """The commands of one journey."""
    parts = re.findall(
        rf"^<!-- journey: {name} -->$(.*?)^<!-- end of journey -->$", page.read_text("utf-8"), re.M | re.S
    )
    assert parts, f"{page.name} has no journey '{name}'"
    blocks = [block for part in parts for block in _BLOCK.findall(part)]
    assert blocks, f"journey '{name}' of {page.name} has no bash block"
    return "".join(blocks)


def outside(page):
    """The `bash` blocks of a page that are in no journey, and so are run by no test."""
    text = re.sub(r"^<!-- journey: .*?^<!-- end of journey -->$", "", page.read_text("utf-8"), flags=re.M | re.S)
    return _BLOCK.findall(text)


def travel(folder, page, name, more=None):
    """Types a journey of a page of docs/ in a folder, where what the page presumes lies, and returns all that it
    printed.
    """
    env = {key: value for key, value in environment(folder, {}).items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    env |= {"PYTHONPATH": str(ROOT), "PWD": str(folder)} | dict(more or {})
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script(DOCS / f"{page}.md", name)],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1700, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{page}, {name}:\n{done.stdout[-6000:]}"
    return done.stdout


def log_run(root, name):
    """Puts branch run/NAME of a project among the runs of its mlflow.db, as `align run` does while it works.

    The file belongs to its folder: copies of the project have to be made before.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # MLflow's client remembers addresses
        pool.submit(_log_run, root, name).result()


def _log_run(root, name):
    tracker = Tracker(f"sqlite:///{root}/mlflow.db")
    run_id = tracker.start_run("align", name)
    tracker.set_tags(run_id, {BRANCH: f"run/{name}", REVISION: git(root, "rev-parse", f"run/{name}")})
    tracker.end_run(run_id)


def demo_state():
    """Path -> sha256 of every file of the demo in this checkout."""
    files = [path for name in OUTS for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))]
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()
    }
