"""Phases of a run: sizes by step, exact resume across their border, and that each step sees its size."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from align.errors import ConfigError, CorruptError, TrainingError
from align.formats.shards import read_manifest
from align.training import loop
from align.training.batches.batch import Batch, one_ahead
from align.training.batches.phases import Size, sizes
from align.training.batches.rows import SENTENCES, in_sentence, some_phrases
from align.training.run import run
from tests.support import training_data
from tests.support.training_data import MODEL, TermAt, finetune_config, plan, pretrain_config

LARGE = MODEL.model_copy(update={"image_px": 36, "resize_px": 36})
SHORT_FIRST = {"phases": [{"share": 0.5, "image_px": 32, "max_tokens": 4}]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return training_data.write(tmp_path_factory.mktemp("phases"))


def test_sizes_by_step() -> None:
    model = MODEL.model_copy(update={"image_px": 289, "resize_px": 346, "max_tokens": 64})
    phases = [{"share": 0.25, "image_px": 128, "max_tokens": 16}, {"share": 0.5, "max_tokens": 200}, {"share": 0.01}]
    assert [*sizes(pretrain_config(phases=phases), model)] == [
        Size(2, 128, 153, 16), Size(6, 289, 346, 64), Size(8, 289, 346, 64),
    ]  # fmt: skip
    assert [*sizes(pretrain_config(), model)] == [Size(8, 289, 346, 64)]


@pytest.mark.parametrize(
    ("stop", "more"), [(2, {}), (4, {"optimiser": "muon", "crop_scale": [0.8, 1.2]})]
)  # before the border, and at it
def test_interrupted_and_resumed_equals_uninterrupted(
    data: tuple[Path, Path], tmp_path: Path, stop: int, more: dict[str, Any]
) -> None:
    recipe = pretrain_config(**SHORT_FIRST | more)
    whole = run(plan(data, tmp_path / "whole", recipe, model=LARGE))
    with pytest.raises(TrainingError, match=f"stopped by SIGTERM after step {stop} of 8"):
        run(plan(data, tmp_path / "parts", recipe, model=LARGE, log=TermAt(stop)))
    resumed = run(plan(data, tmp_path / "parts", recipe, model=LARGE))
    assert whole is not None and resumed is not None
    training_data.assert_same(resumed, whole)
    assert [row["step"] for row in whole.rows] == [2, 4, 6, 8] and [*whole.found] == [4, 8]
    assert whole.model.config.image_px == 36


def test_each_step_sees_pictures_and_texts_of_its_size(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    compute = loop.compute_gradients

    def watched(model, recipe, ranks, tokenizer, batch, *rest):  # type: ignore[no-untyped-def]  # as it is called
        seen.append((batch.images.shape[1], max(len(ids) for ids in tokenizer.ids(batch.texts))))
        return compute(model, recipe, ranks, tokenizer, batch, *rest)

    monkeypatch.setattr(loop, "compute_gradients", watched)
    run(plan(data, tmp_path, pretrain_config(**SHORT_FIRST), model=LARGE))
    assert seen[:4] == [(32, 4)] * 4
    assert [px for px, _ in seen[4:]] == [36] * 4 and max(tokens for _, tokens in seen[4:]) > 4


def test_batches_that_are_read_ahead_are_those_of_the_steps(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the first batch of a stretch is taken before the last step of the one before it is done."""
    recipe = pretrain_config(phases=[{"share": 0.25, "image_px": 32}, {"share": 0.5, "max_tokens": 4}])
    shown: dict[str, list[Tensor]] = {"as they are": [], "ahead": []}
    compute = loop.compute_gradients
    for name, batches in shown.items():

        def watched(model, recipe, ranks, tokenizer, batch, *rest, into=batches):  # type: ignore[no-untyped-def]
            into.append(batch.images.clone())
            return compute(model, recipe, ranks, tokenizer, batch, *rest)

        monkeypatch.setattr(loop, "compute_gradients", watched)
        if name == "ahead":
            monkeypatch.setattr(loop, "one_ahead", lambda items, device: one_ahead(items, device, NoCopies()))
        run(plan(data, tmp_path / name, recipe, model=LARGE))
    assert [len(batch[0]) for batch in shown["ahead"]] == [32] * 2 + [36] * 6
    assert len(shown["as they are"]) == 8 and all(map(torch.equal, *shown.values()))


