"""What loader processes are given, and what is said where they cannot be had. Real ones: the integration tests."""

import errno
import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from align.errors import TrainingError
from align.training.batch import Augmentation, Sampling, Workers, arrays_in, new_arrays, num_bytes
from align.training.index import read_outline
from align.training.loader import TrainLoader
from align.training.loader_worker import NUM_SLOTS, slot
from align.training.loop import loader_processes
from align.training.process_group import Ranks
from align.training.samples import SplitSamples
from tests.support import training_data
from tests.support.training_data import pretrain_config

AUGMENTATION = Augmentation(image_px=5, num_draws=3, flip=False, teacher_width=6)


def test_rows_of_shared_memory_are_apart_from_each_other() -> None:
    buffer = mmap.mmap(-1, NUM_SLOTS * num_bytes(7, AUGMENTATION))
    slots = [slot(buffer, number, 7, AUGMENTATION) for number in range(NUM_SLOTS)]
    for number, arrays in enumerate(slots):
        for begin, end in ((0, 2), (2, 7)):
            rows = arrays.rows(begin, end)
            rows.images[:], rows.draws[:] = 10 * number + begin, 10 * number + begin + 0.5
            rows.teacher[:] = 10 * number + begin + 0.25
    for number, arrays in enumerate(slots):
        assert (
            [a.shape for a in arrays]
            == [a.shape for a in new_arrays(7, AUGMENTATION)]
            == [(7, 5, 5, 3), (7, 3), (7, 2, 6)]
        )
        assert arrays.images[:, 0, 0, 0].tolist() == [10 * number + begin for begin in (0, 0, 2, 2, 2, 2, 2)]
        assert arrays.teacher[:, 1, 5].tolist() == [10 * number + begin + 0.25 for begin in (0, 0, 2, 2, 2, 2, 2)]
        assert arrays.draws[:, 2].tolist() == [10 * number + begin + 0.5 for begin in (0, 0, 2, 2, 2, 2, 2)]
    again = slot(buffer, NUM_SLOTS, 7, AUGMENTATION)  # the first one, when it is free again
    assert np.array_equal(again.images, slots[0].images)
    with pytest.raises(ValueError, match="smaller than requested"):
        arrays_in(buffer, num_bytes(7, AUGMENTATION), 7 * NUM_SLOTS, AUGMENTATION)


def test_processes_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = Ranks(0, 1, torch.device("cpu")), Ranks(0, 1, torch.device("cuda", 0))
    for cores, expected in ((1, 1), (2, 1), (6, 5), (32, 8)):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert loader_processes(pretrain_config(), cpu) == 0
        assert loader_processes(pretrain_config(), gpu) == expected
    assert [loader_processes(pretrain_config(num_loader_processes=n), on) for n in (0, 3) for on in (cpu, gpu)] == [
        0, 0, 3, 3,
    ]  # fmt: skip


def test_processes_share_memory_and_connections_evenly(tmp_path: Path) -> None:
    shards, _ = training_data.write(tmp_path)

    class Far:
        num_connections = 7

        def uri(self, sha256: str, num_bytes: int) -> str:
            raise AssertionError

        def read(self, uri: str, offset: int, size: int) -> bytes:
            raise AssertionError

    index = read_outline(shards).split("train")
    image_bytes = index.num_images * 36 * 36 * 3
    samples = SplitSamples(index, 36, Far(), patience_s=3.0, on_corrupt="quarantine", cache_bytes=2 * image_bytes)
    two, three = samples.elsewhere(2)(), samples.elsewhere(3)()
    assert [opened.tars.num_connections for opened in (two, three)] == [4, 3]
    assert [len(opened._images) for opened in (two, three)] == [24, 0]
    assert two.on_corrupt == "quarantine" and two.resize_px == 36 and two.tars._patience_s == 3.0


@pytest.mark.parametrize("failing", ["posix_fallocate", "memfd_create"])
def test_too_little_memory_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    shards, _ = training_data.write(tmp_path)
    loader = TrainLoader(
        SplitSamples(read_outline(shards).split("train"), 36),
        sampling=Sampling(seed=7, batch_size=8, shuffle_block=20),
        augmentation=Augmentation(image_px=32, num_draws=3, flip=False), workers=Workers(num_processes=2),
    )  # fmt: skip

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    gc.collect()  # what earlier tests left open is not to be closed in between
    open_before = len([*Path("/proc/self/fd").iterdir()])
    monkeypatch.setattr(os, failing, full)
    with pytest.raises(
        TrainingError, match=r"^0 MiB for the batches of loader processes cannot be had \(No space left"
    ):
        loader.batch(0)
    assert len([*Path("/proc/self/fd").iterdir()]) == open_before
