"""A second machine: a clone of a repository, with a worker of a work pool. It shares no folder with the first."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from align.errors import DataError
from align.services.git import git
from tests.support import ROOT, wait_until
from tests.support.local_stack import BUSY_S


class Machine:
    """A clone of the git repository that the machines share, in a new folder, and the environment of all that runs
    there.
    """

    def __init__(self, root, origin, env):
        self.root = root
        git(origin, "clone", "--quiet", str(origin), str(root))
        path = os.pathsep.join([str(root / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        machine = {"DVC_SITE_CACHE_DIR": str(root.with_name(f"{root.name}.dvc"))}
        self.env = {name: value for name, value in env.items() if name != "ALIGN_ROOT"} | machine | {"PATH": path}
        self._worker = None

    def work(self, pool):
        """`make worker POOL=pool`."""
        log = self.root / ".align/logs/worker.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._worker = subprocess.Popen(
                [sys.executable, str(ROOT / "infra/worker.py"), pool], cwd=self.root, env=self.env,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait_until_it_works(self):
        """Returns once the worker polls."""
        worker = self._worker
        wait_until(lambda: "started!" in self.log(), BUSY_S, alive=lambda: worker.poll() is None, says=self.log)

    def log(self):
        """What the worker, and the parts below it, printed."""
        return (self.root / ".align/logs/worker.log").read_text("utf-8", "replace")

    def lose(self):
        """SIGKILL to the worker and all below it, as if the machine had lost its power."""
        family = [psutil.Process(self._worker.pid)]
        family += family[0].children(recursive=True)
        for process in family:  # first the parents: none of them sees another one's end
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._worker.wait()
        self._worker = None

    def close(self):
        """Ends the worker, and what it runs."""
        if self._worker:
            self._worker.terminate()
            try:
                self._worker.wait(40)
            except subprocess.TimeoutExpired:
                self.lose()


def share(root, origin, remote):
    """Makes a repository's git remote new and bare, and DVC's this address: other machines see both."""
    git(root, "init", "--quiet", "--bare", str(origin))
    with suppress(DataError):  # there may be none
        git(root, "remote", "remove", "origin")
    git(root, "remote", "add", "origin", str(origin))
    use_remote(root, remote)
    git(root, "push", "--quiet", "origin", "HEAD:refs/heads/main")
    git(origin, "symbolic-ref", "HEAD", "refs/heads/main")


def use_remote(root, remote):
    """Makes a remote of DVC the default, in the settings that git ignores."""
    (root / ".dvc/config.local").write_text(f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {remote}\n")
