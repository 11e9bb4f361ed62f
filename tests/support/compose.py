"""The services of infra/compose.yaml as processes of this machine, without Docker.

Each runs its own command line with no more than the environment, the secrets and the folders that the file gives it,
and is waited for with its own health check. Replaced are: names of services and 0.0.0.0 by 127.0.0.1, ports by free
ones, paths in a container by folders of the test. The image's ENV and ENTRYPOINT are read from infra/Dockerfile; its
files are this checkout's. What the entrypoint of postgres' image does is `tests.support.postgresql.Cluster`.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from tests.support import ROOT, wait_until
from tests.support.mlflow_server import free_port
from tests.support.postgresql import Cluster, programs

FILE, IMAGE = ROOT / "infra/compose.yaml", ROOT / "infra/Dockerfile"
#: What the file's services listen on, in their containers.
PORTS = (4200, 5000, 5432, 7000, 8080, 8333)
#: What `weed mini` listens on beside S3, which nobody else uses.
WEED = tuple(f"-{name}.port{kind}" for name in ("master", "volume", "filer", "admin") for kind in ("", ".grpc"))
BIN = Path(sys.executable).parent


def read():
    """The file, with its anchors and merges resolved."""
    return YAML(typ="safe", pure=True).load(FILE.read_text("utf-8"))


def image_environment():
    """The ENV of infra/Dockerfile."""
    lines = re.findall(r"^ENV (.+)$", IMAGE.read_text("utf-8"), re.M)
    return dict(word.split("=", 1) for line in lines for word in shlex.split(line))


class Compose:
    """The services on free ports, over the checkout `project`, with their data and secrets below `root`."""

    def __init__(self, root, project):
        self.root, self.project = root, project
        self.services = read()["services"]
        self.secrets = root / "secrets"
        subprocess.run([ROOT / "infra/compose/make_secrets.sh", self.secrets], check=True, capture_output=True)
        self._claims, numbers = zip(*(free_port() for _ in (*PORTS, *WEED)), strict=True)
        self.ports = dict(zip((*PORTS, *WEED), numbers, strict=True))
        self._postgresql = None
        self.processes = {}

    def secret(self, name):
        """A secret's text."""
        return (self.secrets / name).read_text().strip()

    def up(self, *names):
        """Starts services in the order given, and waits for each; those that it depends on must be as the file asks."""
        for name in names:
            for other, condition in self.services[name].get("depends_on", {}).items():
                state = condition["condition"]
                ended = self.processes[other].poll() == 0
                assert ended if state == "service_completed_successfully" else self._is_healthy(other), (name, other)
            self._start(name)
            self._wait_for(name)

    def down(self):
        """Ends every process; SIGTERM first, as Docker does."""
        for name, process in reversed(self.processes.items()):
            family = self.family(name)
            with suppress(ProcessLookupError):
                # PostgreSQL: SIGINT, its image's STOPSIGNAL, does not wait for clients
                os.killpg(process.pid, signal.SIGINT if name == "postgres" else signal.SIGTERM)
            _, alive = psutil.wait_procs(family, timeout=15)
            for each in alive:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()
        for claim in self._claims:
            claim.close()
        if self._postgresql:
            self._postgresql.remove()

    def run(self, name, *command):
        """`docker compose run --no-deps NAME COMMAND`."""
        words = [str(self._entrypoint()), *command]
        environment, folder = self._environment(name), self._folder(name)
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    def family(self, name):
        """A service's process and what it started; none once it has ended."""
        with suppress(psutil.NoSuchProcess):
            if self.processes[name].poll() is None:
                process = psutil.Process(self.processes[name].pid)
                return [process, *process.children(recursive=True)]
        return []

    def log(self, name):
        """What a service printed."""
        return (self.root / f"{name}.log").read_text("utf-8", "replace")

    # --- from the file to a process

    def here(self, name, text):
        """A text of the file as it has to be without containers, for one service."""
        services = "|".join(self.services)
        text = re.sub(
            rf"\b({services}|127\.0\.0\.1|0\.0\.0\.0):(\d+)", lambda m: f"127.0.0.1:{self.ports[int(m[2])]}", text
        )
        text = re.sub(rf"(?<=-ip=)({services})\b|0\.0\.0\.0", "127.0.0.1", text)
        text = re.sub(rf"(?<![:\w.-])({'|'.join(map(str, PORTS))})\b", lambda m: str(self.ports[int(m[1])]), text)
        folders = {"/run/secrets": self._given(name), "/opt/align": ROOT, "/project": self.project}
        folders |= {"/data": self.root / "data", "/tmp": self._scratch(name)}
        return re.sub(rf"(?<![\w/])({'|'.join(folders)})(?![\w-])", lambda m: str(folders[m[1]]), text)

    def _environment(self, name):
        service = self.services[name]
        ours = "build" in service
        values = (image_environment() if ours else {"HOME": "/tmp"}) | service.get("environment", {})
        environment = {key: self.here(name, str(value)) for key, value in values.items()}
        environment |= {
            key: value for key, value in values.items() if key == "ALIGN_SERVER_NAMES"
        }  # any may be asked for
        folders = [str(programs())] if name == "postgres" else []
        environment["PATH"] = os.pathsep.join([*folders, str(BIN), os.environ["PATH"]])
        if ours:
            environment["PYTHONPATH"] = str(ROOT)  # where the image has align installed
            environment["ALIGN_SECRETS"] = str(self._given(name))
            environment["TMPDIR"] = self.here(name, "/tmp")
        return environment

    def _given(self, name):
        """What a container sees as /run/secrets: what the service lists, under the names that it asks for."""
        folder = self.root / "run" / name
        if folder.exists():  # the service may be reading them
            return folder
        folder.mkdir(parents=True)
        for entry in self.services[name].get("secrets", []):
            source, target = (entry, entry) if isinstance(entry, str) else (entry["source"], entry["target"])
            shutil.copy(self.secrets / source, folder / target)
        return folder

    def _scratch(self, name):
        folder = self.root / "tmp" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _folder(self, name):
        return Path(self.here(name, self.services[name].get("working_dir", "/tmp")))

    def _entrypoint(self):
        [words] = re.findall(r'^ENTRYPOINT \["/opt/align/(\S+)"\]$', IMAGE.read_text("utf-8"), re.M)
        return ROOT / words

    def _words(self, name, part):
        value = self.services[name].get(part, [])
        return [self.here(name, word) for word in (shlex.split(value) if isinstance(value, str) else value)]

    def _start(self, name):
        command = [*self._words(name, "entrypoint"), *self._words(name, "command")]
        environment, how = self._environment(name), {"cwd": self._folder(name)}
        if name == "postgres":
            self._postgresql = cluster = self._make_databases(environment)
            command, how = cluster.command(self.ports[5432], *command), cluster.how
        elif name == "s3":
            (self.root / "data").mkdir()
            sockets = ["-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]
            command += [*(f"{flag}={self.ports[flag]}" for flag in WEED), *sockets]
        else:
            command = [str(self._entrypoint()), *command]
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, **how
            )

    def _make_databases(self, environment):
        """What postgres' image does at its first start."""
        [script] = [
            volume for volume in self.services["postgres"]["volumes"] if "/docker-entrypoint-initdb.d/" in volume
        ]
        statements = [
            f"CREATE DATABASE {environment['POSTGRES_DB']}",
            (FILE.parent / script.partition(":")[0]).read_text("utf-8"),
        ]
        password = Path(environment["POSTGRES_PASSWORD_FILE"]).read_text()
        arguments = ["--auth-local=trust", *environment["POSTGRES_INITDB_ARGS"].split()]
        return Cluster(environment["POSTGRES_USER"], password, arguments, statements)

    def _wait_for(self, name):
        """Until its health check passes; a service without one, until it ends well."""
        process, checked = self.processes[name], "healthcheck" in self.services[name]
        wait_until(
            lambda: self._is_healthy(name) if checked else process.poll() == 0, pause_s=0.5,
            alive=lambda: process.poll() is None,
            says=lambda: f"{name} is not healthy (exit code {process.poll()}): {self.log(name)[-3000:]}",
        )  # fmt: skip

    def _is_healthy(self, name):
        kind, *command = (self.here(name, word) for word in self.services[name]["healthcheck"]["test"])
        assert kind == "CMD"
        done = subprocess.run(
            command, env=self._environment(name), cwd=self._folder(name), capture_output=True, check=False, timeout=30
        )
        return done.returncode == 0
