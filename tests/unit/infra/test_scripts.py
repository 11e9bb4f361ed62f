"""`make clean`, the packages of a checkout, and the scripts of a container: what they do and what they refuse."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from align.pipeline.run import created
from align.services.dvc.commands import dvc
from infra import clean
from tests.support import ROOT
from tests.support.dvc_projects import environment, make_repository, shell

DVC_YAML = "stages:\n  make:\n    cmd: echo data > table\n    outs: [table]\n"


def make_clean(root):
    """Typed in a checkout with this repository's Makefile, and a Python whose path has a space."""
    python = root.with_name("my python")
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    command = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "clean", f"PYTHON={python}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(name="checkout")
def _checkout(tmp_path):
    """A checkout in which everything was run once; its path has a space."""
    root = tmp_path / "a checkout"
    root.mkdir()
    (root / "infra").symlink_to(ROOT / "infra")
    for name in (*clean.MADE_AGAIN, "remote", "prefect", "failed/demo", "worktrees", "locks"):
        (root / ".align" / name).mkdir(parents=True)
        (root / ".align" / name / "file").touch()
    (root / ".align/login").write_text("align:secret\n")
    for name in ("runtime", "dvc_plots", "checkpoints/0123456789abcdef-01234567", "mydata"):
        (root / name).mkdir(parents=True)
        (root / name / "file").touch()
    return root


def files(root):
    found = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return {path for path in found if not path.startswith("infra/")}


def test_what_people_put_there_stays(checkout):
    done = make_clean(checkout)
    assert done.returncode == 0, done.stderr
    assert files(checkout) == {
        ".align/login", ".align/remote/file", ".align/prefect/file", ".align/failed/demo/file", ".align/locks/file",
        ".align/worktrees/file", "checkpoints/0123456789abcdef-01234567/file", "mydata/file",
    }  # fmt: skip
    assert make_clean(checkout).returncode == 0  # nothing left to remove


def test_what_dvc_pushed_can_be_had_again(tmp_path, monkeypatch):
    root = make_repository(tmp_path / "project", {"dvc.yaml": DVC_YAML, "params.yaml": "{}\n"}, "/table\n/infra\n")
    for name, value in environment(root, {}).items():
        monkeypatch.setenv(name, value)
    (root / "infra").symlink_to(ROOT / "infra")
    shell(root, "dvc repro --quiet && dvc push --quiet && rm -rf .dvc/cache table", {})
    assert make_clean(root).returncode == 0
    dvc(root, "pull", "--quiet")
    assert (root / "table").read_text() == "data\n"


def test_running_services_are_refused(checkout):
    before = files(checkout) | {".align/services.json"}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=checkout) as process:
        service = {"pid": process.pid, "created": created(process.pid)}
        (checkout / ".align/services.json").write_text(json.dumps({"worker": service, "prefect": service}))
        done = make_clean(checkout)
        process.kill()
    assert done.returncode != 0 and done.stderr.startswith(
        "align: error: nothing is removed: prefect, worker of `make up` still run: stop them with `make down` first\n"
    )
    assert files(checkout) == before
    assert make_clean(checkout).returncode == 0  # killed: the list is out of date
    assert ".align/services.json" in files(checkout)


def test_a_run_at_work_is_refused(checkout):
    with (checkout / ".align/locks/checkout").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("run 'demo'")
        lock.flush()
        done = make_clean(checkout)
    assert done.returncode != 0
    assert "nothing is removed: run 'demo' is at work and holds .align/locks/checkout: wait for it" in done.stderr
    assert (checkout / "runtime/file").exists()


def test_a_damaged_list_of_services_is_refused(checkout):
    (checkout / ".align/services.json").write_text('{"prefect"')
    assert "services.json cannot be read: `make down`, then delete it" in make_clean(checkout).stderr
    assert (checkout / "runtime/file").exists()


def test_a_link_is_removed_and_what_it_leads_to_stays(checkout, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "file").touch()
    for path in ("runtime", ".align/store"):
        subprocess.run(["rm", "-r", path], cwd=checkout, check=True)
        (checkout / path).symlink_to(elsewhere)
    assert make_clean(checkout).returncode == 0
    assert (elsewhere / "file").exists() and not (checkout / "runtime").is_symlink()


#: Says what it is asked for, and what it would write of compiled modules; an environment that it makes holds it, too.
PYTHON = """\
#!/bin/sh
echo "$* ${PYTHONDONTWRITEBYTECODE-compiles}" >> installed
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
case "$*" in *compileall*) echo "some do not" >&2; exit 1;; esac
"""


def test_packages_are_installed_and_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    python, checkout = tmp_path / "a folder/python", tmp_path / "a checkout"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    checkout.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "infra"):
        (checkout / name).symlink_to(ROOT / name)
    command = ["make", "--no-print-directory", ".venv/.installed", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=checkout, env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    asked = (checkout / "installed").read_text().splitlines()
    assert all(line.endswith(" compiles") for line in asked), asked
    assert [line.split()[1] for line in asked] == ["import", "venv", "pip", "pip", "pip", "compileall"]
    assert asked[-1].split()[-2] == ".venv/lib" and asked[-2].split()[-3:-1] == ["-e", "."]
    assert (checkout / ".venv/.installed").exists()


ENTRYPOINT, HEALTHY = ROOT / "infra/entrypoint.sh", ROOT / "infra/healthy.py"


def enter(folder, *command):
    env = {"PATH": os.environ["PATH"], "ALIGN_SECRETS": str(folder)}
    return subprocess.run([ENTRYPOINT, *command], env=env, capture_output=True, text=True, check=False)


def test_secrets_in_capital_letters_become_variables(tmp_path):
    value = "pass word $HOME `id` \"quoted\" 'too' \\n"
    (tmp_path / "PGPASSWORD").write_text(f"{value}\n")
    for name in ("aws_credentials", "s3.json", "1A", "A-B"):
        (tmp_path / name).write_text("a file")
    done = enter(tmp_path, "env")
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert variables["PGPASSWORD"] == value and "a file" not in done.stdout
    assert enter(tmp_path, "sh", "-c", 'echo "$#: $1"; exit 7', "sh", "two words").stdout == "1: two words\n"
    assert enter(tmp_path, "sh", "-c", "exit 7").returncode == 7
    assert enter(tmp_path / "none", "echo", "fine").stdout == "fine\n"


def test_a_secret_that_cannot_be_read_stops_the_container(tmp_path):
    (tmp_path / "PGPASSWORD").mkdir()  # root can read every file
    done = enter(tmp_path, "echo", "started")
    assert done.returncode == 1 and done.stdout == ""
    assert f"align: error: secret {tmp_path}/PGPASSWORD cannot be read by user " in done.stderr
    (tmp_path / "PGPASSWORD").rmdir()
    (tmp_path / "PGPASSWORD").write_text("\n")  # as it is while something writes it
    done = enter(tmp_path, "echo", "started")
    assert (done.returncode, done.stdout, done.stderr) == (
        1, "", f"align: error: secret {tmp_path}/PGPASSWORD is empty\n",
    )  # fmt: skip


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (204, 1), (503, 1)])
def test_a_server_is_healthy_that_answers_200(status, expected):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, format, *args): ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/health"
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert subprocess.run([sys.executable, HEALTHY, url], capture_output=True, check=False).returncode == expected
    gone = subprocess.run([sys.executable, HEALTHY, url], capture_output=True, text=True, check=False)
    assert gone.returncode == 1 and gone.stderr.count("\n") == 1 and "refused" in gone.stderr
