"""`make try`: a page before anything is installed, and one Ctrl-C for it and for the command beside it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from infra import first_page
from tests.support import ROOT

#: Says that it ends, and takes a moment, as a service does.
COMMAND = "trap 'sleep 0.3; echo ended; exit 7' INT TERM; while :; do sleep 0.05; done"


@pytest.fixture(name="started")
def _started(tmp_path):
    """The program with Python's own library alone, in a session of its own, and the address that it says."""
    command = [sys.executable, "-I", "-S", str(ROOT / "infra/first_page.py"), "sh", "-c", COMMAND]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process, re.findall(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_it_gives_the_files_with_the_types_that_browsers_ask_for(started):
    types = {
        "": "text/html", "source.js": "text/javascript", "runtime/ort.wasm.min.mjs": "text/javascript",
        "runtime/ort-wasm-simd-threaded.wasm": "application/wasm",
    }  # fmt: skip
    for name, kind in types.items():
        with urllib.request.urlopen(f"{started[1]}/{name}", timeout=10) as answer:
            assert (
                answer.headers["content-type"] == kind
                and answer.read() == (first_page.SITE / (name or "index.html")).read_bytes()
            )


@pytest.mark.parametrize("whole", [True, False])
def test_it_ends_with_its_command_and_with_its_exit_code(started, whole):
    process, _ = started
    time.sleep(0.3)
    if whole:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    said, _ = process.communicate(timeout=10)
    assert said.endswith("ended\n") and process.returncode == 7


def test_where_its_port_is_taken_it_takes_another_one():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", first_page.PORT))
        other.listen()
        with first_page._listening() as server:
            assert server.server_port != first_page.PORT
