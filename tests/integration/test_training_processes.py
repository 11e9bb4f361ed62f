"""Training in processes: how a run starts, listens and stops, and what an error, a death or a hang of one rank does."""

import functools
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from align.config.infrastructure import ClusterConfig
from align.errors import ConfigError, NonFiniteLossError, StoppedError, TrainingError
from align.services.job import Place
from align.training.plan import Infrastructure
from align.training.ranks.process_group import Ranks, default_processes, launch
from align.training.train import run, stop_requested, train_rank
from tests.support import ROOT, killing, training_data, wait_until, warm
from tests.support.mlflow_server import free_port
from tests.support.params import load_params, sets
from tests.support.small_disks import with_disk
from tests.support.training_data import RECIPE, plan, pretrain_config
from tests.support.training_project import write_project

#: Calls a function of this file.
CALL = "import sys; from tests.integration import test_training_processes as t; getattr(t, sys.argv[1])(*sys.argv[2:])"
#: Of a run whose disk is full.
FULL = {"checkpoint_every_steps": 2, "log_every_steps": 1, "validate_every_steps": 8}


def project(folder, data, **recipe):
    folder.mkdir()
    write_project(folder, data, RECIPE | {"num_processes": 2} | recipe)
    return folder


def cluster(**values):
    return load_params().section(ClusterConfig).model_copy(update={"max_restarts": 0, **values})


def working_in(folder):
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd().startswith(str(folder)):
                yield process


