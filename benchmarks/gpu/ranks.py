"""Two cards and more, a rank on each: what messages cost, what hides them, FSDP2, votes, and a rank that is killed.

NCCL carries the messages; without cards two ranks of a CPU stand in, with gloo. A step is the same four ways:

* `alone`: each rank for itself, without a message; what the others are measured by;
* `overlapped`: as training does it: a bucket of gradients is sent from autograd's thread as soon as it is full;
* `after`: all buckets are sent after the backward pass;
* `FSDP2`: weights, gradients and moments divided among the ranks (`shard_weights`).
"""

from __future__ import annotations

import functools
import json
import tempfile
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from align.config import load_params
from align.config.infrastructure import ClusterConfig
from align.training.acceleration import accelerated
from align.training.ranks.buckets import GradientSums, gathered
from align.training.ranks.process_group import Ranks, launch
from align.training.readings import Vote
from align.training.run import run as train
from align.training.run_plan import Infrastructure, TrainingPlan
from benchmarks.gpu.checks import relative
from benchmarks.gpu.journal import Journal, number
from benchmarks.gpu.machine import release, synchronise
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.steps import Trainer
from tests.support import ROOT, training_data
from tests.support.killing import KillOnce
from tests.support.training_data import pretrain_config

_PROFILE = "cc3m"
_STEPS = 10
#: Of the run whose leading rank is killed: the step after which it is, of how many.
_KILLED_AFTER, _RUN_STEPS = 5, 8


def run(scale: Scale, journal: Journal) -> None:
    """Tables and checks for two ranks, and for as many as there are cards."""
    cards = 2 if scale.stand_in else torch.cuda.device_count()
    if cards < 2:
        journal.note("There is one card, so no rank has a peer.")
        return
    with tempfile.TemporaryDirectory(prefix="align-bench-gpu-") as name:
        for count in sorted({2, cards}, reverse=True):
            if journal.left_s() < 25:
                journal.note(f"No time was left for {count} ranks.")
                continue
            out = Path(name) / f"{count}.jsonl"
            launch(functools.partial(_measure, scale, out), count, 1 if scale.stand_in else None)
            for line in out.read_text("utf-8").splitlines():
                entry = json.loads(line)
                getattr(journal, entry.pop("kind"))(**entry)
        _killed(scale, journal, cards, Path(name))


class _Notes:
    """What the leading rank hands to the section's journal."""

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self._path, self._leads = path, ranks.leads

    def __call__(self, kind: str, **entry: object) -> None:
        if self._leads:
            with self._path.open("a") as file:
                file.write(json.dumps({"kind": kind, **entry}) + "\n")


def _measure(scale: Scale, out: Path, ranks: Ranks) -> None:
    scale, note = replace(scale, device=ranks.device), _Notes(out, ranks)
    _messages(scale, ranks, note)
    _votes(ranks, note)
    share = scale.batches[0 if scale.stand_in else 1]
    seconds: dict[str, float] = {}
    for way in ("alone", "overlapped", "after", "FSDP2"):
        own = Ranks(0, 1, ranks.device) if way == "alone" else ranks
        if ranks.device.type == "cuda":
            release()
            torch.cuda.reset_peak_memory_stats(ranks.device)
        trainer = Trainer(scale, _PROFILE, own, sharded=way == "FSDP2").prepare(share)
        late = mock.patch.object(GradientSums, "last_backward", lambda *_: nullcontext())
        with late if way == "after" else nullcontext(), accelerated(trainer.state.model, trainer.recipe, ranks.device):
            seconds[way] = _seconds(scale, trainer, ranks)
        peak = torch.cuda.max_memory_allocated(ranks.device) if ranks.device.type == "cuda" else 0
        note(
            "row", table="ranks", ranks=ranks.world_size, towers=scale.towers(_PROFILE), way=way, batch=f"{share:,}",
            pairs_per_s=number(ranks.world_size * share / seconds[way]), step_ms=number(1e3 * seconds[way]),
            peak=f"{peak / 2**30:,.1f} GiB" if peak else "",
        )  # fmt: skip
        if way == "overlapped":
            _threads(trainer, note)
        del trainer
    alone_s, now_s, late_s = (seconds[way] for way in ("alone", "overlapped", "after"))
    if late_s > alone_s and not scale.stand_in:
        hidden = f"{100 * (late_s - now_s) / (late_s - alone_s):.0f} %"
        note("note", text=f"{ranks.world_size} ranks: {hidden} of what messages add to a step is hidden.")
    _alike(scale, ranks, note)


