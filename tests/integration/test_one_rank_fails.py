"""An error, a death or damage that one rank alone has: it ends the others, who wait, and is the run's error, once."""

import functools
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from align.config.infrastructure import ClusterConfig
from align.errors import AlignError, ConfigError, CorruptError, ServiceError
from align.services.job import Seat
from align.training.batches.reading import TarBytes
from align.training.plan import Infrastructure
from align.training.ranks.process_group import launch
from align.training.train import run, stop_requested, train_rank
from tests.support import ROOT, killing, training_data, wait_until, warm
from tests.support.mlflow_server import free_port
from tests.support.params import sets
from tests.support.training_data import RECIPE, plan, pretrain_config
from tests.support.training_project import write_project


def cluster(max_restarts):
    return ClusterConfig(
        num_nodes=1, node_rank=0, rendezvous=None, max_restarts=max_restarts, patience_s=60, stop_s=30, pools={}
    )


def _one_fails(root, ranks):
    (root / f"{ranks.rank} {time.monotonic_ns()}").touch()
    if ranks.rank == 1:
        raise CorruptError("tar 00007: sample 3 does not decode")
    dist.all_reduce(torch.zeros(1))


def _all_fail(root, ranks):
    (root / f"{ranks.rank} {time.monotonic_ns()}").touch()
    time.sleep(ranks.rank)
    raise ConfigError(f"rank {ranks.rank} says so")


@pytest.mark.parametrize("max_restarts", [0, 2])
def test_the_others_end_and_nothing_is_tried_again(tmp_path, max_restarts):
    with pytest.raises(CorruptError, match=r"^tar 00007: sample 3 does not decode$"):
        launch(functools.partial(_one_fails, tmp_path), 2, 1, cluster(max_restarts))
    assert len(list(tmp_path.iterdir())) == 2


def node(root, number, port, max_restarts):
    """One of two machines, whose ranks are one each; prints the run's error."""
    values = {"num_nodes": 2, "node_rank": int(number), "rendezvous": f"127.0.0.1:{port}"}
    try:
        launch(functools.partial(_one_fails, Path(root)), 1, 1, cluster(int(max_restarts)).model_copy(update=values))
    except AlignError as error:
        print(f"{type(error).__name__}: {error}")


@pytest.mark.kill
@pytest.mark.parametrize("max_restarts", ["0", "1"])
def test_every_machine_ends_with_the_error_of_a_rank_elsewhere(tmp_path, max_restarts):
    """Soon: torch's launcher gives the others five minutes."""
    code = "import sys; from tests.integration.test_one_rank_fails import node; node(*sys.argv[1:])"
    claim, port = free_port()
    nodes = [
        subprocess.Popen(
            [warm.commands() / "python", "-c", code, tmp_path, number, str(port), max_restarts], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in ("0", "1")
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=200) for process in nodes]
    finally:
        claim.close()
        for process in nodes:
            process.kill()
    assert [out for out, _ in said] == ["CorruptError: tar 00007: sample 3 does not decode\n"] * 2, said
    assert len(list(tmp_path.iterdir())) == 2


class _NoAnswer:
    """A store that is down."""

    num_connections = 1

    def uri(self, sha256, num_bytes):
        raise NotImplementedError

    def read(self, uri, offset, size):
        raise ServiceError(f"{uri}: no answer")


def _one_dies_while_another_waits(root, ranks):
    """For a store; told to end, the other one reads no more."""
    waits, died = root / "waits", root / "died"
    if died.exists():
        (root / f"again {ranks.rank}").touch()
    elif ranks.rank == 0:
        with stop_requested() as stopped:
            tars = TarBytes(_NoAnswer(), patience_s=600)
            tars.stopped, tars.tell = stopped, lambda _: waits.touch()
            tars.read("s3://shards/a.tar", 0, 1)
    else:
        wait_until(waits.exists)
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_waits_for_the_store_is_not_why_the_run_ends(tmp_path):
    launch(functools.partial(_one_dies_while_another_waits, tmp_path), 2, 1, cluster(1))
    assert {path.name for path in tmp_path.iterdir()} == {"waits", "died", "again 0", "again 1"}


