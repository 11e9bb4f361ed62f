"""What the containers run first: infra/entrypoint.sh, infra/healthy.py, infra/kubernetes/checkout.sh."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from align.services.git import git
from tests.support import ROOT

ENTRYPOINT, HEALTHY = ROOT / "infra/entrypoint.sh", ROOT / "infra/healthy.py"
CHECKOUT = ROOT / "infra/kubernetes/checkout.sh"


def enter(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "ALIGN_SECRETS": str(folder)}
    return subprocess.run([ENTRYPOINT, *command], env=env, capture_output=True, text=True, check=False)


def test_secrets_in_capital_letters_become_variables(tmp_path: Path) -> None:
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


def test_a_secret_that_cannot_be_read_stops_the_container(tmp_path: Path) -> None:
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
def test_a_server_is_healthy_that_answers_200(status: int, expected: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/health"
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert subprocess.run([sys.executable, HEALTHY, url], capture_output=True, check=False).returncode == expected
    gone = subprocess.run([sys.executable, HEALTHY, url], capture_output=True, text=True, check=False)
    assert gone.returncode == 1 and gone.stderr.count("\n") == 1 and "refused" in gone.stderr


def test_the_claim_becomes_a_checkout_once(tmp_path: Path) -> None:
    source, claim = tmp_path / "source", tmp_path / "claim"
    git(tmp_path, "init", "--quiet", str(source))
    (source / "file").write_text("first")
    git(source, "add", "--all")
    git(source, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "one")
    (claim / "lost+found").mkdir(parents=True)
    env = os.environ | {"ALIGN_REPOSITORY": str(tmp_path / "none"), "ALIGN_REVISION": "HEAD"}
    failed = subprocess.run([CHECKOUT], cwd=claim, env=env, capture_output=True, text=True, check=False)
    assert failed.returncode != 0 and (claim / ".git").is_dir()  # as after a kill: begun, without a commit
    for _ in range(2):
        env |= {"ALIGN_REPOSITORY": str(source)}
        subprocess.run([CHECKOUT], cwd=claim, env=env, check=True, capture_output=True)
        assert (claim / "file").read_text() == "first" and (claim / "lost+found").is_dir()
        assert git(claim, "status", "--porcelain") == ""
        git(source, "rm", "--quiet", "--ignore-unmatch", "file")  # what the repository does later is fetched by people
        git(source, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "two")
