"""What one rank alone has (an error, a death, a hang), and what all have: how the run ends, or starts again."""

import functools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from align.config.infrastructure import ClusterConfig
from align.errors import AlignError, ConfigError, CorruptError, NonFiniteLossError, StoppedError, TrainingError
from align.services.job import Place
from align.training.plan import Infrastructure
from align.training.ranks.process_group import Ranks, launch
from align.training.train import run, stop_requested, train_rank
from tests.support import ROOT, killing, training_data, wait_until, warm
from tests.support.mlflow_server import free_port
from tests.support.params import load_params, sets
from tests.support.training_data import RECIPE, plan, pretrain_config
from tests.support.training_project import write_project


def cluster(**values):
    return load_params().section(ClusterConfig).model_copy(update={"max_restarts": 0, **values})


def _one_fails(root, ranks):
    (root / f"{ranks.rank} {time.monotonic_ns()}").touch()
    dist.all_reduce(torch.zeros(1))
    if ranks.rank == 1:
        raise CorruptError("tar 00007: sample 3 does not decode")
    dist.all_reduce(torch.zeros(1))


def _all_fail(root, ranks):
    (root / f"{ranks.rank} {time.monotonic_ns()}").touch()
    dist.all_reduce(torch.zeros(1))
    raise NonFiniteLossError("the loss is nan")


def test_an_error_of_one_rank_is_said_and_ends_the_others(tmp_path, capfd):
    with pytest.raises(TrainingError, match=r"^training process [01] ended with exit code 1; "):
        launch(functools.partial(_one_fails, tmp_path), 2, 1, cluster())
    said = capfd.readouterr().err
    assert "align: error: rank 1: tar 00007: sample 3 does not decode\n" in said and "Traceback" not in said
    assert len(list(tmp_path.iterdir())) == 2


def test_an_error_that_all_ranks_have_is_the_run_s_and_starts_nothing_again(tmp_path, capfd):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(NonFiniteLossError, match=r"^the loss is nan$"):
        launch(functools.partial(_all_fail, tmp_path), 2, 1, cluster(max_restarts=2))
    assert len(list(tmp_path.iterdir())) == 2 and "exitcode" not in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sample_that_one_rank_cannot_read_ends_both_within_30_s(tmp_path):
    data = training_data.write(tmp_path / "data")
    for tar in sorted((data[0] / "train").glob("*.tar")):
        content = bytearray(tar.read_bytes())
        at = content.index(b"\xff\xd8\xff")  # the first picture's
        content[at : at + 64] = bytes(64)
        tar.write_bytes(content)
    root = tmp_path / "project"
    root.mkdir()
    write_project(root, data, RECIPE | {"num_processes": 2})
    command = killing.Command(["pretrain", *sets("cluster.max_restarts=0")], root)
    wait_until(lambda: ": sample " in command.errors, 200)
    assert command.ended(30) and command.exit_code == 1
    lines = command.errors.splitlines()
    assert [line for line in lines if line.startswith("align: error: rank ") and ".tar: sample " in line], lines
    assert lines[-1].startswith("align: error: training process ") and "Traceback" not in command.errors


def node(root, number, port):
    """One of two machines, with a rank each; prints the run's error."""
    values = {"num_nodes": 2, "node_rank": int(number), "rendezvous": f"127.0.0.1:{port}"}
    try:
        launch(functools.partial(_one_fails, Path(root)), 1, 1, cluster(**values))
    except AlignError as error:
        print(f"{type(error).__name__}: {error}")


@pytest.mark.kill
def test_every_machine_ends_soon_when_a_rank_elsewhere_fails(tmp_path):
    code = "import sys; from tests.integration.test_one_rank_fails import node; node(*sys.argv[1:])"
    claim, port = free_port()
    commands = ([warm.commands() / "python", "-c", code, tmp_path, number, str(port)] for number in ("0", "1"))
    nodes = [
        subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for command in commands
    ]
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 200)
        said = [process.communicate(timeout=60) for process in nodes]
    finally:
        claim.close()
        for process in nodes:
            process.kill()
    assert all(out.startswith("TrainingError: training process ") for out, _ in said), said
    assert "rank 0 ends, as another one has ended or hangs: " in said[0][1]
    assert "align: error: rank 1: tar 00007" in said[1][1]


def test_a_rank_that_dies_is_started_again_with_the_others_and_resumes(data, tmp_path, capfd):
    recipe = pretrain_config(num_processes=2, checkpoint_every_steps=2)
    whole = run(plan(data, tmp_path / "whole", recipe))
    dies = killing.KillOnce(tmp_path / "died", 6)
    again = Infrastructure(cluster=cluster(max_restarts=1))
    training_data.assert_same(run(plan(data, tmp_path / "killed", recipe, log=dies, infrastructure=again)), whole)
    assert (tmp_path / "died").exists() and "resuming from step 4" in capfd.readouterr().err


def _dies(root, ranks):
    (root / f"{ranks.rank} {os.getpid()}").touch()
    dist.all_reduce(torch.zeros(1))
    os._exit(7) if ranks.rank == 1 else dist.all_reduce(torch.zeros(1))


