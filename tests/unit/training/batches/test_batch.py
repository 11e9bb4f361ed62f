"""Copies to a GPU beside the step: their order, and how far ahead. The GPU's stream is tried where there is one."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from align.training.batches.batch import Batch, Tokens, one_ahead

CUDA = torch.device("cuda")


class Noted:
    """Notes what would be done on a GPU, and what is read; a batch of it is its step, and copies itself."""

    def __init__(self, monkeypatch):
        self.events = []
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: "copies")
        monkeypatch.setattr(torch.cuda, "stream", self._beside)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(wait_stream=self._wait))

    @contextmanager
    def _beside(self, stream):
        self.events.append(f"on {stream}")
        yield

    def _wait(self, stream):
        self.events.append(f"wait for {stream}")

    def read(self, num_steps, then=None):
        for step in range(num_steps):
            self.events.append(f"read {step}")
            kept = SimpleNamespace(record_stream=lambda _, step=step: self.events.append(f"keep {step}"))
            there = SimpleNamespace(num_quarantined=step, tensors=lambda kept=kept: (kept,))
            yield SimpleNamespace(to=lambda device, there=there: there)
        if then is not None:
            raise then


def test_the_next_batch_is_copied_while_a_step_runs_and_no_more(monkeypatch):
    noted = Noted(monkeypatch)
    for step, one in enumerate(one_ahead(noted.read(3), CUDA)):
        noted.events.append(f"step {step}")
        assert one.num_quarantined == step
    assert noted.events == [
        "read 0", "on copies",
        "wait for copies", "keep 0", "read 1", "on copies", "step 0",  # it waits for its own copies only
        "wait for copies", "keep 1", "read 2", "on copies", "step 1",
        "wait for copies", "keep 2", "step 2",
    ]  # fmt: skip
    assert list(one_ahead(noted.read(0), CUDA)) == []


def test_a_cpu_reads_nothing_ahead_and_copies_nothing(monkeypatch):
    noted = Noted(monkeypatch)
    batches = one_ahead(noted.read(3), torch.device("cpu"))
    assert hasattr(next(batches), "to") and noted.events == ["read 0"]


def test_an_error_of_the_loader_and_an_early_end_pass_through(monkeypatch):
    noted, closed = Noted(monkeypatch), []
    with pytest.raises(ValueError, match="of the loader"):
        next(one_ahead(noted.read(1, then=ValueError("of the loader")), CUDA))

    def source():
        try:
            yield from noted.read(9)
        finally:
            closed.append(True)

    ahead = one_ahead(source(), CUDA)
    next(ahead)
    ahead.close()
    assert closed == [True]  # without a wait for the garbage collector: its threads would live on


def test_a_batch_on_another_device_has_all_its_tensors_there():
    ids = torch.full((2, 5), 3)
    here = Batch(torch.zeros(2, 4, 4, 3), ["3", "3"], torch.zeros(2, 3), Tokens(ids, np.array([5, 2])), 1)
    there = here.to(torch.device("meta"))
    assert {tensor.device.type for tensor in there.tensors()} == {"meta"} and len(there.tensors()) == 3
    assert there.tokens.lengths.tolist() == [5, 2] and there.texts == ["3", "3"] and there.num_quarantined == 1


def test_a_side_stream_shows_the_step_what_was_read(card):
    def pinned(n):
        images = torch.full((64, 64, 64, 3), n, dtype=torch.uint8).pin_memory()
        return Batch(images, [], torch.zeros(1), Tokens.of([[1]], 0, pin=True))

    sums = [one.images.double().sum() for one in one_ahead(map(pinned, range(9)), card)]
    assert [int(total) for total in sums] == [n * 64**3 * 3 for n in range(9)]
