"""The search service as its connections see it: any bytes, in one connection to a server of its own."""

import os
import re
import socket
from contextlib import ExitStack, suppress

_PORT = 4300
#: What the answers begin with; a refusal has a line of JSON.
_STATUS = re.compile(rb"^HTTP/1\.1 (\d{3}) ", re.MULTILINE)
_WAIT_S = 0.3
#: Sent after the bytes: it ends the connection, unless they want more.
_LAST = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{_PORT}\r\nConnection: close\r\n\r\n".encode()


def service(folder):
    """Sends the bytes to a service of a few pictures, and reads its answers until it closes or says no more."""
    from tests.support import colour_index

    colour_index.build(folder)
    made = {}  # process id -> what answers there: a fork has none of the service's threads

    def run(data):
        if os.getpid() not in made:
            made[os.getpid()] = _started(folder)
        made[os.getpid()](data)

    return run


def _started(folder):
    from tests.support import served
    from tests.support.mlflow_server import free_port

    stack = ExitStack()
    made = stack.enter_context(served.service(folder, served.served(folder)))
    claim, port = free_port()
    stack.enter_context(claim)
    stack.enter_context(served.serving(served.guarded(made, _PORT), port))

    def run(data, _=stack):
        said = _answered(port, data)
        for status in _STATUS.findall(said):
            assert int(status) != 500, said[:500]
        assert b"Traceback" not in said, said[:500]

    return run


def _answered(port, data):
    said = b""
    with socket.create_connection(("127.0.0.1", port)) as one, suppress(OSError):  # no more is said
        one.settimeout(_WAIT_S)
        one.sendall(data + _LAST)
        while block := one.recv(1 << 16):
            said += block
    return said