def test_a_rank_that_dies_again_and_again_ends_the_run(tmp_path):
    with pytest.raises(TrainingError, match=r"^training process [01] ended with exit code [17]; "):
        launch(functools.partial(_dies, tmp_path), 2, 1, cluster(max_restarts=1))
    assert len([*tmp_path.glob("1 *")]) == 2


def _hangs(root, ranks):
    ranks.barrier()
    if ranks.rank == 1:
        time.sleep(600)
    began = time.monotonic()
    try:
        ranks.any(False)
    finally:
        (root / "waited").write_text(f"{time.monotonic() - began}")


def test_a_rank_that_hangs_ends_the_run_after_patience_s(tmp_path):
    with pytest.raises(TrainingError, match="training process 0 ended"):
        launch(functools.partial(_hangs, tmp_path), 2, 1, cluster(patience_s=3))
    assert 2.9 < float((tmp_path / "waited").read_text()) < 9


def _ends_slowly(root, seconds, ranks):
    """Rank 0 writes for some seconds after SIGTERM."""
    with stop_requested() as stopped:
        (root / f"{ranks.rank}").touch()
        while not ranks.any(stopped()):
            time.sleep(0.05)
        time.sleep(seconds if ranks.leads else 0.0)
        (root / f"{ranks.rank} saved").touch()
    raise StoppedError("stopped")


def told_to_end(root, seconds, stop_s):
    """A machine of two ranks."""
    try:
        launch(functools.partial(_ends_slowly, Path(root), float(seconds)), 2, 1, cluster(stop_s=int(stop_s)))
    except StoppedError as error:
        print(error)


@pytest.mark.kill
@pytest.mark.parametrize(("stop_s", "seconds", "saves"), [(1, 6, False), (60, 33, True)])
def test_ranks_have_the_time_of_params_yaml_to_end(tmp_path, stop_s, seconds, saves):
    """torch's own limit is 30 s."""
    code = "import sys; from tests.integration.test_one_rank_fails import told_to_end; told_to_end(*sys.argv[1:])"
    command = [warm.commands() / "python", "-c", code, tmp_path, str(seconds), str(stop_s)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: len([*tmp_path.iterdir()]) == 2)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        said, errors = process.communicate(timeout=100)
    assert "stopped by SIGTERM" in said, errors
    assert (tmp_path / "1 saved").exists() and (tmp_path / "0 saved").exists() == saves
    assert time.monotonic() - began < seconds + 20


def test_ranks_that_cannot_share_the_work_are_refused(data, tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match=r"cannot listen at 192\.0\.2\.77:29555: .* cluster\.rendezvous"):
        launch(print, 1, 1, cluster(num_nodes=2, rendezvous="192.0.2.77:29555"))
    uneven = plan(data, tmp_path, pretrain_config(batch_size=24))  # each machine knows its own number of ranks only
    with pytest.raises(ConfigError, match=r"batch_size 24 must be a multiple of 4 ranks on all machines x model"):
        train_rank(uneven, Ranks(0, 4, torch.device("cpu")))
    recipe, gpus = pretrain_config(num_processes=2), 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=r"num_processes 2: each trains on a GPU of its own, and this machine has 1"):
        run(plan(data, tmp_path, recipe))
    gpus = 2
    four = Infrastructure(place=Place(1, 4, 1, 4, "127.0.0.1", 29500))
    with pytest.raises(ConfigError, match=r"num_processes 4: each trains on a GPU of its own, and this machine has 2"):
        run(plan(data, tmp_path, pretrain_config(batch_size=16, num_processes=None), infrastructure=four))
    with pytest.raises(ConfigError, match=r"num_processes 2: the launcher has started 4 ranks on this machine"):
        run(plan(data, tmp_path, recipe, infrastructure=four))


def test_nccl_is_told_its_gpu_and_its_patience(monkeypatch, capsys):
    """The second process of a machine with three GPUs."""
    given = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: given.update(options, backend=backend))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for local_rank in (1, 0):
        place = Place(1, 2, local_rank, 2, "127.0.0.1", store.port)
        launch(lambda ranks: given.setdefault(ranks.device, ranks), 1, 1, cluster(patience_s=50), place=place)
    assert given["backend"] == "cpu:gloo,cuda:nccl" and given["timeout"].total_seconds() == 50
    assert {torch.device("cuda", 0), torch.device("cuda", 1)} <= given.keys()
    assert given[given["device_id"]] == Ranks(1, 2, torch.device("cuda", 0))
    assert capsys.readouterr().err.count("warning: 2 of 3 GPUs of this machine train") == 1


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
    alone = sets("pretrain.num_processes=1", "cluster.num_nodes=2", f"cluster.rendezvous=127.0.0.1:{port}")

    def both(*values):
        """Node 1 with these values."""
        roots = ((first, sets("cluster.node_rank=0")), (second, sets("cluster.node_rank=1", *values)))
        nodes = [killing.Command(["pretrain", *alone, *more], root) for root, more in roots]
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