class NoCopies:
    """Stands in for a side stream."""

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def hand_over(self, batch: Batch) -> None:
        pass


def test_the_last_step_is_at_full_size() -> None:
    """Fine-tuning inherits the phases, and may have a few steps only."""
    short = finetune_config(phases=[{"share": 0.9, "image_px": 32}], num_steps=4)
    assert [size.end for size in sizes(short, LARGE)] == [3, 4]
    assert [*sizes(short.model_copy(update={"num_steps": 1}), LARGE)] == [Size(1, 36, 36, 16)]


def test_phases_that_cannot_be(data: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="must leave some to the model's own size"):
        pretrain_config(phases=[{"share": 0.5}, {"share": 0.5}])
    with pytest.raises(ConfigError, match=r"images of 36 px, pretrain\.phases need 64: lower their image_px"):
        plan(data, tmp_path, pretrain_config(phases=[{"share": 0.5, "image_px": 57}]))


def test_more_shards_are_mixed_in_and_a_run_resumes_in_quarantine_to_the_same_bits(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    more, _ = training_data.write(tmp_path / "more", num_train=16)
    digest = read_manifest(more).digest
    mixed = pretrain_config(extra_shards=[{"path": str(more), "digest": digest, "weight": 0.5}])
    whole = run(plan(data, tmp_path / "whole", mixed))
    assert whole.rows != run(plan(data, tmp_path / "alone", pretrain_config())).rows
    with pytest.raises(TrainingError, match="stopped by SIGTERM after step 4 of 8"):
        run(plan(data, tmp_path / "parts", mixed, log=TermAt(4)))
    quarantine = mixed.model_copy(update={"on_corrupt_shard": "quarantine", "num_loader_threads": 3})
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
        plan(
            data,
            tmp_path,
            pretrain_config(extra_shards=[{"path": str(more), "digest": "other", "weight": 1.0}]),
        )


def test_a_damaged_shard_stops_a_run_or_is_counted_in_live_logging(tmp_path: Path) -> None:
    data = training_data.write(tmp_path)
    tar = data[0] / "train/00001.tar"
    offset, size = np.load(data[0] / "train/00001.npy")[3][:2].tolist()
    tar.chmod(0o644)
    with tar.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    live: list[dict[str, float]] = []
    with pytest.raises(CorruptError, match=r"train/00001\.tar: sample 3: "):
        run(plan(data, tmp_path / "a", pretrain_config(num_steps=4)))
    quarantine = pretrain_config(num_steps=4, on_corrupt_shard="quarantine")
    run(plan(data, tmp_path / "b", quarantine, log=lambda row, step: live.append(row)))
    assert live[-1]["train/num_quarantined"] >= 1  # three steps are an epoch


def test_some_phrases() -> None:
    draws = np.array([0.4, 0.5, 0.9, 0.1, 0.3, 0.7, *[0.5] * 28])
    assert some_phrases("red heart (love, rot), 心、愛", 0.5, draws) == "love, rot, 愛"
    assert some_phrases("red heart (love, rot), 心、愛", 0.4, draws) == "red heart (love, rot), 心、愛"
    assert some_phrases("a red heart", 1.0, draws) == "a red heart"
    assert some_phrases("...", 1.0, draws) == "..."
    assert some_phrases("", 1.0, draws) == ""
    assert len(some_phrases(",".join("abcd" * 20), 1.0, draws).split(", ")) == 17


def test_in_sentence() -> None:
    assert in_sentence("red heart", 0.5, np.array([0.49, 0.0])) == "a red heart"
    assert in_sentence("red heart", 0.5, np.array([0.5, 0.0])) == "red heart"
    assert in_sentence("{0} {heart}", 1.0, np.array([0.0, 0.999])) == "an icon of a {0} {heart}"
    assert in_sentence("red heart", 0.0, np.empty(0)) == "red heart"
    shown = {in_sentence("heart", 1.0, np.array([0.0, draw])) for draw in np.arange(0, 1, 0.01)}
    assert shown == {sentence.replace("{}", "heart") for sentence in SENTENCES}
