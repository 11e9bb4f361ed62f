"""Where training listens: on loopback with one machine, on the network interface of the rendezvous with several.

torch's own rendezvous listens on every interface, and anyone who reaches its store can read and write the keys by which
the ranks find each other.
"""

from __future__ import annotations

import os
import socket

import psutil
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch's own name
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from align.errors import TrainingError

#: Name of our rendezvous among torch's.
BACKEND = "align"
LOOPBACK = "127.0.0.1"


def listen(endpoint: str) -> socket.socket:
    """Opens the socket of the store at HOST:PORT, and on no other address; port 0 takes a free one.

    Raises:
        TrainingError: this machine has no such address, or the port is taken.
    """
    host, _, port = endpoint.rpartition(":")
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen()
    except OSError as error:
        listener.close()
        raise TrainingError(
            f"node 0 cannot listen at {endpoint}: {error.strerror or error}; cluster.rendezvous must be an address of "
            "node 0, and a free port"
        ) from None
    return listener


class _Rendezvous(StaticTCPRendezvous):
    """torch's static rendezvous, with a store that listens where it is told."""

    def __init__(self, params: RendezvousParameters) -> None:
        host, port = parse_rendezvous_endpoint(params.endpoint, -1)
        values = params.config
        super().__init__(host, port, values["rank"], params.max_nodes, params.run_id, values["timeout"])
        self._listener: socket.socket | None = values["listener"]

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        if self._listener is not None:
            self._store = TCPStore(
                self.master_addr, self.master_port, self.world_size, True, self.timeout,
                multi_tenant=True, master_listen_fd=self._listener.detach(),
            )  # fmt: skip
            self._listener = None
        return super().next_rendezvous()


def _rendezvous(params: RendezvousParameters) -> RendezvousHandler:
    return _Rendezvous(params)


def register_backend() -> None:
    """Makes the rendezvous known to torch under the name BACKEND."""
    rendezvous_handler_registry.register(BACKEND, _rendezvous)


def use_interface_to(endpoint: str) -> None:
    """Has gloo and NCCL listen on the interface through which this machine reaches HOST:PORT.

    Left to themselves, gloo takes the interface of the host name, and NCCL any. With several machines the variables
    GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME win, for a network of their own.
    """
    name = _interface_to(endpoint)
    if name is None:
        return
    for variable, value in (("GLOO_SOCKET_IFNAME", name), ("NCCL_SOCKET_IFNAME", f"={name}")):
        if variable not in os.environ or endpoint.startswith(f"{LOOPBACK}:"):
            os.environ[variable] = value


def _interface_to(endpoint: str) -> str | None:
    """The name of the interface; nothing is sent."""
    host, _, port = endpoint.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, int(port)))
        except OSError:
            return None
        address = probe.getsockname()[0]
    interfaces = psutil.net_if_addrs().items()
    own = [name for name, addresses in interfaces if any(one.address == address for one in addresses)]
    return own[0] if own else None