def test_a_run_listens_on_loopback_is_alone_and_stops_with_a_checkpoint(data, tmp_path, monkeypatch):
    """No rank outlives the command, be it stopped or killed."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")  # for several machines; on one there is nothing to reach
    root = project(tmp_path / "project", data, num_steps=100_000, checkpoint_every_steps=5)
    first = killing.Command(["pretrain"], root)
    wait_until(
        lambda: [*root.glob("checkpoints/*/step-*.pt")], alive=lambda: not first.ended(0), says=lambda: first.errors
    )
    running = [*working_in(root)]
    found = [
        {each.laddr.ip for each in one.net_connections("tcp") if each.status == psutil.CONN_LISTEN} for one in running
    ]
    assert set().union(*found) == {"127.0.0.1"} and sum(map(bool, found)) >= 2  # each rank listens to the other
    command = [warm.commands() / "align", "pretrain"]
    second = subprocess.run(command, cwd=root, stderr=subprocess.PIPE, text=True, check=False)
    assert second.returncode == 1 and "another process trains this run" in second.stderr
    for each in working_in(root):  # as a terminal does, or a flow that is cancelled
        each.send_signal(signal.SIGTERM)
    assert first.ended(200) and first.exit_code == 128 + signal.SIGTERM
    assert "SIGTERM" in first.errors.splitlines()[-1] and "Traceback" not in first.errors
    wait_until(lambda: not [*working_in(root)])
    saved = max(root.glob("checkpoints/*/step-*.pt"))
    again = killing.Command(["pretrain"], root)
    wait_until(
        lambda: f"resuming from step {int(saved.stem[5:]):,} in" in again.errors, alive=lambda: not again.ended(0)
    )
    again.kill()
    wait_until(lambda: not [*working_in(root)])


@pytest.mark.parametrize("num_moments", [2, pytest.param(5, marks=pytest.mark.kill)])
def test_killed_and_resumed_equals_a_whole_run(data, tmp_path, num_moments):
    """`kill -9` at seeded moments, two ranks: the same weights and curves to the byte."""
    steps = {"num_steps": 150, "checkpoint_every_steps": 10, "validate_every_steps": 50}
    start = killing.Started
    if num_moments == 2:  # less of everything: forks, which do not spend most of a short run on imports
        steps, start = {"num_steps": 20, "checkpoint_every_steps": 2, "validate_every_steps": 10}, killing.Command
    whole, killed = (project(tmp_path / name, data, **steps) for name in ("whole", "killed"))
    whole_s = killing.run(["pretrain"], whole, start)

    def remove_results():
        for folder in ("checkpoints", "models", "reports/pretrain"):
            shutil.rmtree(killed / folder)

    killing.kill_and_resume(
        ["pretrain"], killed, seed=3 if num_moments == 2 else 0,  # 3: at 30 and at 56 %, so that neither ends before
        num_moments=num_moments, whole_s=whole_s, reset=remove_results, start=start,
    )  # fmt: skip
    for folder in ("models/pretrained", "reports/pretrain"):
        assert killing.digests(killed / folder) == killing.digests(whole / folder)
    wait_until(lambda: not [*working_in(tmp_path)])


def test_a_rank_that_dies_is_started_again_with_the_others_and_resumes(data, tmp_path, capfd):
    recipe = pretrain_config(num_processes=2, checkpoint_every_steps=2)
    whole = run(plan(data, tmp_path / "whole", recipe))
    dies = killing.KillOnce(tmp_path / "died", 6)
    again = Infrastructure(cluster=cluster(max_restarts=1))
    training_data.assert_same(run(plan(data, tmp_path / "killed", recipe, log=dies, infrastructure=again)), whole)
    assert (tmp_path / "died").exists() and "resuming from step 4" in capfd.readouterr().err


def _dies(root, ranks):
    (root / f"{ranks.rank} {os.getpid()}").touch()
    ranks.barrier()
    os._exit(7) if ranks.rank == 1 else ranks.barrier()


def test_a_rank_that_dies_again_and_again_ends_the_run(tmp_path):
    with pytest.raises(TrainingError, match=r"^training process [01] ended with exit code [17]; "):
        launch(functools.partial(_dies, tmp_path), 2, 1, cluster(max_restarts=1))
    assert len([*tmp_path.glob("1 *")]) == 2


def _all_fail(root, ranks):
    (root / f"{os.getpid()}").touch()
    ranks.barrier()
    raise NonFiniteLossError("the loss is nan")


def test_an_error_that_all_ranks_have_is_the_run_s_and_starts_nothing_again(tmp_path, capfd):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(NonFiniteLossError, match=r"^the loss is nan$"):
        launch(functools.partial(_all_fail, tmp_path), 2, 1, cluster(max_restarts=2))
    assert len([*tmp_path.iterdir()]) == 2 and "exitcode" not in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def damaged(data, root, number=-1):
    """A copy of the shards in which so many pictures of the second tar do not decode; by default none does."""
    shutil.copytree(data[0], root / "damaged")
    tar = root / "damaged/train/00001.tar"
    tar.chmod(0o644)
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", bytes(3), number))
    return root / "damaged"


def test_an_error_of_one_rank_is_its_line_and_ends_the_others_within_30_s(data, tmp_path):
    root = project(tmp_path / "project", (damaged(data, tmp_path, 1), data[1]))
    command = killing.Command(["pretrain", *sets("cluster.max_restarts=0")], root)
    wait_until(lambda: ": sample " in command.errors, 200)
    assert command.ended(30) and command.exit_code == 1
    lines = command.errors.splitlines()
    assert [line for line in lines if line.startswith("align: error: rank ") and "00001.tar: sample " in line], lines
    assert lines[-1].startswith("align: error: training process ") and "Traceback" not in command.errors


@pytest.mark.kill
def test_two_machines_end_together_and_resume_from_a_folder_that_both_see(data, tmp_path):
    """Whose newest checkpoint is truncated, so that both resume from the one before."""
    steps = {"num_steps": 6, "checkpoint_every_steps": 2, "keep_checkpoints": 3}
    first, second = (project(tmp_path / name, data, **steps) for name in ("node0", "node1"))
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
    shared = f"paths.checkpoints={first / 'checkpoints'}"
    fine, broken = both(shared, f"paths.shards={damaged(data, tmp_path)}")
    assert "rank 0 ends, as another one has ended or hangs: " in fine.errors
    assert "align: error: rank 1: " in broken.errors and "00001.tar: sample " in broken.errors
    assert fine.exit_code == broken.exit_code == 1
    nodes = both(shared)
    claim.close()
    for node in nodes:
        node.require_success()
        assert "is damaged, trying the previous one" in node.errors
    assert "resuming from step 2" in nodes[0].errors
    assert killing.digests(first / "models/pretrained") == whole
    assert not (second / "checkpoints").exists() and not (second / "models").exists()


def _hangs(root, ranks):
    ranks.barrier()
    if ranks.rank == 1:
        time.sleep(600)
    began = time.monotonic()
    try:
        ranks.barrier()
    finally:
        (root / "waited").write_text(f"{time.monotonic() - began}")


def test_a_rank_that_hangs_ends_the_run_after_patience_s(tmp_path):
    with pytest.raises(TrainingError, match="training process 0 ended"):
        launch(functools.partial(_hangs, tmp_path), 2, 1, cluster(patience_s=3))
    assert 2.9 < float((tmp_path / "waited").read_text()) < 9


def _ends_slowly(root, ranks):
    """Rank 0 writes for some seconds after SIGTERM."""
    with stop_requested() as stopped:
        (root / f"{ranks.rank}").touch()
        while not ranks.any(stopped()):
            time.sleep(0.05)
        time.sleep(6 if ranks.leads else 0)
        (root / f"{ranks.rank} saved").touch()
    raise StoppedError("stopped")


def told_to_end(root):
    """A machine of two ranks."""
    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        launch(functools.partial(_ends_slowly, Path(root)), 2, 1, cluster(stop_s=1))


@pytest.mark.kill
def test_ranks_have_the_time_of_params_yaml_to_end(tmp_path):
    """torch's own limit, 30 s, would be enough for the slow one."""
    with subprocess.Popen([warm.commands() / "python", "-c", CALL, "told_to_end", tmp_path], cwd=ROOT) as process:
        wait_until(lambda: len([*tmp_path.iterdir()]) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 0
    assert (tmp_path / "1 saved").exists() and not (tmp_path / "0 saved").exists()


def on_a_full_disk(shards, tokenizer, folder):
    """Two ranks, before and after there is room."""
    recipe = pretrain_config(**FULL, num_processes=2)
    training = plan(
        (Path(shards), Path(tokenizer)), Path(folder), recipe, infrastructure=Infrastructure(cluster=cluster())
    )
    try:
        run(training)
    except TrainingError as error:
        print(error)
    print(training.folder().steps())
    subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
    print(json.dumps(run(training).rows))


@pytest.mark.kill
def test_a_full_disk_keeps_the_last_checkpoint(data, tmp_path):
    """Step 4 does not fit: the leading rank cannot save, of which the other one must not die."""
    calm = run(plan(data, tmp_path / "calm", pretrain_config(**FULL, num_processes=2)))
    size = next((tmp_path / "calm").glob("*/*.pt")).stat().st_size * 3 // 2  # room for one and a half
    (tmp_path / "full").mkdir()
    done = with_disk(tmp_path / "full", ["-c", CALL, "on_a_full_disk", *data, tmp_path / "full"], size=str(size))
    assert done.returncode == 0, done.stdout + done.stderr
    said, kept, rows = done.stdout.splitlines()
    assert said.endswith("a checkpoint cannot be written: No space left on device; older ones are kept")
    assert kept == "[2]" and "resuming from step 2" in done.stderr and json.loads(rows) == calm.rows


def test_ranks_by_default_are_as_many_as_the_batch_divides_into(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [default_processes(batch, 16, 12) for batch in (16, 32, 128, 160, 256, 16 * 13)] == [1, 2, 8, 10, 8, 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert default_processes(128, 16, 12) == 2
    assert capsys.readouterr().err == ""
    assert default_processes(16 * 3, 16, 12) == 1
    assert "warning: 1 of 2 GPUs train, the others are idle" in capsys.readouterr().err


def test_ranks_that_cannot_share_the_work_are_refused(data, tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match=r"cannot listen at 192\.0\.2\.77:29555: .* cluster\.rendezvous"):
        launch(print, 1, 1, cluster(num_nodes=2, rendezvous="192.0.2.77:29555"))
    uneven = plan(data, tmp_path, pretrain_config(batch_size=24))  # each machine knows its own number of ranks only
    with pytest.raises(ConfigError, match=r"batch_size 24 must be a multiple of 4 ranks on all machines x model"):
        train_rank(uneven, Ranks(0, 4, torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gpus, own, place, says in (
        (1, 2, None, "num_processes 2: each trains on a GPU of its own, and this machine has 1"),
        (2, None, Place(1, 4, 1, 4, "127.0.0.1", 29500), "num_processes 4: each trains on a GPU of its own, and this"),
        (
            2,
            2,
            Place(1, 4, 1, 4, "127.0.0.1", 29500),
            "num_processes 2: the launcher has started 4 ranks on this machine",
        ),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        recipe = pretrain_config(batch_size=16, num_processes=own)
        with pytest.raises(ConfigError, match=says):
            run(plan(data, tmp_path, recipe, infrastructure=Infrastructure(place=place)))


def test_nccl_is_told_its_gpu_and_its_patience(monkeypatch, capsys):
    """The second process of a machine with three GPUs."""
    given = {}
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # and restored: `launch` sets them here
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
