"""Copies to a GPU beside the step: their order, and how far ahead. The GPU's stream is tried where there is one."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from align.training.batches.batch import Batch, SideStream, Tokens, one_ahead

CPU = torch.device("cpu")


def batch(step):
    images, ids = torch.full((2, 4, 4, 3), step, dtype=torch.uint8), torch.full((2, 5), step)
    return Batch(images, [str(step)] * 2, torch.full((2, 3), float(step)), 0, Tokens(ids, np.array([5, 2])))


class Noted:
    """Notes what a side stream would do, and what is read."""

    def __init__(self):
        self.events = []

    def read(self, num_steps, then=None):
        for step in range(num_steps):
            self.events.append(f"read {step}")
            yield batch(step)
        if then is not None:
            raise then

    @contextmanager
    def beside(self):
        self.events.append("copy")
        yield

    def hand_over(self, batch):
        self.events.append(f"hand over {batch.texts[0]}")


def test_the_next_batch_is_copied_while_a_step_runs_and_no_more():
    noted = Noted()
    for step, one in enumerate(one_ahead(noted.read(3), CPU, noted)):
        noted.events.append(f"step {step}")
        assert one.texts == [str(step)] * 2 and int(one.images.max()) == step
    assert noted.events == [
        "read 0", "copy",
        "hand over 0", "read 1", "copy", "step 0",  # the step waits for its own copies only: the next begin later
        "hand over 1", "read 2", "copy", "step 1",
        "hand over 2", "step 2",
    ]  # fmt: skip
    assert list(one_ahead(noted.read(0), CPU, noted)) == []


def test_a_cpu_reads_nothing_ahead_and_copies_nothing():
    noted = Noted()
    given = batch(7)
    [same] = one_ahead(iter([given]), CPU)
    assert same is given
    next(one_ahead(noted.read(3), CPU))
    assert noted.events == ["read 0"]


def test_an_error_of_the_loader_and_an_early_end_pass_through():
    noted = Noted()
    batches = one_ahead(noted.read(1, then=ValueError("of the loader")), CPU, noted)
    with pytest.raises(ValueError, match="of the loader"):
        next(batches)
    closed = []

    def source():
        try:
            for step in range(9):
                yield batch(step)
        finally:
            closed.append(True)

    ahead = one_ahead(source(), CPU, Noted())
    next(ahead)
    ahead.close()
    assert closed == [True]  # without a wait for the garbage collector: its processes would live on


def test_a_batch_on_another_device_has_all_its_tensors_there():
    there = batch(3).to(torch.device("meta"))
    assert {tensor.device.type for tensor in there.tensors()} == {"meta"} and len(there.tensors()) == 3
    assert there.tokens is not None and there.tokens.lengths.tolist() == [5, 2] and there.texts == ["3", "3"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_side_stream_shows_the_step_what_was_read():
    device = torch.device("cuda")
    pinned = [
        Batch(torch.full((64, 64, 64, 3), n, dtype=torch.uint8).pin_memory(), [], torch.zeros(1)) for n in range(9)
    ]
    sums = [one.images.double().sum() for one in one_ahead(iter(pinned), device, SideStream(device))]
    assert [int(total) for total in sums] == [n * 64**3 * 3 for n in range(9)]
