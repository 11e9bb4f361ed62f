"""The key of a run: every change that could alter the result alters it, and no other change does."""

from pathlib import Path

import pytest
import torch

from align.config.infrastructure import ClusterConfig, HealthConfig
from align.config.recipe import FinetuneConfig, Recipe
from align.project import provenance
from align.training.run_plan import Infrastructure, TrainingPlan
from tests.support import ROOT, training_data
from tests.support.params import load_params
from tests.support.training_data import MODEL, finetune_config, plan, pretrain_config

#: Another value for each neutral field.
NEUTRAL: dict[str, object] = {
    "best_metric": "val/effective_rank", "checkpoint_every_steps": 1, "compile": True, "cudnn_benchmark": True,
    "gradient_checkpointing": "cheap", "keep_checkpoints": 1, "micro_batch": 4, "num_loader_processes": 2,
    "num_loader_threads": 3,
    "num_processes": 2, "num_threads": 2, "on_corrupt_shard": "quarantine", "shard_weights": True,
    "store_patience_s": 60.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return training_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> TrainingPlan:
    return plan(data, tmp_path_factory.mktemp("checkpoints"))


def key(plan: TrainingPlan) -> str:
    return plan.folder().directory.name


def test_neutral_fields_keep_the_key(data: tuple[Path, Path], base: TrainingPlan) -> None:
    assert NEUTRAL.keys() == Recipe.neutral_fields
    assert base.recipe.deciding_values().keys() == Recipe.model_fields.keys() - Recipe.neutral_fields
    for name, value in NEUTRAL.items():
        assert getattr(base.recipe, name) != value
        assert key(plan(data, base.checkpoints, pretrain_config(**{name: value}))) == key(base), name


def test_what_pre_training_began_with_keeps_the_key_of_fine_tuning() -> None:
    """It is in the model of `finetune.from`, which counts by its weights."""
    given = {"path": "bert", "sha256": "a" * 64}
    plain, changed = finetune_config(), finetune_config(text_weights=given)
    assert plain != changed and plain.deciding_values() == changed.deciding_values()
    assert plain.deciding_values().keys() == FinetuneConfig.model_fields.keys() - FinetuneConfig.neutral_fields
    assert pretrain_config(text_weights=given).deciding_values()["text_weights"] == {"sha256": "a" * 64}


@pytest.mark.parametrize(
    "change", [{"learning_rate": 0.01}, {"seed": 1}, {"tf32": True}, {"precision": "float16"}, {"log_every_steps": 1}]
)
def test_other_fields_change_the_key(data: tuple[Path, Path], base: TrainingPlan, change: dict[str, object]) -> None:
    assert key(plan(data, base.checkpoints, pretrain_config(**change))) != key(base)


def test_the_model_changes_the_key(data: tuple[Path, Path], base: TrainingPlan) -> None:
    wider = MODEL.model_copy(update={"embed_width": 24})
    assert key(plan(data, base.checkpoints, model=wider)) != key(base)


def test_prices_and_machines_keep_the_key(data: tuple[Path, Path], base: TrainingPlan) -> None:
    params = load_params()
    priced = params.section(HealthConfig).model_copy(update={"price_per_hour": 3.0})
    cluster = params.section(ClusterConfig).model_copy(update={"num_nodes": 2, "rendezvous": "10.0.0.1:29500"})
    elsewhere = plan(data, base.checkpoints, health=priced, infrastructure=Infrastructure(cluster=cluster))
    assert key(elsewhere) == key(base)


def test_what_computes_changes_the_half_of_the_key_that_may_be_accepted(
    data: tuple[Path, Path], base: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's version and the kind of device; not the build of the same version, nor how many devices there are."""
    values, _, code = key(base).rpartition("-")
    version = torch.__version__.partition("+")[0]
    for other, same in ((f"{version}+cu999", True), ("9.9.9+cpu", False)):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "__version__", other)
            now, _, of_code = key(plan(data, base.checkpoints)).rpartition("-")
            assert now == values and (of_code == code) is same, other
    available = torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not available)
    now, _, of_code = key(plan(data, base.checkpoints)).rpartition("-")
    assert now == values and of_code != code


def test_words_keep_the_key_and_code_changes_it(
    data: tuple[Path, Path], base: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, file_of = key(base), provenance._file

    def with_edit(module: str, old: str, new: str) -> str:
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert old in text
        edited = tmp_path / f"{module}.py"
        edited.write_text(text.replace(old, new))
        monkeypatch.setattr(provenance, "_file", lambda name: edited if name == module else file_of(name))
        return key(plan(data, base.checkpoints))

    assert with_edit("align.training.run", "resuming from step", "continuing at step") == expected
    assert with_edit("align.training.lamb", '"""LAMB (', '# a comment\n"""Our LAMB (') == expected
    assert with_edit("align.training.loop", "/ 2.0", "/ 3.0") != expected
    assert with_edit("align.model.batch_norm", "momentum=0.0", "momentum=0.1") != expected
    # weights do not use it
    assert with_edit("align.training.report", "figsize=(9, 3.2)", "figsize=(8, 3.2)") == expected
