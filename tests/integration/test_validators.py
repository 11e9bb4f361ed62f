"""The files of infra/ by the programs that know their formats: compose, Kubernetes, Dockerfile, shell.

`make test-cluster` installs these programs, by hash, into .align/validators. None of them asks a network or a daemon.
Each is also given a file with a mistake, which it must find.
"""

import os
import subprocess

import pytest

from align.services.git import git
from tests.support import ROOT, missing

pytestmark = pytest.mark.cluster
FOLDER = ROOT / ".align/validators"
KUBERNETES = "1.37"
SCRIPTS = sorted(name for name in git(ROOT, "ls-files", "-co", "--exclude-standard", "infra", ".ci/run").splitlines())
SCRIPTS = [name for name in SCRIPTS if (ROOT / name).read_bytes()[:2] == b"#!"]


def run(program, *arguments, cwd=ROOT):
    """One of the programs."""
    if not (FOLDER / "bin" / program).exists():
        missing(f"{program} is not installed: make validators")
    env = os.environ | {"PYTHONPATH": str(FOLDER), "NO_COLOR": "1"}
    command = [FOLDER / "bin" / program, *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120)


def assert_valid(done):
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    return done.stdout


def changed(name, old, new, to):
    """A copy of a file of infra/ with a mistake."""
    text = (ROOT / "infra" / name).read_text("utf-8")
    assert text.count(old) >= 1
    to.write_text(text.replace(old, new, 1))
    return to


def test_compose_is_valid(tmp_path):
    """`docker compose config` checks its own schema, and that networks, volumes, secrets and services exist."""
    words = ("--profile", "*", "config", "--quiet")
    assert_valid(run("docker-compose", "--file", "infra/compose.yaml", *words))
    assert_valid(run("docker-compose", "--file", "infra/compose.yaml", "--file", "infra/compose/accounts.yaml", *words))
    for old, new, reason in (
        ("start_period: 60s", "start_periods: 60s", "start_periods"),
        ("networks: [database]", "networks: [databases]", "databases"),
        ("secrets: [POSTGRES_PASSWORD]", "secrets: [POSTGRES]", "POSTGRES"),
    ):
        broken = changed("compose.yaml", old, new, tmp_path / "compose.yaml")
        done = run("docker-compose", "--file", broken, *words)
        assert done.returncode != 0 and reason in done.stderr


def test_kubernetes_is_valid(tmp_path):
    """Built by kustomize, then every object against the API's schemas; unknown keys are mistakes."""
    built = assert_valid(run("kubectl", "kustomize", "infra/kubernetes/training"))
    (tmp_path / "built.yaml").write_text(built)
    check = ("--strict", "--kubernetes-version", KUBERNETES)
    assert_valid(run("kubernetes-validate", *check, tmp_path / "built.yaml"))
    for old, new in (("readOnlyRootFilesystem", "readOnlyRootFileSystem"), ("runAsUser: 1000", 'runAsUser: "1000"')):
        (tmp_path / "broken.yaml").write_text(built.replace(old, new, 1))
        assert run("kubernetes-validate", *check, tmp_path / "broken.yaml").returncode != 0


def test_the_dockerfile_is_valid(tmp_path):
    assert_valid(run("hadolint", "--failure-threshold", "style", "infra/Dockerfile"))
    for old, new, rule in (
        ("FROM python:3.11.14-slim-bookworm", "FROM python", "DL3006"),
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
        ("USER 1000:1000", "USER root", "DL3002"),
    ):
        done = run("hadolint", "--failure-threshold", "style", changed("Dockerfile", old, new, tmp_path / "Dockerfile"))
        assert done.returncode != 0 and rule in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_valid(name):
    assert_valid(run("shellcheck", "--severity=style", name))


def test_a_mistake_in_a_script_is_found(tmp_path):
    assert len(SCRIPTS) >= 4
    broken = changed("entrypoint.sh", '"$name=$value"', "$name=$value $other", tmp_path / "entrypoint.sh")
    assert "SC2154" in run("shellcheck", broken).stdout
