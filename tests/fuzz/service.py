"""The search service as its connections see it: any bytes, in one connection."""

import asyncio
import os
import re
import socket
from contextlib import ExitStack

_PORT = 4300
#: What the answers begin with; a refusal has a line of JSON.
_STATUS = re.compile(rb"^HTTP/1\.1 (\d{3}) ", re.MULTILINE)
_WAIT_S = 0.3


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
    from uvicorn.server import ServerState

    from align.search.service.app import POLICY, make_app
    from align.search.service.limits import Limits
    from align.web import connections
    from align.web.guard import Guard
    from tests.support import served

    stack = ExitStack()
    made = stack.enter_context(served.service(folder, served.served(folder), max_requests_per_s=None))
    app = Guard(Limits(make_app(made), made.config, made.requests, made.buckets), _PORT, policy=POLICY)
    bounds = connections.Bounds(made.config.max_connections, None, _WAIT_S)
    config = connections.server(app, bounds, lifespan="off", log_config=None).config
    config.load()
    loop = asyncio.new_event_loop()

    async def answered(data):
        theirs, ours = socket.socketpair()
        ours.setblocking(False)
        state, said, protocol = ServerState(), b"", vars(config)["http_protocol_class"]
        transport, connection = await loop.connect_accepted_socket(lambda: protocol(config, state, {}, loop), theirs)
        try:
            async with asyncio.timeout(_WAIT_S):  # it may wait for the rest of a body
                await loop.sock_sendall(ours, data)
                await asyncio.sleep(0.001)
                while not connection.is_idle:
                    await asyncio.sleep(0.001)
            while block := ours.recv(1 << 16):
                said += block
        except (BlockingIOError, BrokenPipeError, ConnectionResetError, TimeoutError):  # no more is said
            pass
        finally:
            transport.abort()
            ours.close()
            await asyncio.gather(*state.tasks, return_exceptions=True)
        return said

    def run(data, _=stack):
        said = loop.run_until_complete(answered(data))
        for status in _STATUS.findall(said):
            assert int(status) != 500, said[:500]
        assert b"Traceback" not in said, said[:500]

    return run
