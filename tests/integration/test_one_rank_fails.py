"""An error that one rank alone has: it ends the others, who wait for a message, and is the run's error, once."""

import functools
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from align.config.infrastructure import ClusterConfig
from align.errors import AlignError, ConfigError, CorruptError
from align.training.ranks.process_group import Ranks, launch
from align.training.run import _train_rank, run
from tests.support import ROOT, training_data, warm
from tests.support.mlflow_server import free_port
from tests.support.training_data import plan, pretrain_config


def cluster(max_restarts: int) -> ClusterConfig:
    return ClusterConfig(num_nodes=1, node_rank=0, rendezvous=None, max_restarts=max_restarts, patience_s=60, pools={})


def _one_fails(root: Path, ranks: Ranks) -> None:
    (root / f"{ranks.rank} {time.monotonic_ns()}").touch()
    if ranks.rank == 1:
        raise CorruptError("tar 00007: sample 3 does not decode")
    dist.all_reduce(torch.zeros(1))


def _all_fail(root: Path, ranks: Ranks) -> None:
    (root / f"{ranks.rank} {time.monotonic_ns()}").touch()
    time.sleep(ranks.rank)
    raise ConfigError(f"rank {ranks.rank} says so")


@pytest.mark.parametrize("max_restarts", [0, 2])
def test_the_others_end_and_nothing_is_tried_again(tmp_path: Path, max_restarts: int) -> None:
    with pytest.raises(CorruptError, match=r"^tar 00007: sample 3 does not decode$"):
        launch(functools.partial(_one_fails, tmp_path), 2, 1, cluster(max_restarts))
    assert len(list(tmp_path.iterdir())) == 2


def node(root: str, number: str, port: str, max_restarts: str) -> None:
    """One of two machines, whose ranks are one each; prints the run's error."""
    values = {"num_nodes": 2, "node_rank": int(number), "rendezvous": f"127.0.0.1:{port}"}
    try:
        launch(functools.partial(_one_fails, Path(root)), 1, 1, cluster(int(max_restarts)).model_copy(update=values))
    except AlignError as error:
        print(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("max_restarts", ["0", pytest.param("1", marks=pytest.mark.full)])
def test_every_machine_ends_with_the_error_of_a_rank_elsewhere(tmp_path: Path, max_restarts: str) -> None:
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


def test_an_error_of_all_is_returned_by_each(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"^rank 0 says so$"):
        launch(functools.partial(_all_fail, tmp_path), 2, 1, cluster(1))
    assert len(list(tmp_path.iterdir())) == 2
    assert "exitcode" not in capfd.readouterr().err  # the launcher saw no death


def test_a_sample_that_one_rank_cannot_read_is_named(tmp_path: Path) -> None:
    """Ranks read different samples, and the default is to stop."""
    data = training_data.write(tmp_path / "data")
    tar = sorted((data[0] / "train").glob("*.tar"))[0]
    content = bytearray(tar.read_bytes())
    at = content.index(b"\xff\xd8\xff")  # the first picture's
    content[at : at + 64] = bytes(64)
    tar.write_bytes(content)
    with pytest.raises(CorruptError, match=tar.name):
        run(plan(data, tmp_path / "checkpoints", pretrain_config(num_processes=2)))


def test_machines_whose_ranks_do_not_divide_the_batch_are_refused(tmp_path: Path) -> None:
    """Each has compared the batch with its own number of ranks only: 24 is a multiple of 2 x 1 x 4 and of 2 x 3 x 4."""
    data = training_data.write(tmp_path / "data")
    uneven = plan(data, tmp_path / "checkpoints", pretrain_config(batch_size=24))
    with pytest.raises(ConfigError, match=r"batch_size 24 must be a multiple of 4 ranks on all machines x model"):
        launch(functools.partial(_train_rank, uneven), 4, 1)


def test_more_ranks_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = training_data.write(tmp_path / "data")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"num_processes 2: each trains on a GPU of its own, and this machine has 1"):
        run(plan(data, tmp_path / "checkpoints", pretrain_config(num_processes=2)))
