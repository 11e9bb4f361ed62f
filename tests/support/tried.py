"""`make try` in a checkout in which all is installed, with a service that only says so."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

from tests.support import ROOT

ASKED = "serve --ready data/sample/ready"
ALIGN = "#!/bin/sh\necho \"$*\"\ntrap 'echo ended; exit 0' INT TERM\nwhile :; do sleep 0.05; done\n"


@contextmanager
def trying(folder):
    """The process, whose session is its own, and the address that it says, once `align` was asked for the service."""
    checkout = folder / "a checkout"
    (checkout / ".venv/bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "infra", "data"):
        (checkout / name).symlink_to(ROOT / name)
    (checkout / ".venv/.installed").touch()
    (checkout / ".venv/bin/align").write_text(ALIGN)
    (checkout / ".venv/bin/align").chmod(0o755)
    command = ["make", "try", f"PYTHON={sys.executable}"]
    process = subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said = ""
        while not ((found := re.search(r"http://127\.0\.0\.1:\d+", said)) and f"\n{ASKED}\n" in said):
            line = process.stdout.readline()
            assert line, said
            said += line
        yield process, found[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