def test_an_error_of_all_is_returned_by_each(tmp_path, capfd):
    threads = set(threading.enumerate())
    with pytest.raises(ConfigError, match=r"^rank 0 says so$"):
        launch(functools.partial(_all_fail, tmp_path), 2, 1, cluster(1))
    assert set(threading.enumerate()) <= threads  # one that is in torch's store when Python ends aborts the process
    assert len(list(tmp_path.iterdir())) == 2
    assert "exitcode" not in capfd.readouterr().err  # the launcher saw no death


def test_a_sample_that_one_rank_cannot_read_is_named(tmp_path):
    """Ranks read different samples, and the default is to stop."""
    data = training_data.write(tmp_path / "data")
    tar = sorted((data[0] / "train").glob("*.tar"))[0]
    content = bytearray(tar.read_bytes())
    at = content.index(b"\xff\xd8\xff")  # the first picture's
    content[at : at + 64] = bytes(64)
    tar.write_bytes(content)
    with pytest.raises(CorruptError, match=tar.name):
        run(plan(data, tmp_path / "checkpoints", pretrain_config(num_processes=2)))


def test_machines_whose_ranks_do_not_divide_the_batch_are_refused(data, tmp_path):
    """Each has compared the batch with its own number of ranks only: 24 is a multiple of 2 x 1 x 4 and of 2 x 3 x 4."""
    uneven = plan(data, tmp_path / "checkpoints", pretrain_config(batch_size=24))
    with pytest.raises(ConfigError, match=r"batch_size 24 must be a multiple of 4 ranks on all machines x model"):
        launch(functools.partial(train_rank, uneven), 4, 1)


def test_ranks_that_a_machine_cannot_have_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"num_processes 2: each trains on a GPU of its own, and this machine has 1"):
        run(plan(data, tmp_path / "checkpoints", pretrain_config(num_processes=2)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    four = Infrastructure(cluster=cluster(0), seat=Seat(1, 4, ranks=1))  # of a launcher
    with pytest.raises(ConfigError, match=r"num_processes 4: each trains on a GPU of its own, and this machine has 2"):
        run(plan(data, tmp_path / "checkpoints", pretrain_config(num_processes=None), infrastructure=four))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    two = Infrastructure(cluster=cluster(0), seat=Seat(1, 2, ranks=1))
    with pytest.raises(ConfigError, match=r"num_processes 8: the launcher has started or named 2 ranks on this machin"):
        run(plan(data, tmp_path / "checkpoints", pretrain_config(num_processes=8), infrastructure=two))


STEPS = {"num_steps": 6, "checkpoint_every_steps": 2, "keep_checkpoints": 3, "num_processes": 2}


@pytest.mark.kill
def test_machines_resume_from_a_folder_that_both_see(data, tmp_path):
    """Whose newest checkpoint is truncated, so that both resume from the one before."""
    first, second = tmp_path / "node0", tmp_path / "node1"
    for root in (first, second):
        root.mkdir()
        write_project(root, data, RECIPE | STEPS)
    killing.run(["pretrain"], first)
    whole = killing.digests(first / "models/pretrained")
    shutil.rmtree(first / "models")
    *_, middle, last = sorted(first.glob("checkpoints/*/step-*.pt"))
    last.unlink()
    os.truncate(middle, middle.stat().st_size // 2)
    claim, port = free_port()
    alone = [
        "pretrain",
        *sets("pretrain.num_processes=1", "cluster.num_nodes=2", f"cluster.rendezvous=127.0.0.1:{port}"),
    ]

    def both(*values):
        """Node 1 with these values."""
        more = sets("cluster.node_rank=1", *values)
        nodes = [
            killing.Command([*alone, *sets("cluster.node_rank=0")], first),
            killing.Command([*alone, *more], second),
        ]
        assert all(node.ended(240) for node in nodes)
        return nodes

    for node in both():
        assert "rank 1 of 2 has no checkpoint to resume from, and others have one of step 2: let the" in node.errors
    nodes = both(f"paths.checkpoints={first / 'checkpoints'}")
    claim.close()
    for node in nodes:
        node.require_success()
        assert "is damaged, trying the previous one" in node.errors
    assert "resuming from step 2" in nodes[0].errors
    assert killing.digests(first / "models/pretrained") == whole
    assert not (second / "checkpoints").exists() and not (second / "models").exists()
