"""A real PostgreSQL server on loopback, with passwords, and what its image does at its first start.

The server refuses to run as root, so it runs as nobody then.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import missing, wait_until
from tests.support.mlflow_server import free_port

PASSWORD = "planted/postgres@secret"
#: The same in an address.
URL_PASSWORD = "planted%2Fpostgres%40secret"
PROGRAMS = ("initdb", "postgres", "pg_dump", "pg_restore", "pg_isready", "psql")


def programs():
    """The folder of PostgreSQL's programs of one version; skips the test, or fails it with CI=true, where it lacks."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if found := shutil.which("initdb"):
        folders.append(Path(found).parent)
    whole = [folder for folder in folders if all((folder / name).exists() for name in PROGRAMS)]
    return whole[0] if whole else missing(f"needs PostgreSQL's server and client: {', '.join(PROGRAMS)}")


class Cluster:
    """The databases of one server, all of one user, in a folder that its user can enter, as pytest's are not: made by
    initdb with these arguments, then by these statements.
    """

    def __init__(self, owner, password, arguments, statements=()):
        self._programs = programs()
        self.folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        #: How subprocess starts its programs.
        self.how = {"cwd": self.folder}
        file = self.folder / "password"
        file.write_text(password)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.how |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for path in (self.folder, file):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        data = str(self.folder / "data")
        self._run("initdb", "-D", data, "-U", owner, f"--pwfile={file}", "-E", "UTF8", "--no-sync", *arguments)
        if statements:
            self._run("postgres", "--single", "-j", "-D", data, "postgres", text=";\n\n".join(statements))

    def command(self, port, *words):
        """The server's command line on loopback: `words` are the program and its arguments."""
        program, *arguments = words
        sockets = ["-c", f"unix_socket_directories={self.folder}"]
        place = ["-c", "listen_addresses=127.0.0.1", "-p", str(port), *sockets]
        return [str(self._programs / program), "-D", str(self.folder / "data"), *arguments, *place]

    def remove(self):
        """Removes the folder, once the server has ended."""
        with suppress(OSError):
            shutil.rmtree(self.folder)

    def _run(self, program, *arguments, text=None):
        command = [self._programs / program, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, **self.how)
        assert done.returncode == 0, done.stderr


@contextmanager
def serve():
    """The start of the addresses of its databases: postgresql://align:password@127.0.0.1:port/"""
    claim, port = free_port()
    cluster = Cluster("align", PASSWORD, ["--auth=scram-sha-256"])
    server = None
    try:
        with (cluster.folder / "log").open("wb") as log:
            server = subprocess.Popen(cluster.command(port, "postgres"), stdout=log, stderr=log, **cluster.how)
        says = (cluster.folder / "log").read_text
        wait_until(lambda: sql(port, "SELECT 1").returncode == 0, alive=lambda: server.poll() is None, says=says)
        yield f"postgresql://align:{URL_PASSWORD}@127.0.0.1:{port}/"
    finally:
        if server is not None:
            server.send_signal(2)  # ends its connections
            server.wait(60)
        claim.close()
        cluster.remove()


def sql(port, statement, database="postgres"):
    """Asks a server that `serve` started."""
    env = os.environ | {"PGPASSWORD": PASSWORD, "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "align"}
    command = [programs() / "psql", "-XAt", "-c", statement, database]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def create(base, *names):
    """New databases; their addresses."""
    port = int(base.rstrip("/").rpartition(":")[2])
    for name in names:
        done = sql(port, f"CREATE DATABASE {name}")
        assert done.returncode == 0, done.stderr
    return [base + name for name in names]


@pytest.fixture(scope="module", name="postgresql")
def postgresql_server():
    with serve() as base:
        yield base
