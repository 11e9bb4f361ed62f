"""Training in processes: two equal one, signals, locks, errors that cross the border, and where they listen."""

import os
import re
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch

from align.config.infrastructure import StoreConfig
from align.errors import ServiceError, StoppedError
from align.services.s3.store import CheckpointMirror, checkpoint_mirror
from align.training.plan import Infrastructure
from align.training.ranks.process_group import default_processes
from align.training.train import run
from tests.support import ROOT, killing, training_data, wait_until, warm
from tests.support.namespaces import namespaces
from tests.support.params import load_params, sets
from tests.support.s3_server import serve
from tests.support.training_data import RECIPE, TermAt, plan, pretrain_config
from tests.support.training_project import write_project

_LONG = {"num_steps": 100_000, "checkpoint_every_steps": 5}


@contextmanager
def training(command, directory):
    """A command, and what reads its stderr."""
    log = directory.with_name(f"{directory.name}.log")
    with log.open("wb") as errors:
        process = psutil.Popen(command, cwd=directory, stderr=errors, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        yield process, log.read_text
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()


def has_begun(root, process, said):
    wait_until(
        lambda: [*root.glob("checkpoints/*/step-*.pt")], 240, says=said, alive=lambda: killing.lives(process.pid)
    )


def require_close(ours, theirs):
    """The losses and the weights, but those without an influence on the loss, which follow rounding."""
    losses = [[row["train/loss"] for row in trained.rows] for trained in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, weight in theirs.model.state_dict().items():
        if weight.ndim > 1:  # a shift that batch-norm takes out has none
            torch.testing.assert_close(ours.model.state_dict()[name], weight, atol=1e-3, rtol=1e-2, msg=name)


def test_two_processes_equal_one_and_four_resume_what_two_began(data, tmp_path):
    # a small rate: rounding grows with it
    short = {"num_steps": 4, "warmup_steps": 1, "batch_size": 16, "learning_rate": 0.005}
    one, two = (run(plan(data, tmp_path / str(n), pretrain_config(**short, num_processes=n))) for n in (1, 2))
    require_close(two, one)
    begun = tmp_path / "begun"
    with pytest.raises(StoppedError):
        run(plan(data, begun, pretrain_config(**short, num_processes=2), log=TermAt(2)))
    require_close(run(plan(data, begun, pretrain_config(**short, num_processes=4))), one)
    for mine, theirs in zip(one.rows, two.rows, strict=True):
        assert mine["train/temperature"] == pytest.approx(theirs["train/temperature"], rel=1e-4)
        assert mine.keys() == theirs.keys()
        if "val/effective_rank" in mine:  # each of two ranks embeds its share of the validation split
            assert mine["val/effective_rank"] == pytest.approx(theirs["val/effective_rank"], rel=1e-3)
    counts = [
        {int(value) for name, value in trained.model.state_dict().items() if name.endswith("num_batches_tracked")}
        for trained in (one, two)
    ]
    assert counts[0] == counts[1] and len(counts[0]) == 1  # every group of the statistics' pictures once


def test_ranks_by_default_are_as_many_as_the_batch_divides_into(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [default_processes(batch, 16, 12) for batch in (16, 32, 128, 160, 256, 16 * 13)] == [1, 2, 8, 10, 8, 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert default_processes(128, 16, 12) == 2
    assert capsys.readouterr().err == ""
    assert default_processes(16 * 3, 16, 12) == 1
    assert "warning: 1 of 2 GPUs train, the others are idle" in capsys.readouterr().err


@pytest.mark.kill
@pytest.mark.parametrize("num_processes", [1, 2])
def test_sigterm_saves_and_a_second_trainer_is_refused(data, tmp_path, num_processes):
    recipe = RECIPE | _LONG | {"num_processes": num_processes}
    command = write_project(tmp_path, data, recipe)
    if num_processes == 2:
        command = [str(warm.commands() / "align"), "pretrain"]
    with training(command, tmp_path) as (first, said):
        has_begun(tmp_path, first, said)
        second = killing.Command(["pretrain"], tmp_path)
        assert second.ended(240) and second.exit_code == 1
        assert "another process trains this run" in second.errors
        first.terminate()
        assert first.wait(200) == 128 + signal.SIGTERM, said()
    assert "align: error: " in said() and "SIGTERM" in said().splitlines()[-1]
    (folder,) = (tmp_path / "checkpoints").iterdir()
    steps = sorted(int(path.stem[5:]) for path in folder.glob("step-*.pt"))
    again = killing.Command(["pretrain"], tmp_path)
    try:
        while not (resumes := re.findall("^.*resuming from.*\n", again.errors, re.MULTILINE)):
            assert not again.ended(0.1), "the second run ended"
    finally:
        again.kill()
    assert f"step {steps[-1]:,} " in resumes[0]


@pytest.mark.parametrize("num_moments", [2, pytest.param(10, marks=pytest.mark.kill)])
def test_killed_and_resumed_equals_a_whole_run(data, tmp_path, num_moments):
    """`kill -9` at seeded moments, two ranks: the same weights and curves to the byte."""
    steps = {"num_steps": 150, "checkpoint_every_steps": 10, "validate_every_steps": 50}
    start = killing.Started
    if num_moments == 2:  # less of everything: forks, which do not spend most of a short run on imports
        steps, start = {"num_steps": 20, "checkpoint_every_steps": 2, "validate_every_steps": 10}, killing.Command
    recipe = RECIPE | steps | {"num_processes": 2}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        write_project(tmp_path / name, data, recipe)
    whole_s = killing.run(["pretrain"], tmp_path / "whole", start)

    def remove_results():
        for folder in ("checkpoints", "models", "reports/pretrain"):
            shutil.rmtree(tmp_path / "killed" / folder)

    killing.kill_and_resume(
        ["pretrain"],
        tmp_path / "killed",
        seed=3 if num_moments == 2 else 0,  # 3: at 30 and at 56 % of a whole run, so that neither ends before
        num_moments=num_moments,
        whole_s=whole_s,
        reset=remove_results,
        start=start,
    )
    for folder in ("models/pretrained", "reports/pretrain"):
        assert killing.digests(tmp_path / "killed" / folder) == killing.digests(tmp_path / "whole" / folder)
    wait_until(lambda: not [*working_in(tmp_path)])  # no rank outlives what has started it


def working_in(folder):
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd().startswith(str(folder)):
                yield process


@pytest.mark.kill
def test_a_machine_without_checkpoints_resumes_from_the_object_store(data, tmp_path, monkeypatch):
    with serve(tmp_path / "server") as server:
        server.use(monkeypatch)
        server.make_bucket("runs")
        store = load_params().section(StoreConfig)
        store = store.model_copy(update={"checkpoints": "s3://runs/of/us", "num_retries": 0, "timeout_s": 5.0})
        recipe = pretrain_config(checkpoint_every_steps=2)

        def at(name, log=None):
            mirrored = Infrastructure(mirror=checkpoint_mirror(store))
            return plan(data, tmp_path / name, recipe, log=log, infrastructure=mirrored)

        whole = run(plan(data, tmp_path / "whole", recipe))
        with pytest.raises(StoppedError, match="after step 4 of 8"):
            run(at("here", TermAt(4)))
        run_name = at("here").folder().directory.name
        assert CheckpointMirror(store, "s3://runs/of/us").names(run_name) == ["step-00000002.pt", "step-00000004.pt"]
        training_data.assert_same(run(at("there")), whole)
        assert CheckpointMirror(store, "s3://runs/of/us").names(run_name) == ["step-00000006.pt", "step-00000008.pt"]
        other = recipe.model_copy(update={"seed": 1})

        def without(name, location):
            mirrored = Infrastructure(mirror=_GoneLater(store, location))
            return plan(data, tmp_path / name, other, infrastructure=mirrored)

        # once training has begun, it continues without the store
        assert run(without("refused", "s3://deleted/of/us")).rows[-1]["step"] == 8
        server.kill()
        with pytest.raises(ServiceError):
            run(at("nowhere"))
        assert run(without("away", "s3://runs/of/us")).rows[-1]["step"] == 8


class _GoneLater(CheckpointMirror):
    """A server that answers at the start, with no files."""

    def names(self, run):
        return []


def node(root, number, space, data, **recipe):
    """The command of one of two machines, in its network namespace; it runs in a folder of its own."""
    root.mkdir()
    command = write_project(root, data, RECIPE | {"num_processes": 1} | recipe)
    cluster = ("num_nodes=2", f"node_rank={number}", "rendezvous=10.77.0.1:29555", "patience_s=60")
    return ["ip", "netns", "exec", space, *command, *sets(*(f"cluster.{value}" for value in cluster))]


def listening(processes):
    """The addresses at which they listen."""
    found = set()
    for one in processes:
        found |= {each.laddr.ip for each in one.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    return found


def listening_in_namespace(process):
    """The addresses at which anything listens in the network namespace of a process; psutil sees its own only."""
    net = Path(f"/proc/{process.pid}/net")
    rows = [line.split() for name in ("tcp", "tcp6") for line in (net / name).read_text().splitlines()[1:]]
    addresses = [bytes.fromhex(row[1].partition(":")[0]) for row in rows if row[3] == "0A"]
    return {socket.inet_ntoa(one[::-1]) if len(one) == 4 else one.hex() for one in addresses}


def test_one_machine_listens_on_loopback_only(data, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")  # for several machines; on one there is nothing to reach
    root = tmp_path / "project"
    root.mkdir()
    write_project(root, data, RECIPE | _LONG | {"num_processes": 2})
    with training([str(warm.commands() / "align"), "pretrain"], root) as (process, said):
        has_begun(root, process, said)
        started = {process, *process.children(recursive=True), *warm.processes()}  # forks are no children
        found = [listening([each]) for each in started if each.is_running() and each.cwd() == str(root)]
        assert set().union(*found) == {"127.0.0.1"} and sum(map(len, found)) >= 2  # each rank listens to the other


@pytest.mark.cluster
def test_several_machines_listen_on_the_interface_of_the_rendezvous_only(data, tmp_path):
    with namespaces() as spaces:
        for space, address in zip(spaces, ("192.0.2.1", "192.0.2.2"), strict=True):  # a second interface, unused
            subprocess.run(
                ["ip", "-n", space, "link", "add", "other", "type", "veth", "peer", "name", "end"], check=True
            )
            subprocess.run(["ip", "-n", space, "address", "add", f"{address}/24", "dev", "other"], check=True)
            subprocess.run(["ip", "-n", space, "link", "set", "other", "up"], check=True)
        first, second = tmp_path / "node0", tmp_path / "node1"
        commands = [node(root, at, spaces[at], data, **_LONG) for at, root in enumerate((first, second))]
        with training(commands[1], second) as (follows, _), training(commands[0], first) as (leads, said):
            has_begun(first, leads, said)
            assert listening_in_namespace(leads) == {"10.77.0.1"}
            assert listening_in_namespace(follows) == {"10.77.0.2"}
