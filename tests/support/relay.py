"""A TCP relay in front of a real server: a network that can be cut, lose answers, or hang."""

import socket
import threading
from contextlib import suppress
from typing import Literal
from urllib.parse import urlsplit

State = Literal["open", "cut", "loses answers", "hangs"]


class Relay:
    """Passes connections on to a server while it is `open`.

    `cut` refuses connections and breaks existing ones; `loses answers` passes requests to the server, and breaks the
    connection when the answer arrives; `hangs` accepts requests and does nothing.
    """

    def __init__(self, uri):
        parts = urlsplit(uri)
        assert parts.hostname and parts.port
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._state = "open"
        self._sockets = []
        self._hung = []
        self.num_lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, state):
        """Changes the state, and breaks all open connections."""
        self._state = state
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for each in self._hung:
            each.close()
        self._sockets.clear()
        self._hung.clear()

    def _accept(self):
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                if self._state == "cut":
                    client.close()
                    continue
                if self._state == "hangs":
                    self._hung.append(client)
                    continue
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                for one, other, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=(one, other, answers), daemon=True).start()

    def _pass_on(self, one, other, answers):
        with suppress(OSError):
            while data := one.recv(1 << 16):
                if answers and self._state == "loses answers":
                    self.num_lost += 1
                    break
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        one.close()  # the thread that reads the other one closes it

    def __enter__(self):
        return self

    def __exit__(self, _kind, _error, _where):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.set("cut")
