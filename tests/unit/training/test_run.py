"""Whole runs of a tiny model: learning, resuming bit for bit, stopping, failing, exporting."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from align.config.infrastructure import HealthConfig
from align.errors import ConfigError, NonFiniteLossError
from align.model.dual_encoder import load_model
from align.model.embedder import Embedder
from align.project import provenance
from align.training import run as training_run
from align.training import run_plan
from align.training.run import Trained, run
from align.training.stage import train_stage
from align.training.validation import recall_at
from tests.support import training_data
from tests.support.params import load_params
from tests.support.training_data import MODEL, finetune_config, plan, pretrain_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return training_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that nothing disturbs."""
    trained = run(plan(data, tmp_path_factory.mktemp("whole")))
    assert trained is not None
    return trained


def test_learns_what_the_pictures_are_called(data: tuple[Path, Path], tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"stochastic_depth": 0.0, "batch_norm_group": 16, "temperature_init": 0.5})
    recipe = pretrain_config(num_steps=30, batch_size=16, warmup_steps=5, validate_every_steps=30, log_every_steps=5)
    trained = run(plan(data, tmp_path, recipe, model=model))
    losses = [row["train/loss"] for row in trained.rows]
    assert losses[-1] < 0.85 * losses[0]
    assert trained.rows[-1]["val/image_to_text/recall@1"] >= 0.5  # chance 0.125
    assert trained.pairs_per_s > 0


def test_the_sigmoid_loss_learns_it_too(data: tuple[Path, Path], tmp_path: Path) -> None:
    model = MODEL.model_copy(
        update={"stochastic_depth": 0.0, "batch_norm_group": 16, "temperature_init": 0.1, "logit_bias_init": -3.0}
    )
    recipe = pretrain_config(
        loss="sigmoid", num_steps=30, batch_size=16, warmup_steps=5, validate_every_steps=30, log_every_steps=5
    )
    sigmoid = plan(data, tmp_path, recipe, model=model)
    trained = run(sigmoid)
    assert trained is not None and trained.model.logit_bias is not None
    assert float(trained.model.logit_bias.detach()) != -3.0
    assert trained.rows[-1]["train/loss"] < 0.85 * trained.rows[0]["train/loss"]
    assert trained.rows[-1]["val/image_to_text/recall@1"] >= 0.375  # chance 0.125
    for plan_of in (replace(sigmoid, model=MODEL), replace(sigmoid, recipe=pretrain_config(batch_size=16))):
        with pytest.raises(ConfigError, match="do not go together"):
            run(plan_of)


def test_a_stage_writes_the_same_bytes_every_time(data: tuple[Path, Path], tmp_path: Path) -> None:
    for name, checkpoints in (("a", "first"), ("b", "second"), ("c", "first")):  # c: from a finished run, exports only
        train_stage(
            plan(data, tmp_path / checkpoints), out=tmp_path / name / "model", reports=tmp_path / name / "reports"
        )
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert {path.name for path in files} == {
        ".align.json", "config.json", "model.safetensors", "metrics.jsonl", "curve.csv", "loss.png", "metrics.json",
        "report.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    for path in files:
        assert (tmp_path / "b" / path).read_bytes() == (tmp_path / "a" / path).read_bytes(), path
        assert (tmp_path / "c" / path).read_bytes() == (tmp_path / "a" / path).read_bytes(), path


def test_fine_tuning_starts_from_the_given_model(data: tuple[Path, Path], tmp_path: Path) -> None:
    train_stage(plan(data, tmp_path / "ck"), out=tmp_path / "pretrained", reports=tmp_path / "r")
    tiny = finetune_config(learning_rate=1e-9, num_steps=1)
    tuned = plan(data, tmp_path / "ck", tiny, initial=tmp_path / "pretrained")
    report, _ = train_stage(tuned, out=tmp_path / "finetuned", reports=tmp_path / "r2")
    before, after = load_model(tmp_path / "pretrained").state_dict(), load_model(tmp_path / "finetuned").state_dict()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-5, rtol=1e-5)
    assert report.metrics["finetune/num_steps"] == 1
    assert json.loads((tmp_path / "finetuned" / "config.json").read_text())["stage"] == "finetune"
    embedder = Embedder.load(tmp_path / "finetuned")
    assert embedder.embed_texts(["a red bar", "left side in green and blue"]).shape == (2, MODEL.embed_width)


