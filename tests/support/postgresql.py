"""A real PostgreSQL server on loopback, with passwords. It refuses to run as root, so it runs as nobody then."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import missing
from tests.support.mlflow_server import free_port

PASSWORD = "planted/postgres@secret"
#: The same in an address.
URL_PASSWORD = "planted%2Fpostgres%40secret"
PROGRAMS = ("initdb", "postgres", "pg_dump", "pg_restore", "psql")


def programs() -> Path:
    """The folder of PostgreSQL's programs of one version; skips the test, or fails it with CI=true, where it lacks."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if found := shutil.which("initdb"):
        folders.append(Path(found).parent)
    whole = [folder for folder in folders if all((folder / name).exists() for name in PROGRAMS)]
    return whole[0] if whole else missing(f"needs PostgreSQL's server and client: {', '.join(PROGRAMS)}")


@contextmanager
def serve() -> Iterator[str]:
    """The start of the addresses of its databases: postgresql://align:password@127.0.0.1:port/"""
    folder, bin_folder = Path(tempfile.mkdtemp(prefix="postgresql-")), programs()
    user = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    claim, port = free_port()
    (folder / "password").write_text(PASSWORD)
    if user:
        for path in (folder, folder / "password"):
            shutil.chown(path, **user)
    data = folder / "data"
    options = ["-U", "align", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8", "--no-sync"]
    server = None
    try:
        command = [bin_folder / "initdb", "-D", data, *options]
        made = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, **user)
        assert made.returncode == 0, made.stderr
        log = (folder / "log").open("wb")
        server = subprocess.Popen(
            [bin_folder / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder],
            stdout=log, stderr=log, cwd=folder, **user,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + 120
        while not answers(bin_folder, port):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"postgresql://align:{URL_PASSWORD}@127.0.0.1:{port}/"
    finally:
        if server is not None:
            server.send_signal(2)  # ends its connections
            server.wait(60)
        claim.close()
        with suppress(OSError):
            shutil.rmtree(folder)


def answers(folder: Path, port: int) -> bool:
    return sql(port, "SELECT 1", folder).returncode == 0


def sql(
    port: int, statement: str, folder: Path | None = None, database: str = "postgres"
) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PGPASSWORD": PASSWORD, "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "align"}
    command = [(folder or programs()) / "psql", "-XAt", "-c", statement, database]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def create(base: str, *names: str) -> list[str]:
    """New databases; their addresses."""
    port = int(base.rstrip("/").rpartition(":")[2])
    for name in names:
        done = sql(port, f"CREATE DATABASE {name}")
        assert done.returncode == 0, done.stderr
    return [base + name for name in names]


@pytest.fixture(scope="module", name="postgresql")
def postgresql_server() -> Iterator[str]:
    with serve() as base:
        yield base
