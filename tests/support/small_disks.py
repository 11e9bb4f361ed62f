"""Runs a program with a small disk of its own, or a read-only one, in a mount namespace that ends with it."""

import shutil
import subprocess

from tests.support import ROOT, missing, warm

#: Enters namespaces as `unshare -rm` does, prepares the disk, and becomes Python with the arguments that follow. A fork
#: of tests.support.warm needs no start for that, unless they are `-c`.
_ENTER = """
import ctypes, os, pathlib, subprocess, sys

ids = {"uid": os.getuid(), "gid": os.getgid()}
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
assert ctypes.CDLL(None).unshare(CLONE_NEWNS | CLONE_NEWUSER) == 0
pathlib.Path("/proc/self/setgroups").write_text("deny")
for kind, number in ids.items():
    pathlib.Path(f"/proc/self/{kind}_map").write_text(f"0 {number} 1")
script, folder, *arguments = sys.argv[1:]
subprocess.run(["sh", "-c", script, "sh", folder], check=True)
os.execve(sys.executable, [sys.executable, *arguments], dict(os.environ))
"""


def with_disk(folder, arguments, *, size="2m", before="true", read_only=False):
    """Runs Python with these arguments while `folder`, which exists, is a disk of that size (as `mount` writes it) that
    hides what is in it; `before` is a shell command that prepares the disk, with its path as `$1`; read-only after
    that, if asked to.
    """
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0:
        missing("a disk of the test's own needs util-linux and user namespaces")
    lines = ["mount --make-rprivate /", f'mount -t tmpfs -o size={size} none "$1"', before]
    # without `bind` it would also repeat the disk's owner, a number that has no meaning inside
    lines += ['mount -o remount,bind,ro "$1"'] if read_only else []
    command = [warm.commands() / "python", "-c", _ENTER, " && ".join(lines), folder, *arguments]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