def test_a_run_digests_and_reads_the_model_it_starts_from_once(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_stage(plan(data, tmp_path / "ck"), out=tmp_path / "pretrained", reports=tmp_path / "r")
    done: list[str] = []

    def counting(module: ModuleType, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *some: done.append(name) or function(*some))

    counting(run_plan, "weights_digest")
    counting(training_run, "load_model")
    counting(provenance, "digest")
    tiny = finetune_config(num_steps=1)
    tuned = plan(data, tmp_path / "ck", tiny, initial=tmp_path / "pretrained")
    train_stage(tuned, out=tmp_path / "finetuned", reports=tmp_path / "r2")
    assert sorted(done) == ["digest", "load_model", "weights_digest"]
    done.clear()
    run(tuned)  # finished: its result is in its last checkpoint
    assert done == []


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(data: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = pretrain_config(learning_rate=1e38, warmup_steps=7, checkpoint_every_steps=1)
    broken = plan(data, tmp_path, recipe)
    with pytest.raises(NonFiniteLossError, match=r"the loss is (nan|inf) at step"):
        run(broken)
    saved = broken.folder().load_latest(torch.device("cpu"))
    assert saved is not None and all(np.isfinite(saved["losses"]))


def test_the_average_of_the_weights_is_what_is_validated_and_kept(
    data: tuple[Path, Path], tmp_path: Path, whole: Trained
) -> None:
    recipe = pretrain_config(ema_decay=0.5, checkpoint_every_steps=1, keep_checkpoints=8)
    kept = run(plan(data, tmp_path / "whole", recipe))
    folder = plan(data, tmp_path / "whole", recipe).folder().directory
    states = [torch.load(folder / f"step-{step:08d}.pt", weights_only=True) for step in range(1, 9)]
    name = "text_projection.weight"
    average = states[0]["average"][[*dict(kept.model.named_parameters())].index(name)]
    for state in states[1:]:
        average = average + 0.5 * (state["model"][name] - average)
    torch.testing.assert_close(kept.model.state_dict()[name], average)
    assert torch.equal(
        states[-1]["model"][name], whole.model.state_dict()[name]
    )  # training itself does not use the average
    assert [row["train/loss"] for row in kept.rows] == [row["train/loss"] for row in whole.rows]
    assert kept.rows[-1]["val/effective_rank"] != whole.rows[-1]["val/effective_rank"]


def test_what_varies_goes_to_live_logging_and_nowhere_else(data: tuple[Path, Path], tmp_path: Path) -> None:
    live: list[dict[str, float]] = []
    health = load_params().section(HealthConfig).model_copy(update={"device_tflops": 0.1, "price_per_hour": 3.0})
    trained = run(plan(data, tmp_path, log=lambda row, step: live.append(row), health=health))
    varying = {"train/pairs_per_s", "train/device_hours", "train/mfu", "train/cost", "train/loader_wait_share",
               "train/alarms"}  # fmt: skip
    assert varying <= live[0].keys() and 0 < live[0]["train/mfu"] < 1
    assert not varying & {name for row in trained.rows for name in row}
    assert trained.rows[0]["train/gradient_norm"] > 0
    assert 1 < trained.rows[-1]["val/effective_rank"] <= MODEL.embed_width
    assert 0 <= trained.rows[-1]["val/batch_norm_gap"] < 1


def test_contradictions_are_named(data: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.batch_size 6 must be a multiple"):
        run(plan(data, tmp_path, pretrain_config(batch_size=6)))
    large = MODEL.model_copy(update={"resize_px": 40})
    with pytest.raises(ConfigError, match=r"images of 36 px, model\.resize_px is 40"):
        plan(data, tmp_path, model=large)


def test_recall_against_a_hand_written_matrix() -> None:
    similarity = np.array([[0.9, 0.8, 0.1], [0.5, 0.2, 0.4], [0.3, 0.3, 0.3]], dtype=np.float32)
    relevant = np.eye(3, dtype=np.bool_)
    assert recall_at(similarity, relevant, 1) == pytest.approx(1 / 3)  # the tie in row 2 counts against it
    assert recall_at(similarity, relevant, 2) == pytest.approx(1 / 3)
    assert recall_at(similarity, relevant, 3) == 1.0
    relevant[1] = [True, True, False]
    assert recall_at(similarity, relevant, 1) == pytest.approx(2 / 3)
