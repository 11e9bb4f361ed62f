"""What a decoder that hostile bytes have taken over can still do: compute and answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from align.pairs import picture_confined, picture_process
from align.pairs.picture_confined import why_unfiltered
from tests.support import missing

#: Tries each of these in a confined process, and prints what came of it.
ATTACKS = """
import ctypes, json, mmap, os, resource, socket, sys
from align.pairs.picture_confined import confine
libc = ctypes.CDLL(None, use_errno=True)
parent, shown = int(sys.argv[1]), os.dup(1)
def call(name, *arguments):
    getattr(libc, name).restype = ctypes.c_long
    found = getattr(libc, name)(*arguments)
    if found == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
attacks = {
    "read a file": lambda: open("/etc/passwd").read(),
    "read the environment": lambda: open(f"/proc/{parent}/environ", "rb").read(),
    "write a file": lambda: open("planted", "w").write("x"),
    "see a file": lambda: os.stat("/etc/passwd"),
    "list a folder": lambda: os.listdir("/"),
    "remove a file": lambda: os.unlink("victim"),
    "rename a file": lambda: os.rename("victim", "planted"),
    "connect": lambda: socket.socket().connect(("127.0.0.1", 9)),
    "send a datagram": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
    "another descriptor": lambda: os.dup(0),
    "fork": os.fork,
    "start a program": lambda: os.execv("/bin/true", ["true"]),
    "signal the parent": lambda: os.kill(parent, 0),
    "signal the group": lambda: os.killpg(0, 0),
    "abort the parent": lambda: call("syscall", 234, parent, parent, 0),
    "read the parent's memory": lambda: call("process_vm_readv", parent, None, 0, None, 0, 0),
    "trace the parent": lambda: call("ptrace", 16, parent, 0, 0),
    "limit the parent": lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (9, 9)),
    "more descriptors": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99)),
    "memory that runs": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "the calls of other architectures": lambda: call("syscall", 0x40000000 + 39),
}
confine()
seen = {}
for name, attack in attacks.items():
    try:
        attack()
        seen[name] = "done"
    except (OSError, ValueError) as error:
        seen[name] = getattr(error, "strerror", str(error))
memory = bytearray(1 << 25)
resource.setrlimit(resource.RLIMIT_AS, (1 << 40, resource.RLIM_INFINITY))
os.write(shown, json.dumps(seen).encode())
os._exit(0)
"""


@pytest.fixture(name="filtered")
def _filtered() -> None:
    if why := why_unfiltered():
        missing(why)


def attacked(folder: Path, text: str = ATTACKS) -> dict[str, str]:
    (folder / "victim").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-c", text, str(os.getpid())], cwd=folder, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    assert [path.name for path in folder.iterdir()] == ["victim"] and (folder / "victim").read_text() == "mine"
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.usefixtures("filtered")
def test_a_confined_process_reaches_nothing(tmp_path: Path) -> None:
    seen = attacked(tmp_path)
    assert seen.pop("more descriptors") == "not allowed to raise maximum limit"  # EPERM, as Python says it
    assert len(seen) == 20 and set(seen.values()) == {"Operation not permitted"}, seen


@pytest.mark.parametrize("platform", ["Darwin", "aarch64"])
def test_without_a_filter_nothing_is_opened_all_the_same(tmp_path: Path, platform: str) -> None:
    without = f"import platform; platform.machine = lambda: {platform!r}\n"
    opening = (
        "read a file", "read the environment", "write a file", "connect", "send a datagram", "another descriptor",
    )  # fmt: skip
    text = ATTACKS.replace(
        "confine()\nseen", f"attacks = {{name: attacks[name] for name in {opening}}}\nconfine()\nseen"
    )
    assert attacked(tmp_path, without + text) == dict.fromkeys(opening, "Too many open files")


def test_a_helper_is_confined_and_inherits_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "align:secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/this/python")
    helper = picture_process.Helper()
    try:
        kept = Path(f"/proc/{helper._process.pid}")
        if kept.is_dir():
            assert kept.joinpath("environ").read_bytes() == b"LD_LIBRARY_PATH=/of/this/python\0"
            status = dict(
                line.split(":\t", 1) for line in kept.joinpath("status").read_text().splitlines() if ":\t" in line
            )
            assert (status["Seccomp"], status["NoNewPrivs"]) == (("0", "0") if why_unfiltered() else ("2", "1"))
    finally:
        helper.end()


def test_where_there_is_no_filter_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_confined.platform, "machine", lambda: "riscv64")
    assert why_unfiltered() == "there is no filter for Linux on riscv64"
