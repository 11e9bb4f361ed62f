"""A command that a test calls: asks the server for a fork, and is as it is until it ends.

    client.py SOCKET NAMESPACES CHILDREN -m MODULE ARGUMENTS
    client.py SOCKET NAMESPACES CHILDREN -c CODE ARGUMENTS

CHILDREN: `warm`, where the processes that the command starts are forks, too, or `started`.

Imports little: it starts in a hundredth of a second.
"""

import _socket
import os
import signal
import struct
import sys

#: What the caller may send to the command. SIGUSR2 means SIGKILL to the command, whose end this process then tells; its
#: own end by SIGKILL would be told before the command's.
_RELAYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main():
    """Exits as the command exits, or dies by the signal that it died by."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _RELAYED)
    path, place, children, *arguments = sys.argv[1:]
    if "".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net")) != place or (  # noqa: PTH115 - as below
        arguments[0] == "-m" and _has_other_code()
    ):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _RELAYED)
        os.execv(sys.executable, [sys.executable, *arguments])
    files = [number for name in os.listdir("/proc/self/fd") if (number := int(name)) < 3 or _inherited(number)]  # noqa: PTH208
    words = [children, *arguments]
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.connect(path)
    environment = [name + b"=" + value for name, value in os.environb.items()]
    folder = os.getcwdb()  # noqa: PTH109 - pathlib costs more than all of this
    numbers = ",".join(map(str, files)).encode()
    fields = [numbers, str(len(words)).encode(), *map(os.fsencode, words), folder, *environment]
    body = b"\0".join(fields)
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(files)}i", *files))
    connection.sendmsg([struct.pack("!I", len(body))], [rights])
    connection.sendall(body)
    for number in _RELAYED:
        signal.signal(number, lambda number, _: connection.send(bytes([number])))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _RELAYED)
    for number in files[3:]:
        os.close(number)  # or who waits for the end of a pipe would wait for this process, too
    answer = b""
    while len(answer) < 4:
        part = connection.recv(4 - len(answer))
        if not part:
            os._exit(125)  # the server was killed
        answer += part
    (status,) = struct.unpack("!i", answer)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def _has_other_code():
    """Whether this program would import another copy of the package than the server has."""
    own = os.path.abspath(__file__).rpartition("/tests/")[0]  # noqa: PTH100
    for folder in os.environ.get("PYTHONPATH", "").split(":"):
        if os.path.exists(f"{folder}/align/cli.py"):  # noqa: PTH110
            return os.path.realpath(folder) != os.path.realpath(own)
    return False


def _inherited(number):
    try:
        return os.get_inheritable(number)
    except OSError:  # the listing's own
        return False


main()
