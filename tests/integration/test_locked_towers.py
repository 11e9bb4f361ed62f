"""A locked tower stays as it is to the bit, costs no gradient and no moments, and the rest learns as always."""

import pytest
import torch

from align.errors import StoppedError
from align.model.dual_encoder import DualEncoder, load_model
from align.training.stage import train_stage
from align.training.train import run
from tests.support import training_data
from tests.support.training_data import MODEL, TermAt, finetune_config, plan, pretrain_config

CHANGES = {"num_steps": 3, "validate_every_steps": 3, "learning_rate": 2e-3}
TOWERS = {"image": "vision_model.", "text": "text_model."}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Shards and tokenizer, and a model to start from, with running statistics."""
    root = tmp_path_factory.mktemp("start")
    data = training_data.write(root)
    train_stage(plan(data, root / "ck", pretrain_config(num_steps=3)), out=root / "model", reports=root / "reports")
    return data, root / "model"


def locked(start, checkpoints, **changes):
    data, model = start
    return plan(data, checkpoints, finetune_config(**(CHANGES | changes)), initial=model)


def trained(plan):
    found = run(plan)
    assert found is not None
    return found


@pytest.mark.parametrize("which", ["image", "text"])
def test_a_locked_tower_stays_as_it_is_and_all_else_learns(which, start, tmp_path):
    before = load_model(start[1]).state_dict()
    made = locked(start, tmp_path, locked=which)
    result = trained(made)
    after = result.model.state_dict()
    for name, value in before.items():
        if name.startswith(TOWERS[which]):
            assert torch.equal(value, after[name]), name  # its running statistics, too
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    rest = {name for name, _ in load_model(start[1]).named_parameters() if not name.startswith(TOWERS[which])}
    assert rest - moved <= {"text_model.embeddings.word_embeddings.weight"} and "log_temperature" in moved
    assert ("val/batch_norm_gap" in result.rows[-1]) == (which == "text")
    saved = made.folder().load_latest(torch.device("cpu"))
    assert saved is not None and len(saved["optimiser"]["state"]) == len(rest)


@pytest.mark.parametrize("which", ["image", "text"])
def test_how_the_work_is_divided_changes_nothing(which, start, tmp_path):
    plain = trained(locked(start, tmp_path / "plain", locked=which))
    changes = {"micro_batch": {"micro_batch": 4}, "blocks": {"gradient_checkpointing": "blocks"}, "stopped": {}}
    for name, change in changes.items():
        other = locked(start, tmp_path / name, locked=which, **change)
        if name == "stopped":
            with pytest.raises(StoppedError, match="stopped by SIGTERM"):
                run(training_data.with_log(other, TermAt(2)))
        for one, two in zip(plain.rows, trained(other).rows, strict=True):
            assert one == pytest.approx(two, rel=1e-12 if name == "stopped" else 1e-4), name


@pytest.mark.parametrize("which", ["image", "text"])
@pytest.mark.parametrize("recompute", ["none", "cheap", "blocks"])
def test_nothing_of_a_locked_tower_is_kept_for_backward(which, recompute):
    model = DualEncoder(MODEL.model_copy(update={"stochastic_depth": 0.5}), 50)
    model.gradient_checkpointing = recompute  # type: ignore[assignment]  # mypy sees a str
    pixels, draws = torch.rand(4, 3, 32, 32), torch.zeros(4, model.vision_model.num_blocks)
    ids = torch.arange(8).view(2, 4)

    def kept():
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value.nbytes), lambda value: value):
            if which == "image":
                model.encode_image(pixels, draws)
            else:
                model.encode_text(ids, torch.ones_like(ids))
        return sum(saved)

    model.train()
    free = kept()
    model.lock(which)
    assert model.training and kept() < free / 4  # of the projection and the norm of an embedding
    model.eval(), model.train()
    assert kept() < free / 4
    tower = model.vision_model if which == "image" else model.text_model
    assert not tower.training and not any(param.requires_grad for param in tower.parameters())
    model.lock("none")
    assert tower.training and kept() == free and all(param.requires_grad for param in model.parameters())


def test_a_tower_without_weights_to_start_from_is_not_locked():
    with pytest.raises(ValueError, match="locked: image needs image_weights"):
        pretrain_config(locked="image")
    with pytest.raises(ValueError, match="locked: text needs text_weights"):
        pretrain_config(locked="text")
    given = {"path": "b0.pth", "sha256": "a" * 64}
    recipe = pretrain_config(locked="image", image_weights=given)
    wrong = recipe.against(MODEL, 1, 1)
    assert wrong is not None and "image_weights need model.image_tower: timm:NAME" in wrong
    assert recipe.against(MODEL.model_copy(update={"image_tower": "timm:test_vit"}), 1, 1) is None
    wrong = pretrain_config(text_weights=given).against(MODEL, 1, 1)
    assert wrong is not None and "text_weights need a model.text_tower of transformers" in wrong
