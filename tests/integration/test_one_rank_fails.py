"""An error, a death or damage that one rank alone has: it ends the others, who wait, and is the run's error, once; also
while a resumed run's state is on its way from node 0 to the other ranks.
"""

import functools
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from align.config.infrastructure import ClusterConfig
from align.errors import AlignError, ConfigError, CorruptError, ServiceError, TrainingError
from align.services.job import Seat
from align.training.batches.reading import TarBytes
from align.training.loop import stop_requested
from align.training.ranks import messages
from align.training.ranks.process_group import Ranks, launch
from align.training.run import _train_rank, run
from align.training.run_plan import Infrastructure, TrainingPlan
from tests.support import ROOT, killing, training_data, wait_until, warm
from tests.support.mlflow_server import free_port
from tests.support.params import load_params, sets
from tests.support.training_data import RECIPE, plan, pretrain_config
from tests.support.training_project import write_project


def cluster(max_restarts: int) -> ClusterConfig:
    return ClusterConfig(
        num_nodes=1, node_rank=0, rendezvous=None, max_restarts=max_restarts, patience_s=60, stop_s=30, pools={}
    )


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


class _NoAnswer:
    """A store that is down."""

    num_connections = 1

    def uri(self, sha256: str, num_bytes: int) -> str:
        raise NotImplementedError

    def read(self, uri: str, offset: int, size: int) -> bytes:
        raise ServiceError(f"{uri}: no answer")


def _one_dies_while_another_waits(root: Path, ranks: Ranks) -> None:
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


def test_a_rank_that_waits_for_the_store_is_not_why_the_run_ends(tmp_path: Path) -> None:
    launch(functools.partial(_one_dies_while_another_waits, tmp_path), 2, 1, cluster(1))
    assert {path.name for path in tmp_path.iterdir()} == {"waits", "died", "again 0", "again 1"}


