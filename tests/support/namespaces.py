"""Two machines that are network namespaces, joined by a cable. They share the disk, and need root and iproute2."""

import os
import shutil
import subprocess
from contextlib import contextmanager

from tests.support import missing


@contextmanager
def namespaces():
    """Two network namespaces, 10.77.0.1 and .2, each with its own loopback."""
    names = tuple(f"align-{os.getpid()}-{number}" for number in (1, 2))
    if shutil.which("ip") is None or os.geteuid() != 0:
        missing("network namespaces need root and iproute2")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "veth1", "netns", names[0], "type", "veth", "peer", "name", "veth2", "netns", names[1])
        for number, name in enumerate(names, start=1):
            _ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", f"veth{number}")
            _ip("-n", name, "link", "set", f"veth{number}", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names[0], names[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)
