"""Where the processes of a training job listen, and that a stranger who writes there has nothing unpickled."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT, killing, training_data, warm
from tests.support.namespaces import namespaces
from tests.support.training_data import RECIPE
from tests.support.training_project import write_project

_LONG = RECIPE | {"num_steps": 100_000, "checkpoint_every_steps": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return training_data.write(tmp_path_factory.mktemp("data"))


@contextmanager
def training(command: list[str], directory: Path) -> Iterator[psutil.Process]:
    log = directory.with_name(f"{directory.name}.stderr")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("wb") as errors, subprocess.Popen(command, cwd=directory, stderr=errors, env=env) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()


def wait_for_training(root: Path, process: psutil.Process) -> None:
    deadline = time.monotonic() + 240
    while not list(root.glob("checkpoints/*/step-*.pt")):
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        assert alive and time.monotonic() < deadline, root.with_name(f"{root.name}.stderr").read_text()
        time.sleep(0.1)


def listening(processes: list[psutil.Process]) -> set[str]:
    """The addresses at which they listen."""
    found = set()
    for one in processes:
        found |= {each.laddr.ip for each in one.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    return found


def listening_in_namespace(process: psutil.Process) -> set[str]:
    """The addresses at which anything listens in the network namespace of a process; psutil sees its own only."""
    net = Path(f"/proc/{process.pid}/net")
    rows = [line.split() for name in ("tcp", "tcp6") for line in (net / name).read_text().splitlines()[1:]]
    addresses = [bytes.fromhex(row[1].partition(":")[0]) for row in rows if row[3] == "0A"]
    return {socket.inet_ntoa(one[::-1]) if len(one) == 4 else one.hex() for one in addresses}


def test_one_machine_listens_on_loopback_only(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")  # for several machines; on one there is nothing to reach
    root = tmp_path / "project"
    root.mkdir()
    write_project(root, data, _LONG | {"num_processes": 2})
    with training([str(warm.commands() / "align"), "pretrain"], root) as process:
        wait_for_training(root, process)
        own = [each for each in warm.processes() if each.is_running() and each.cwd() == str(root)]
        assert len(own) >= 1 + 2 * 2  # the launcher, and of each rank the process that was started and its fork
        assert listening(own) == {"127.0.0.1"}


@pytest.mark.full
def test_several_machines_listen_on_the_interface_of_the_rendezvous_only(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    with namespaces() as spaces:
        for space, address in zip(spaces, ("192.0.2.1", "192.0.2.2"), strict=True):  # a second interface, unused
            subprocess.run(
                ["ip", "-n", space, "link", "add", "other", "type", "veth", "peer", "name", "end"], check=True
            )
            subprocess.run(["ip", "-n", space, "address", "add", f"{address}/24", "dev", "other"], check=True)
            subprocess.run(["ip", "-n", space, "link", "set", "other", "up"], check=True)
        commands = []
        for number, space in enumerate(spaces):
            root = tmp_path / f"node{number}"
            root.mkdir()
            command = write_project(root, data, _LONG | {"num_processes": 1})
            for override in (
                "cluster.num_nodes=2",
                f"cluster.node_rank={number}",
                "cluster.rendezvous=10.77.0.1:29555",
                "cluster.patience_s=60",
            ):
                command += ["--set", override]
            commands.append(["ip", "netns", "exec", space, *command])
        with training(commands[1], tmp_path / "node1") as second, training(commands[0], tmp_path / "node0") as first:
            wait_for_training(tmp_path / "node0", first)
            assert listening_in_namespace(first) == {"10.77.0.1"}
            assert listening_in_namespace(second) == {"10.77.0.2"}


def test_a_rendezvous_that_is_not_an_address_of_node_0_is_refused(data: tuple[Path, Path], tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    write_project(root, data, _LONG | {"num_processes": 1})
    command = ["pretrain", "--set", "cluster.num_nodes=2", "--set", "cluster.rendezvous=192.0.2.77:29555"]
    started = killing.Command(command, root)
    assert started.ended(240) and started.exit_code == 1
    assert "cluster.rendezvous must be an address of node 0" in started.errors.splitlines()[-1]
