"""A command that a test calls: asks the server for a fork, and is as it is until it ends.

    client.py SOCKET NAMESPACES MODULE ARGUMENTS

Imports little: it starts in a hundredth of a second.
"""

import _socket
import os
import signal
import struct
import sys

#: What the caller may send to the command.
_RELAYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def main() -> None:
    """Exits as the command exits, or dies by the signal that it died by."""
    path, place, module, *arguments = sys.argv[1:]
    if "".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net")) != place:  # noqa: PTH115 - as below
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.connect(path)
    environment = [name + b"=" + value for name, value in os.environb.items()]
    words = [module.encode(), *map(os.fsencode, arguments)]
    folder = os.getcwdb()  # noqa: PTH109 - pathlib costs more than all of this
    fields = [str(len(words)).encode(), *words, folder, *environment]
    body = b"\0".join(fields)
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("3i", 0, 1, 2))
    connection.sendmsg([struct.pack("!I", len(body))], [rights])
    connection.sendall(body)
    for number in _RELAYED:
        signal.signal(number, lambda number, _: connection.send(bytes([number])))
    answer = b""
    while len(answer) < 4:
        part = connection.recv(4 - len(answer))
        if not part:
            os._exit(125)  # the server was killed
        answer += part
    (status,) = struct.unpack("!i", answer)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


main()
