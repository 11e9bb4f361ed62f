"""Training in separate processes: two equal one, signals, locks, and errors that cross the process border."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align.config.infrastructure import ClusterConfig, StoreConfig
from align.errors import NonFiniteLossError, ServiceError, TrainingError
from align.model.dual_encoder import load_model
from align.services.s3.store import CheckpointMirror, checkpoint_mirror
from align.training.loop import Log
from align.training.ranks.process_group import default_processes
from align.training.run import run
from align.training.run_plan import Infrastructure, TrainingPlan
from tests.support import ROOT, killing, training_data, warm
from tests.support.killing import KillOnce
from tests.support.namespaces import namespaces
from tests.support.params import load_params
from tests.support.s3_server import KEY, SECRET, serve
from tests.support.training_data import RECIPE, TermAt, plan, pretrain_config, with_log
from tests.support.training_project import write_project


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return training_data.write(tmp_path_factory.mktemp("data"))


@contextmanager
def started(command: list[str], directory: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, cwd=directory, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_checkpoint(root: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(root.glob("checkpoints/*/step-*.pt")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)


def test_two_processes_equal_one(data: tuple[Path, Path], tmp_path: Path) -> None:
    short = {"num_steps": 4, "warmup_steps": 1, "learning_rate": 0.005}  # small: rounding grows with the rate
    one = run(plan(data, tmp_path / "one", pretrain_config(**short)))
    two = run(plan(data, tmp_path / "two", pretrain_config(**short, num_processes=2)))
    # Weights without an influence on the loss (a shift that batch-norm takes out) follow rounding: compare the rest.
    for name, weight in one.model.state_dict().items():
        if weight.ndim > 1:
            torch.testing.assert_close(two.model.state_dict()[name], weight, atol=1e-3, rtol=1e-2, msg=name)
    for mine, theirs in zip(one.rows, two.rows, strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
        assert mine["train/temperature"] == pytest.approx(theirs["train/temperature"], rel=1e-4)
        assert mine.keys() == theirs.keys()
        if "val/effective_rank" in mine:  # each of two ranks embeds its share of the validation split
            assert mine["val/effective_rank"] == pytest.approx(theirs["val/effective_rank"], rel=1e-3)
    counts = [
        {int(value) for name, value in trained.model.state_dict().items() if name.endswith("num_batches_tracked")}
        for trained in (one, two)
    ]
    assert counts[0] == counts[1] and len(counts[0]) == 1  # every group of the statistics' pictures once


def test_an_error_in_a_rank_reaches_the_caller(data: tuple[Path, Path], tmp_path: Path) -> None:
    broken = plan(data, tmp_path, pretrain_config(learning_rate=1e38, warmup_steps=7, num_processes=2))
    with pytest.raises(NonFiniteLossError, match=r"the loss is (nan|inf) at step"):
        run(broken)


def test_ranks_by_default_are_as_many_as_the_batch_divides_into(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert [default_processes(batch, 16) for batch in (16, 32, 128, 160, 256, 16 * 13)] == [1, 2, 8, 10, 8, 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert default_processes(128, 16) == 2
    assert capsys.readouterr().err == ""
    assert default_processes(16 * 3, 16) == 1
    assert "warning: 1 of 2 GPUs train, the others are idle" in capsys.readouterr().err


@pytest.mark.costs(4, "three commands, of which two train with two ranks")
@pytest.mark.parametrize("num_processes", [pytest.param(1, marks=pytest.mark.full), 2])
def test_sigterm_saves_and_a_second_trainer_is_refused(
    data: tuple[Path, Path], tmp_path: Path, num_processes: int
) -> None:
    recipe = RECIPE | {"num_steps": 100_000, "checkpoint_every_steps": 5, "num_processes": num_processes}
    command = write_project(tmp_path, data, recipe)
    if num_processes == 2:
        command = [str(warm.commands() / "align"), "pretrain"]
    with started(command, tmp_path) as first:
        wait_for_checkpoint(tmp_path)
        second = killing.Command(["pretrain"], tmp_path)
        assert second.ended(240) and second.exit_code == 1
        assert "another process trains this run" in second.errors
        first.send_signal(signal.SIGTERM)
        _, errors = first.communicate(timeout=200)
    assert first.returncode == 1
    assert "align: error: " in errors and "SIGTERM" in errors.splitlines()[-1]
    (folder,) = (tmp_path / "checkpoints").iterdir()
    steps = sorted(int(path.stem[5:]) for path in folder.glob("step-*.pt"))
    again = killing.Command(["pretrain"], tmp_path)
    try:
        while not (said := re.findall("^.*resuming from.*\n", again.errors, re.MULTILINE)):
            assert not again.ended(0.1), "the second run ended"
    finally:
        again.kill()
    assert f"step {steps[-1]:,} " in said[0]


@pytest.mark.costs(3, "three runs, one of two ranks")
def test_another_number_of_ranks_resumes(data: tuple[Path, Path], tmp_path: Path) -> None:
    short = {
        "num_steps": 4,
        "warmup_steps": 1,
        "learning_rate": 0.005,
        "checkpoint_every_steps": 2,
        "log_every_steps": 1,
    }
    one = run(plan(data, tmp_path / "one", pretrain_config(**short)))
    mixed = plan(data, tmp_path / "mixed", pretrain_config(**short, num_processes=2))
    run(mixed)
    (mixed.folder().directory / "step-00000004.pt").unlink()  # as if it had been killed after step 2
    again = plan(data, tmp_path / "mixed", pretrain_config(**short, micro_batch=4))
    assert again.folder().directory == mixed.folder().directory
    resumed = run(again)
    for mine, theirs in zip(one.rows, resumed.rows, strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
    for name, weight in one.model.state_dict().items():
        if weight.ndim > 1:  # as above
            torch.testing.assert_close(resumed.model.state_dict()[name], weight, atol=1e-3, rtol=1e-2, msg=name)


@pytest.mark.costs(9, "a whole run of two ranks, two that are killed and their rest")
@pytest.mark.parametrize("num_moments", [2, pytest.param(10, marks=pytest.mark.full)])
def test_killed_and_resumed_equals_a_whole_run(data: tuple[Path, Path], tmp_path: Path, num_moments: int) -> None:
    """`kill -9` at seeded moments, two ranks: the same weights and curves to the byte."""
    steps = {"num_steps": 150, "checkpoint_every_steps": 10, "validate_every_steps": 50}
    start: killing.Start = killing.Started
    if num_moments == 2:  # less of everything: forks, which do not spend most of a short run on imports
        steps, start = {"num_steps": 20, "checkpoint_every_steps": 2, "validate_every_steps": 10}, killing.Command
    recipe = RECIPE | steps | {"num_processes": 2}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        write_project(tmp_path / name, data, recipe)
    whole_s = killing.run(["pretrain"], tmp_path / "whole", start)

    def remove_results() -> None:
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


@pytest.mark.costs(4, "a server of S3, and six runs")
def test_a_machine_without_checkpoints_resumes_from_the_object_store(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(tmp_path / "server") as server, monkeypatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        with closing(server._client()) as s3:
            s3.create_bucket(Bucket="runs")
        store = load_params().section(StoreConfig)
        store = store.model_copy(update={"checkpoints": "s3://runs/of/us", "num_retries": 0, "timeout_s": 5.0})
        recipe = pretrain_config(checkpoint_every_steps=2)

        def at(name: str, log: Log | None = None) -> TrainingPlan:
            mirrored = Infrastructure(mirror=checkpoint_mirror(store))
            return plan(data, tmp_path / name, recipe, log=log, infrastructure=mirrored)

        whole = run(plan(data, tmp_path / "whole", recipe))
        with pytest.raises(TrainingError, match="after step 4 of 8"):
            run(at("here", TermAt(4)))
        run_name = at("here").folder().directory.name
        assert CheckpointMirror(store, "s3://runs/of/us").names(run_name) == ["step-00000002.pt", "step-00000004.pt"]
        there = run(at("there"))
        assert there.rows == whole.rows
        for name, weight in whole.model.state_dict().items():
            assert torch.equal(there.model.state_dict()[name], weight), name
        assert CheckpointMirror(store, "s3://runs/of/us").names(run_name) == ["step-00000006.pt", "step-00000008.pt"]
        other = recipe.model_copy(update={"seed": 1})

        def without(name: str, location: str) -> TrainingPlan:
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

    def names(self, run: str) -> list[str]:
        return []


@pytest.mark.costs(5, "two ranks start four times")
def test_a_rank_that_dies_is_restarted_with_the_others(data: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = pretrain_config(num_processes=2, checkpoint_every_steps=2)
    cluster = load_params().section(ClusterConfig)
    whole = run(plan(data, tmp_path / "whole", recipe))
    killed = plan(
        data, tmp_path / "killed", recipe, log=KillOnce(tmp_path / "marker", 6),
        infrastructure=Infrastructure(cluster=cluster),
    )  # fmt: skip
    again = run(killed)
    assert (tmp_path / "marker").exists() and whole is not None and again is not None
    assert again.rows == whole.rows  # none twice, none missing
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    without_restarts = Infrastructure(cluster=cluster.model_copy(update={"max_restarts": 0}))
    once = with_log(killed, KillOnce(tmp_path / "another", 4))
    with pytest.raises(TrainingError, match=r"training process 0 died \(exit code -9\)"):
        run(replace(once, checkpoints=tmp_path / "once", infrastructure=without_restarts))


@pytest.mark.full
def test_two_network_namespaces_are_two_nodes(data: tuple[Path, Path], tmp_path: Path) -> None:
    """Two machines, each with its own network interface, joined by a cable."""
    one_machine = run(plan(data, tmp_path / "one", pretrain_config(num_processes=2)))
    assert one_machine is not None
    with namespaces() as (first, second):
        nodes = []
        for number, space in enumerate((first, second)):
            root = tmp_path / f"node{number}"
            root.mkdir()
            command = write_project(root, data, RECIPE | {"num_processes": 1})
            overrides = ["cluster.num_nodes=2", f"cluster.node_rank={number}", "cluster.rendezvous=10.77.0.1:29555",
                         "cluster.patience_s=60"]  # fmt: skip
            sets = [word for override in overrides for word in ("--set", override)]
            nodes.append(subprocess.Popen(
                ["ip", "netns", "exec", space, *command, *sets], cwd=root, stderr=subprocess.PIPE, text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            ))  # fmt: skip
        said = [node.communicate(timeout=240)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "on 2 x cpu" in said[0] and "this machine is done" in said[1]
    assert not (tmp_path / "node1/models").exists() and not (tmp_path / "node1/checkpoints").exists()
    weights = load_model(tmp_path / "node0/models/pretrained").state_dict()
    for name, weight in one_machine.model.state_dict().items():
        assert torch.equal(weights[name], weight), name