def _messages(scale: Scale, ranks: Ranks, note: _Notes) -> None:
    """Sums of tensors of 4 KiB, a bucket's size and, on cards, 1 GiB."""
    for size in (1 << 12, 1 << 24, *(() if scale.stand_in else (1 << 30,))):
        tensor, times = torch.ones(size // 4, device=ranks.device), 2 if scale.stand_in else 20
        ranks.start_sum(tensor).wait()
        _together(scale, ranks)
        start = time.perf_counter()
        for _ in range(times):
            ranks.start_sum(tensor).wait()
        synchronise(scale.device)
        spent = (time.perf_counter() - start) / times
        bus = 2 * (ranks.world_size - 1) / ranks.world_size * size / spent
        note(
            "row", table="messages", ranks=ranks.world_size, size=f"{size / 2**20:,.3g} MiB", ms=number(1e3 * spent),
            bus=f"{bus / 1e9:,.2f} GB/s",
        )  # fmt: skip


def _together(scale: Scale, ranks: Ranks) -> None:
    ranks.barrier()
    synchronise(scale.device)


def _votes(ranks: Ranks, note: _Notes) -> None:
    """The last rank alone votes, and all end; what a vote costs that is read at once."""
    start = time.perf_counter()
    results = [Vote(2 if ranks.rank == ranks.world_size - 1 else 0, ranks).result() for _ in range(10)]
    spent = (time.perf_counter() - start) / 10
    wrong = int(ranks.any(results != [2] * 10))
    verdict = "failed" if wrong else "passed"
    found = f"ranks that know: {'not all' if wrong else 'all'}; {1e6 * spent:,.0f} us a vote"
    note("check", name=f"a vote of one of {ranks.world_size} ranks", verdict=verdict, found=found)


def _seconds(scale: Scale, trainer: Trainer, ranks: Ranks) -> float:
    """Of a step, by the slowest rank. Each rank makes as many: they wait for each other."""
    times = 1 if scale.stand_in else _STEPS
    trainer.step(), trainer.step()
    _together(scale, ranks)
    start = time.perf_counter()
    for _ in range(times):
        trainer.step()
    synchronise(scale.device)
    spent = torch.tensor((time.perf_counter() - start) / times, device=ranks.device)
    return float(ranks.max(spent))


def _threads(trainer: Trainer, note: _Notes) -> None:
    """Which thread sends the buckets, and when: before the backward pass has ended."""
    main, sent = threading.get_ident(), list[tuple[bool, bool]]()
    start_sum, finish, ending = Ranks.start_sum, GradientSums.finish, threading.Event()

    def noted(ranks: Ranks, tensor: Tensor) -> Any:
        sent.append((threading.get_ident() != main, not ending.is_set()))
        return start_sum(ranks, tensor)

    def noted_finish(sums: GradientSums) -> None:
        ending.set()
        finish(sums)

    with mock.patch.object(Ranks, "start_sum", noted), mock.patch.object(GradientSums, "finish", noted_finish):
        trainer.step()
    own, early = (sum(each) for each in zip(*sent, strict=True))
    note(
        "note",
        text=f"{trainer.ranks.world_size} ranks: {early} of {len(sent)} messages of gradients started within the "
        f"backward pass, {own} from autograd's own thread (a CPU has none).",
    )  # fmt: skip


def _alike(scale: Scale, ranks: Ranks, note: _Notes) -> None:
    """Gradients of the ranks' steps, in float32, beside those of one rank that has the whole batch."""
    from benchmarks.gpu.step_checks import Step

    one = Step(scale, ranks.device) if ranks.leads else None
    for sharded in (False, True):
        step = Step(scale, ranks.device, ranks=ranks, shard_weights=sharded)
        grads = gathered({name: grad.detach() for name, grad in step.grads.items()})
        if one is not None:
            flat = [
                torch.cat([each[name].double().cpu().flatten() for name in one.grads]) for each in (grads, one.grads)
            ]
            far = max(relative(*flat), abs(step.loss - one.loss) / abs(one.loss))
            note(
                "check", name=f"gradients of {ranks.world_size} ranks beside one" + (", FSDP2" if sharded else ""),
                verdict="passed" if far <= 1e-3 else "failed", found=f"largest relative error {number(far)}",
                bound="0.001",
            )  # fmt: skip
        ranks.barrier()


class _Timed(KillOnce):
    """Notes when a step's row is there."""

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        with self.marker.with_suffix(".times").open("a") as file:
            file.write(f"{time.monotonic()} {step}\n")
        super().__call__(metrics, step)


def _killed(scale: Scale, journal: Journal, ranks: int, folder: Path) -> None:
    """A run whose leading rank is killed restarts by itself, and ends like one that was not."""
    name = f"a rank of {ranks} killed (SIGKILL), all restarted from the last checkpoint"
    if journal.left_s() < 25:
        journal.check(name, "not possible here", "no time was left for it")
        return
    data = training_data.write(folder / "data", num_train=16 * ranks, num_val=4)
    whole, marker = train(_plan(data, folder / "whole", ranks)), folder / "killed"
    killed = train(_plan(data, folder / "again", ranks, marker))
    assert whole is not None and killed is not None
    weights = [torch.cat([each.detach().flatten() for each in one.model.parameters()]) for one in (killed, whole)]
    far, bound = relative(*weights), 1e-6 if scale.stand_in else 2e-2
    lines = marker.with_suffix(".times").read_text("utf-8").splitlines()
    times = [(float(at), int(step)) for at, step in map(str.split, lines)]
    away = next(later[0] - earlier[0] for earlier, later in pairwise(times) if later[1] <= earlier[1])
    found = f"largest relative error {number(far)}; {number(away)} s from the kill to the next step"
    journal.check(name, "passed" if far <= bound else "failed", found, number(bound))


def _plan(data: tuple[Path, Path], checkpoints: Path, ranks: int, marker: Path | None = None) -> TrainingPlan:
    recipe = pretrain_config(
        num_steps=_RUN_STEPS, batch_size=8 * ranks, num_processes=ranks, log_every_steps=1, checkpoint_every_steps=2,
        validate_every_steps=_RUN_STEPS, precision="float32",
    )  # fmt: skip
    cluster = load_params(ROOT / "params.yaml").section(ClusterConfig).model_copy(update={"max_restarts": 1})
    log = None if marker is None else _Timed(marker, _KILLED_AFTER)
    return training_data.plan(data, checkpoints, recipe, log=log, infrastructure=Infrastructure(cluster=cluster))
