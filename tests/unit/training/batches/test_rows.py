"""What the rows of a run's batches hold: more shards, damaged ones, parts of texts and sentences."""

import shutil

import numpy as np
import pytest
import torch

from align.errors import ConfigError, CorruptError, StoppedError
from align.formats.shards import read_manifest
from align.training.batches.rows import SENTENCES, in_sentence, some_phrases
from align.training.train import run
from tests.support import training_data
from tests.support.training_data import TermAt, plan, pretrain_config


def test_more_shards_are_mixed_in_and_a_run_resumes_in_quarantine_to_the_same_bits(data, tmp_path):
    more, _ = training_data.write(tmp_path / "more", num_train=16)
    digest = read_manifest(more).digest
    mixed = pretrain_config(extra_shards=[{"path": str(more), "digest": digest, "weight": 0.5}])
    whole = run(plan(data, tmp_path / "whole", mixed))
    assert whole.rows != run(plan(data, tmp_path / "alone", pretrain_config())).rows
    with pytest.raises(StoppedError, match="stopped by SIGTERM after step 4 of 8"):
        run(plan(data, tmp_path / "parts", mixed, log=TermAt(4)))
    quarantine = mixed.model_copy(update={"on_corrupt_shard": "quarantine", "num_loader_processes": 1})
    resumed = run(plan(data, tmp_path / "parts", quarantine))
    assert resumed.rows == whole.rows
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    moved = tmp_path / "moved"
    shutil.copytree(more, moved)
    folders = [
        plan(data, tmp_path, pretrain_config(extra_shards=[source])).folder().directory
        for source in (
            {"path": str(more), "digest": digest, "weight": 0.5},
            {"path": str(moved), "digest": digest, "weight": 0.5},
            {"path": str(more), "digest": digest, "weight": 0.6},
        )
    ]
    assert folders[0] == folders[1] != folders[2]  # where it is stored does not change the result
    with pytest.raises(ConfigError, match=r"has the digest [0-9a-f]+, pretrain\.extra_shards says other"):
        plan(data, tmp_path, pretrain_config(extra_shards=[{"path": str(more), "digest": "other", "weight": 1.0}]))


def test_a_damaged_shard_stops_a_run_or_is_counted_in_live_logging(tmp_path):
    data = training_data.write(tmp_path)
    tar = data[0] / "train/00001.tar"
    offset, size = np.load(data[0] / "train/00001.npy")[3][:2].tolist()
    tar.chmod(0o644)
    with tar.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    live = []
    with pytest.raises(CorruptError, match=r"train/00001\.tar: sample 3: "):
        run(plan(data, tmp_path / "a", pretrain_config(num_steps=4)))
    quarantine = pretrain_config(num_steps=4, on_corrupt_shard="quarantine")
    run(plan(data, tmp_path / "b", quarantine, log=lambda row, step: live.append(row)))
    assert live[-1]["train/num_quarantined"] >= 1  # three steps are an epoch


def test_some_phrases():
    draws = np.array([0.4, 0.5, 0.9, 0.1, 0.3, 0.7, *[0.5] * 28])
    assert some_phrases("red heart (love, rot), 心、愛", 0.5, draws) == "love, rot, 愛"
    assert some_phrases("red heart (love, rot), 心、愛", 0.4, draws) == "red heart (love, rot), 心、愛"
    assert some_phrases("a red heart", 1.0, draws) == "a red heart"
    assert some_phrases("...", 1.0, draws) == "..."
    assert some_phrases("", 1.0, draws) == ""
    assert len(some_phrases(",".join("abcd" * 20), 1.0, draws).split(", ")) == 17


def test_in_sentence():
    assert in_sentence("red heart", 0.5, np.array([0.49, 0.0])) == "a red heart"
    assert in_sentence("red heart", 0.5, np.array([0.5, 0.0])) == "red heart"
    assert in_sentence("{0} {heart}", 1.0, np.array([0.0, 0.999])) == "an icon of a {0} {heart}"
    assert in_sentence("red heart", 0.0, np.empty(0)) == "red heart"
    shown = {in_sentence("heart", 1.0, np.array([0.0, draw])) for draw in np.arange(0, 1, 0.01)}
    assert shown == {sentence.replace("{}", "heart") for sentence in SENTENCES}
