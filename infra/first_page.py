"""`make try`: a page of search at once, while a command installs the rest and then serves.

Nothing has to be installed for it: the page computes in the browser, and Python's own server gives it the files. On
this machine only. The page stays until the command ends; Ctrl-C ends both.
"""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SITE = Path(__file__).resolve().parent.parent / "data/sample/site"
PORT = 7001
#: With those of Python, which a machine may have changed.
_TYPES = {
    **SimpleHTTPRequestHandler.extensions_map,
    ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm",
}


class _Files(SimpleHTTPRequestHandler):
    extensions_map = _TYPES

    def log_message(self, *args: Any) -> None:
        """Says nothing: the installation speaks meanwhile."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """A browser that goes away is no error."""


def _listening() -> ThreadingHTTPServer:
    handler = functools.partial(_Files, directory=str(SITE))
    try:
        return _Server(("127.0.0.1", PORT), handler)
    except OSError:  # somebody has the port
        return _Server(("127.0.0.1", 0), handler)


def main(command: list[str]) -> int:
    """Serves the page until the command has ended, and returns its exit code."""
    with _listening() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"search   http://127.0.0.1:{server.server_port}   at once, in your browser alone; stop with Ctrl-C")
        print(
            "The rest is installed meanwhile: then a service, at an address of its own, takes pictures of yours, too."
        )
        sys.stdout.flush()
        process = subprocess.Popen(command)
        signal.signal(signal.SIGINT, lambda *_: None)  # the terminal tells the command, too: wait for its end
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