def test_an_error_of_all_is_returned_by_each(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    threads = set(threading.enumerate())
    with pytest.raises(ConfigError, match=r"^rank 0 says so$"):
        launch(functools.partial(_all_fail, tmp_path), 2, 1, cluster(1))
    assert set(threading.enumerate()) <= threads  # one that is in torch's store when Python ends aborts the process
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
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    four = Infrastructure(cluster=cluster(0), seat=Seat(1, 4, ranks=1))  # of a launcher
    with pytest.raises(ConfigError, match=r"num_processes 4: each trains on a GPU of its own, and this machine has 2"):
        run(plan(data, tmp_path / "checkpoints", pretrain_config(num_processes=None), infrastructure=four))


def test_another_number_of_ranks_than_the_launcher_s_is_refused(tmp_path: Path) -> None:
    data = training_data.write(tmp_path / "data")
    two = Infrastructure(cluster=cluster(0), seat=Seat(1, 2, ranks=1))
    with pytest.raises(ConfigError, match=r"num_processes 8: the launcher has started or named 2 ranks on this machin"):
        run(plan(data, tmp_path / "checkpoints", pretrain_config(num_processes=8), infrastructure=two))


STEPS = {"num_steps": 6, "checkpoint_every_steps": 2, "keep_checkpoints": 3, "num_processes": 2}


@pytest.mark.costs(4, "a run of two ranks, and one of two machines")
def test_a_node_without_a_checkpoint_folder_resumes_with_node_0(data: tuple[Path, Path], tmp_path: Path) -> None:
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
    roots = enumerate((first, second))
    nodes = [killing.Command([*alone, *sets(f"cluster.node_rank={number}")], root) for number, root in roots]
    for node in nodes:
        assert node.ended(240)
        node.require_success()
    claim.close()
    assert "is damaged, trying the previous one" in nodes[0].errors and "resuming from step 2" in nodes[0].errors
    assert killing.digests(first / "models/pretrained") == whole
    assert not (second / "checkpoints").exists() and not (second / "models").exists()


def _dies_while_it_receives(plan: TrainingPlan, marker: Path, ranks: Ranks) -> None:
    """The first time, rank 1 is killed after 20 pieces of the state."""
    messages.PIECE_BYTES = 4096
    share, broadcast, shared, pieces = Ranks.share, dist.broadcast, [0], [0]

    def counted(ranks: Ranks, value: Any, keep: Any) -> Any:
        shared[0] += 1
        return share(ranks, value, keep)

    def deadly(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        pieces[0] += shared[0] == 2  # the first are the initial weights
        if pieces[0] == 20 and ranks.rank == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return broadcast(tensor, *arguments, **options)

    Ranks.share, dist.broadcast = counted, deadly  # type: ignore[method-assign]
    _train_rank(plan, ranks)


@pytest.mark.costs(4, "two ranks start four times")
def test_a_rank_that_dies_while_it_receives_the_state_is_restarted(data: tuple[Path, Path], tmp_path: Path) -> None:
    cluster = load_params().section(ClusterConfig)
    some = plan(
        data, tmp_path / "checkpoints", pretrain_config(**STEPS), infrastructure=Infrastructure(cluster=cluster)
    )
    whole = run(some)
    folder = some.folder()
    (folder.directory / "step-00000006.pt").unlink()
    without = cluster.model_copy(update={"max_restarts": 0})
    # the other rank misses it, and may have ended before the launcher looks
    with pytest.raises(TrainingError, match=r"training process [01] died"):
        launch(functools.partial(_dies_while_it_receives, some, tmp_path / "once"), 2, 1, without)
    assert folder.steps() == [2, 4]  # as before
    launch(functools.partial(_dies_while_it_receives, some, tmp_path / "twice"), 2, 1, cluster)
    assert (tmp_path / "twice").exists() and whole is not None
    saved = folder.load_latest(torch.device("cpu"))
    assert saved is not None and saved["rows"] == whole.rows
    for name, weight in whole.model.state_dict().items():
        if "running" not in name and "num_batches" not in name:  # the export's are of the last validation
            assert torch.equal(saved["model"][name], weight), name


SIZE, COUNT = 4 << 20, 5  # tensors of a piece each


def _peak_growth(function: Any) -> int:
    """Bytes by which this process grew at most while the function ran."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    def read(name: str) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(name))

    before = read("VmRSS:")
    function()
    return read("VmHWM:") - before


def _receive(root: Path, ranks: Ranks) -> None:
    value = {"state": [torch.full((SIZE,), float(number)) for number in range(COUNT)]} if ranks.leads else None
    kept: list[Any] = []
    little = {"state": [torch.zeros(1)]} if ranks.leads else None
    ranks.share(little, lambda path, tensor: None)  # maps the pages of code, which a fork lacks at first
    grew = _peak_growth(lambda: kept.append(ranks.share(value, lambda path, tensor: (path, float(tensor[-1])))))
    broadcast = dist.broadcast

    def damaged(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        result = broadcast(tensor, *arguments, **options)
        if ranks.rank == 1 and tensor.numel() == SIZE * 4:
            tensor[7] ^= 1
        return result

    dist.broadcast = damaged
    said = ""
    try:
        ranks.share(value, lambda path, tensor: None)
    except TrainingError as error:
        said = str(error)
    torch.save((kept[0], grew, said), root / f"{ranks.rank}.pt")


def test_a_rank_holds_one_tensor_at_a_time_and_knows_of_damage(tmp_path: Path) -> None:
    launch(functools.partial(_receive, tmp_path), 3, 1)
    for rank in range(3):
        kept, grew, said = torch.load(tmp_path / f"{rank}.pt")
        assert kept == {"state": [(("state", number), float(number)) for number in range(COUNT)]}
        assert grew < 2 * SIZE * 4, f"{grew >> 20} MiB for {COUNT * SIZE * 4 >> 20}"
        assert said.startswith("rank 1 of 3 received other bytes than rank 0 sent; check the network")
