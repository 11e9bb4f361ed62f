"""The image: what it copies, its entrypoint, and its health check."""

import os
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.support import ROOT

IMAGE = ROOT / "infra/Dockerfile"
ENTRYPOINT, HEALTHY = ROOT / "infra/entrypoint.sh", ROOT / "infra/healthy.py"


def copies(text):
    """What a Dockerfile copies -> where it lies in the working directory."""
    lines = [line.split() for line in re.findall(r"^COPY (.+)$", text, re.M)]
    return {
        name: os.path.normpath(Path(target, Path(name).name) if target.endswith("/") else target)
        for *names, target in lines
        for name in names
    }


def test_the_image_copies_what_exists_and_what_its_context_holds():
    text = IMAGE.read_text("utf-8")
    copied = copies(text)
    allowed = re.findall(r"^!(\S+)$", IMAGE.with_name("Dockerfile.dockerignore").read_text("utf-8"), re.M)
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)
    [target] = re.findall(r"^RUN .* make (\S+) ", text, re.M)
    assert "STAMP := $(VENV)/.installed" in (ROOT / "Makefile").read_text("utf-8") and target == ".venv/.installed"


def test_the_image_has_what_the_package_is_made_from():
    """`pip install -e .` stops at a file of this list that is absent."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = [Path(name) for name in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]]
    copied = copies(IMAGE.read_text("utf-8"))
    assert [str(path) for path in needed if not {str(path), *map(str, path.parents)} & set(copied)] == []
    assert all(target == name for name, target in copied.items())  # each where the checkout has it


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
