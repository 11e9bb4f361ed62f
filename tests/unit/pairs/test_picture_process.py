"""What a decoder that hostile bytes have taken over does not get: files, sockets, the environment of who started it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from align.pairs import picture_process

#: Tries each of these in a confined process, and prints what came of it.
ATTACKS = """
import json, os, resource, socket, sys
from align.pairs.picture_process import _confine
parent, shown = sys.argv[1], os.dup(1)
attacks = {
    "read a file": lambda: open("/etc/passwd").read(),
    "read the environment": lambda: open(f"/proc/{parent}/environ", "rb").read(),
    "write a file": lambda: open("planted", "w").write("x"),
    "connect": lambda: socket.socket().connect(("127.0.0.1", 9)),
    "send a datagram": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
    "another descriptor": lambda: os.dup(0),
    "more descriptors": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (99, resource.RLIM_INFINITY)),
}
_confine(resource)
seen = {}
for name, attack in attacks.items():
    try:
        attack()
        seen[name] = "done"
    except (OSError, ValueError) as error:
        seen[name] = getattr(error, "strerror", str(error))
os.write(shown, json.dumps(seen).encode())
os._exit(0)
"""


def test_a_confined_process_opens_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ATTACKS, str(os.getpid())], cwd=tmp_path, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not [*tmp_path.iterdir()]
    seen = json.loads(done.stdout)
    if os.getuid():  # root may raise its own limits
        assert seen["more descriptors"] == "not allowed to raise maximum limit"  # EPERM, as Python says it
    del seen["more descriptors"]
    assert len(seen) == 6 and set(seen.values()) == {"Too many open files"}, seen


def test_a_helper_is_confined_and_inherits_no_secret(monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "align:secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/this/python")
    helper = picture_process.Helper()
    try:
        kept = Path(f"/proc/{helper._process.pid}")
        if kept.is_dir():
            assert kept.joinpath("environ").read_bytes() == b"LD_LIBRARY_PATH=/of/this/python\0"
            limits = {
                line[:25].strip(): line[25:].split()[:2] for line in kept.joinpath("limits").read_text().splitlines()
            }
            assert limits["Max file size"] == limits["Max core file size"] == ["0", "0"]
            assert len({*limits["Max open files"]}) == 1 and int(limits["Max open files"][0]) < 20
    finally:
        helper.end()
