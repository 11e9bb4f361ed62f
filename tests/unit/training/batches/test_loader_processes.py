"""What loader processes are given, and what is said where they cannot be had. Real ones: the integration tests."""

import multiprocessing
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from align.errors import TrainingError
from align.training.batches.batch import Augmentation, Sampling, Workers
from align.training.batches.index import read_outline
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from align.training.loop import loader_processes
from align.training.ranks.process_group import Ranks
from tests.support import training_data
from tests.support.training_data import pretrain_config


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


def test_too_little_shared_memory_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, _ = training_data.write(tmp_path)
    loader = TrainLoader(
        SplitSamples(read_outline(shards).split("train"), 36),
        sampling=Sampling(seed=7, batch_size=8, shuffle_block=20),
        augmentation=Augmentation(image_px=512, num_draws=3, flip=False), workers=Workers(num_processes=2),
    )  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20 * 18 - 1))
    with pytest.raises(TrainingError, match=r"^/dev/shm has 18 MiB for the batches of loader processes, which need 18"):
        loader.batch(0)
    assert multiprocessing.active_children() == []
