"""Whole runs of a tiny model: learning, resuming bit for bit, stopping, failing, exporting."""

import argparse
import inspect
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.infrastructure import ClusterConfig, HealthConfig
from align.config.model import ModelConfig
from align.config.params import profile_overrides
from align.config.recipe import FinetuneConfig, PretrainConfig, Recipe
from align.display.figure import png
from align.errors import ConfigError, GateError, StoppedError
from align.formats.shards import read_manifest
from align.model.dual_encoder import DualEncoder, load_model
from align.model.embedder import Embedder
from align.project import provenance
from align.training import fit_tokenizer, pretrain, step
from align.training import health as health_module
from align.training import plan as plan_module
from align.training import train as module
from align.training.lamb import Lamb, parameter_groups
from align.training.page import MAIN, PANELS, curves
from align.training.plan import Infrastructure
from align.training.stage import train_stage
from align.training.train import run
from align.training.validation import recall_at
from tests.support import ROOT, training_data
from tests.support.params import load_params
from tests.support.small_data import write_verdict
from tests.support.training_data import MODEL, RECIPE, TermAt, assert_same, finetune_config, plan, pretrain_config
from tests.support.training_project import write_project


@pytest.fixture(scope="module")
def stage(data, tmp_path_factory):
    """A folder with what the stage leaves of a run that nothing disturbs: `ck`, `model` and `reports`."""
    root = tmp_path_factory.mktemp("stage")
    train_stage(plan(data, root / "ck"), out=root / "model", reports=root / "reports")
    return root


@pytest.mark.parametrize(
    ("stop", "more"),
    [
        (2, {}),
        (4, {"optimiser": "muon", "crop_scale": [0.8, 1.2]}),
        (4, {"max_pairs": 31}),  # of 48 pairs
        (4, {"text_balance": 1.0}),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(data, stage, tmp_path, stop, more):
    recipe = pretrain_config(**more)
    uninterrupted = run(plan(data, tmp_path / "whole" if more else stage / "ck", recipe))
    with pytest.raises(StoppedError, match=f"stopped by SIGTERM after step {stop + 1} of 8"):
        run(plan(data, tmp_path / "parts", recipe, log=TermAt(stop)))
    resumed = plan(data, tmp_path / "parts", recipe)
    assert resumed.data.num_training_pairs == more.get("max_pairs", 48)
    assert_same(run(resumed), uninterrupted)
    assert [row["step"] for row in uninterrupted.rows] == [2, 4, 6, 8] and [*uninterrupted.found] == [4, 8]


def test_learns_what_the_pictures_are_called(data, tmp_path):
    model = MODEL.model_copy(update={"stochastic_depth": 0.0, "batch_norm_group": 16, "temperature_init": 0.5})
    recipe = pretrain_config(num_steps=30, batch_size=16, warmup_steps=5, validate_every_steps=30, log_every_steps=5)
    trained = run(plan(data, tmp_path, recipe, model=model))
    losses = [row["train/loss"] for row in trained.rows]
    assert losses[-1] < 0.85 * losses[0]
    assert trained.rows[-1]["val/image_to_text/recall@1"] >= 0.5  # chance 0.125
    assert trained.pairs_per_s > 0


def test_a_temperature_that_is_not_learned_stays_what_it_was(data, tmp_path, capsys, monkeypatch):
    model = MODEL.model_copy(update={"temperature_init": 0.5})
    monkeypatch.setattr(health_module, "STUCK_STEPS", 2)
    health = load_params().section(HealthConfig)
    found = {}
    for learns in (True, False):
        recipe = pretrain_config(num_steps=4, warmup_steps=1, log_every_steps=1, learn_temperature=learns)
        trained = run(plan(data, tmp_path, recipe, model=model, health=health))
        found[learns] = [row["train/temperature"] for row in trained.rows]
    assert found[False] == pytest.approx([0.5] * 4, rel=1e-6) and len({*found[False]}) == 1
    assert len({*found[True]}) == 4
    assert "stuck" not in capsys.readouterr().err


def test_the_sigmoid_loss_learns_it_too(data, tmp_path):
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
    with pytest.raises(ConfigError, match=r"negatives_share 0\.5 is of loss align"):
        run(replace(sigmoid, recipe=recipe.model_copy(update={"negatives_share": 0.5})))


def test_a_stage_writes_the_same_bytes_every_time(data, stage, tmp_path):
    for name, checkpoints in (("b", tmp_path / "ck"), ("c", stage / "ck")):  # c: from a finished run, exports only
        out, reports = tmp_path / name / "model", tmp_path / name / "reports"
        train_stage(plan(data, checkpoints), out=out, reports=reports)
    parts = (stage / part for part in ("model", "reports"))
    files = [path.relative_to(stage) for part in parts for path in part.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        ".align.json", "config.json", "model.safetensors", "metrics.jsonl", "curve.csv", "loss.png", "metrics.json",
        "report.html", "report.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    for path in files:
        assert {(folder / path).read_bytes() for folder in (tmp_path / "b", tmp_path / "c")} == {
            (stage / path).read_bytes()
        }, path


def test_every_curve_has_its_term_explained():
    assert all(term for term, _ in PANELS.values())


def test_a_curve_of_one_step_is_seen_and_no_panel_is_empty():
    def drawn(*rows):
        with Image.open(io.BytesIO(png(curves(rows, MAIN, {})))) as image:
            return image.width, int((np.asarray(image.convert("RGB")) == (0x1C, 0x23, 0x30)).all(axis=2).sum())

    recall = {"val/image_to_text/recall@10": 0.5, "val/text_to_image/recall@10": 0.4}
    one, inked = drawn({"step": 10, "train/loss": 3.0})
    both, _ = drawn({"step": 10, "train/loss": 3.0} | recall)
    assert inked > 20 and one < 0.6 * both


def test_the_page_shows_what_the_model_found_as_it_learned(data, tmp_path):
    """The answers kept at the last validation are those of the model that was saved."""
    watched = plan(data, tmp_path / "ck", pretrain_config(validate_every_steps=2))
    train_stage(watched, out=tmp_path / "model", reports=tmp_path / "reports")
    found = run(watched).found
    assert sorted(found) == [2, 4, 6, 8]
    val, embedder = watched.sources().val, Embedder.load(tmp_path / "model")
    everything = np.arange(val.num_images)
    images = embedder.embed_pixels(val.centre_crops(everything, MODEL.image_px))
    for asked, *nearest in found[8]:
        (text,) = embedder.embed_texts(val.texts(asked)[:1])
        assert nearest == np.argsort(-(images @ text), kind="stable")[:5].tolist()
    assert [asked for asked, *_ in found[8]] == everything.tolist()  # it has no more than ten
    page = (tmp_path / "reports" / "report.html").read_text(encoding="utf-8")
    assert [page.count(f"<td class=number>{step}</td>") for step in (2, 4, 6, 8)] == [8, 8, 0, 8]
    assert page.count('<figure class="') == 8 * 3 * 5
    shown = (row for step in (2, 4, 8) for asked, *nearest in found[step] for row in nearest if row == asked)
    assert page.count('<figure class="good"') == len([*shown])
    assert "recall@10 (by chance 100.0%)" in page  # of eight images


def test_fine_tuning_starts_from_the_given_model(data, stage, tmp_path):
    tuned = plan(data, tmp_path, finetune_config(learning_rate=1e-9, num_steps=1), initial=stage / "model")
    report = train_stage(tuned, out=tmp_path / "finetuned", reports=tmp_path / "r2")
    before, after = load_model(stage / "model").state_dict(), load_model(tmp_path / "finetuned").state_dict()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-5, rtol=1e-5)
    assert report.metrics["finetune/num_steps"] == 1
    assert json.loads((tmp_path / "finetuned" / "config.json").read_text())["stage"] == "finetune"
    embedder = Embedder.load(tmp_path / "finetuned")
    assert embedder.embed_texts(["a red bar", "left side in green and blue"]).shape == (2, MODEL.embed_width)


def test_a_run_digests_and_reads_the_model_it_starts_from_once(data, stage, tmp_path, monkeypatch):
    done = []

    def counting(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *some: done.append(name) or function(*some))

    counting(plan_module, "weights_digest")
    counting(module, "load_model")
    counting(provenance, "digest")
    tuned = plan(data, tmp_path, finetune_config(num_steps=1), initial=stage / "model")
    train_stage(tuned, out=tmp_path / "finetuned", reports=tmp_path / "r2")
    assert sorted(done) == ["digest", "load_model", "weights_digest"]
    done.clear()
    run(tuned)  # finished: its result is in its last checkpoint
    assert done == []


def test_what_varies_goes_to_live_logging_and_nowhere_else(data, tmp_path):
    live = []
    health = load_params().section(HealthConfig).model_copy(update={"device_tflops": 0.1, "price_per_hour": 3.0})
    recipe = pretrain_config(num_steps=2, warmup_steps=1, validate_every_steps=2)
    trained = run(plan(data, tmp_path, recipe, log=lambda row, step: live.append(row), health=health))
    varying = {"train/pairs_per_s", "train/device_hours", "train/mfu", "train/cost", "train/loader_wait_share",
               "train/alarms"}  # fmt: skip
    assert varying <= live[0].keys() and 0 < live[0]["train/mfu"] < 1
    assert not varying & {name for row in trained.rows for name in row}
    assert trained.rows[0]["train/gradient_norm"] > 0
    assert 1 < trained.rows[-1]["val/effective_rank"] <= MODEL.embed_width
    assert 0 <= trained.rows[-1]["val/batch_norm_gap"] < 1


def test_contradictions_are_named(data, tmp_path):
    with pytest.raises(ConfigError, match=r"pretrain\.batch_size 6 must be a multiple"):
        run(plan(data, tmp_path, pretrain_config(batch_size=6)))
    large = MODEL.model_copy(update={"resize_px": 40})
    with pytest.raises(ConfigError, match=r"images of 36 px, model\.resize_px is 40"):
        plan(data, tmp_path, model=large)


def test_recall_against_a_hand_written_matrix():
    similarity = np.array([[0.9, 0.8, 0.1], [0.5, 0.2, 0.4], [0.3, 0.3, 0.3]], dtype=np.float32)
    relevant = np.eye(3, dtype=np.bool_)
    assert recall_at(similarity, relevant, 1) == pytest.approx(1 / 3)  # the tie in row 2 counts against it
    assert recall_at(similarity, relevant, 2) == pytest.approx(1 / 3)
    assert recall_at(similarity, relevant, 3) == 1.0
    relevant[1] = [True, True, False]
    assert recall_at(similarity, relevant, 1) == pytest.approx(2 / 3)


#: Another value for each neutral field.
NEUTRAL = {
    "best_metric": "val/effective_rank", "checkpoint_every_steps": 1, "compile": True,
    "export": "best", "validate_on": ["concepts"],
    "gradient_checkpointing": "cheap", "keep_checkpoints": 1, "micro_batch": 4,
    "num_processes": 2, "num_threads": 2, "on_corrupt_shard": "quarantine", "shard_weights": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    return plan(data, tmp_path_factory.mktemp("checkpoints"))


def key(plan):
    return plan.folder().directory.name


def test_neutral_fields_keep_the_key(data, base):
    assert NEUTRAL.keys() == Recipe.neutral_fields
    assert base.recipe.deciding_values().keys() == Recipe.model_fields.keys() - Recipe.neutral_fields
    for name, value in NEUTRAL.items():
        assert getattr(base.recipe, name) != value
        assert key(plan(data, base.checkpoints, pretrain_config(**{name: value}))) == key(base), name


def test_what_pre_training_began_with_keeps_the_key_of_fine_tuning():
    """It is in the model of `finetune.from`, which counts by its weights."""
    given = {"path": "bert", "sha256": "a" * 64}
    plain, changed = finetune_config(), finetune_config(text_weights=given)
    assert plain != changed and plain.deciding_values() == changed.deciding_values()
    assert plain.deciding_values().keys() == FinetuneConfig.model_fields.keys() - FinetuneConfig.neutral_fields
    assert pretrain_config(text_weights=given).deciding_values()["text_weights"] == {"sha256": "a" * 64}


def test_values_and_the_model_change_the_key_and_prices_and_machines_keep_it(data, base):
    for change in ({"learning_rate": 0.01}, {"seed": 1}, {"flip": True}, {"precision": "float16"},
                   {"log_every_steps": 1}, {"max_pairs": 9}):  # fmt: skip
        assert key(plan(data, base.checkpoints, pretrain_config(**change))) != key(base), change
    wider = MODEL.model_copy(update={"embed_width": 24})
    assert key(plan(data, base.checkpoints, model=wider)) != key(base)
    params = load_params()
    priced = params.section(HealthConfig).model_copy(update={"price_per_hour": 3.0})
    cluster = params.section(ClusterConfig).model_copy(update={"num_nodes": 2, "rendezvous": "10.0.0.1:29500"})
    elsewhere = plan(data, base.checkpoints, health=priced, infrastructure=Infrastructure(cluster=cluster))
    assert key(elsewhere) == key(base)


def test_what_computes_changes_the_half_of_the_key_that_may_be_accepted(data, base, monkeypatch):
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


def test_words_keep_the_key_and_code_changes_it(data, base, tmp_path, monkeypatch):
    expected, file_of = key(base), provenance._file

    def with_edit(module, old, new):
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert old in text
        edited = tmp_path / f"{module}.py"
        edited.write_text(text.replace(old, new))
        monkeypatch.setattr(provenance, "_file", lambda name: edited if name == module else file_of(name))
        return key(plan(data, base.checkpoints))

    assert with_edit("align.training.train", "resuming from step", "continuing at step") == expected
    assert with_edit("align.training.lamb", '"""LAMB (', '# a comment\n"""Our LAMB (') == expected
    assert with_edit("align.training.state", "/ 2.0", "/ 3.0") != expected
    assert with_edit("align.model.batch_norm", "momentum=0.0", "momentum=0.1") != expected
    # weights do not use it
    assert with_edit("align.training.page", "size=9", "size=8") == expected


@pytest.mark.parametrize(("module", "out"), [(fit_tokenizer, "paths.tokenizer"), (pretrain, "paths.pretrained")])
def test_a_stage_refuses_shards_without_a_passed_verdict(module, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = training_data.write(tmp_path, num_train=8)
    write_project(tmp_path, data, training_data.RECIPE | {"num_steps": 1, "warmup_steps": 0})
    digest = read_manifest(data[0]).digest
    write_verdict(tmp_path / "reports" / "quality", passed=True, data=digest)  # of another gate
    write_verdict(tmp_path / "reports" / "quality_shards", passed=False, data=digest)
    params = load_params(tmp_path / "params.yaml", [f"{out}=made", "fit_tokenizer.vocab_size=90"])
    with pytest.raises(GateError, match="the quality gate failed"):
        module.main(params, argparse.Namespace(accept_code_change=None, data=[]))
    assert not (tmp_path / "made").exists()


#: Parameters in millions.
PUBLISHED = {"cc3m": 39.3, "ablation": 224.5, "coyo": 224.5, "paper": 873.4}


@pytest.mark.parametrize("profile", PUBLISHED)
def test_a_step_of_a_published_recipe(profile):
    """On the meta device: forward, backward and the update of a group of pairs."""
    params = load_params(overrides=profile_overrides(profile))
    config, recipe = params.section(ModelConfig), params.section(PretrainConfig)
    assert recipe.against(config, 1, 8) is None
    pairs = config.batch_norm_group
    with torch.device("meta"):
        model = DualEncoder(
            recipe.trained(config), params.section(FitTokenizerConfig).vocab_size,
            text_init_std=recipe.text_init_std, position_init_scale=recipe.position_init_scale,
        ).train()  # fmt: skip
        model.gradient_checkpointing = recipe.gradient_checkpointing
        pixels = torch.zeros(pairs, 3, config.image_px, config.image_px)
        images = model.vision_projection(model.vision_model(pixels, torch.zeros(pairs, model.vision_model.num_blocks)))
        ids = torch.zeros(pairs, config.max_tokens, dtype=torch.int64)
        texts = model.text_projection(model.text_model(ids)[:, 0])
        assert images.shape == texts.shape == (pairs, config.embed_width)
        ((images * texts).sum() / model.temperature).backward()  # type: ignore[no-untyped-call]  # untyped in torch
    missing = [name for name, param in model.named_parameters() if param.grad is None]
    assert not missing
    betas = (recipe.beta1, recipe.beta2)
    optimiser = Lamb(parameter_groups(model, recipe), weight_decay=recipe.weight_decay, betas=betas, eps=recipe.eps)
    optimiser.set_learning_rate(recipe.learning_rate)
    optimiser.step()
    assert len(optimiser.state) == len(list(model.parameters()))
    millions = sum(param.numel() for param in model.parameters()) / 1e6
    assert millions == pytest.approx(PUBLISHED[profile], abs=0.1)


@pytest.mark.numerics
def test_real_steps_of_cc3m(tmp_path):
    """B3 + Mini at 289 px on a batch of 16: half a minute."""
    shards, tokenizer = training_data.write(tmp_path, num_train=32, num_val=0, px=346)
    params = load_params(overrides=profile_overrides("cc3m"))
    changes = {
        "num_steps": 2, "warmup_steps": 1, "batch_size": 16, "micro_batch": None, "log_every_steps": 1,
        "validate_every_steps": 2, "checkpoint_every_steps": 2, "best_metric": None, "num_processes": 1,
    }  # fmt: skip
    recipe = params.section(PretrainConfig).model_copy(update=changes)
    trained = run(plan((shards, tokenizer), tmp_path / "ck", recipe, model=params.section(ModelConfig)))
    assert [row["step"] for row in trained.rows] == [1, 2] and all(0 < row["train/loss"] < 20 for row in trained.rows)


def test_from_the_verb_to_the_gradients_and_the_loss_is_a_short_way(data, tmp_path, monkeypatch):
    """Functions of ours on the stack, between the verb and them: who reads from one to the other opens so many."""
    write_project(tmp_path, data, RECIPE | {"num_steps": 2, "warmup_steps": 1})
    monkeypatch.chdir(tmp_path)
    ways = {}

    def noted(owner, name):
        function = getattr(owner, name)

        def call(*arguments, **more):
            frames = (frame for frame in inspect.stack() if Path(frame.filename).is_relative_to(ROOT / "align"))
            ways[name] = [frame.function for frame in frames if not frame.function.startswith("<")]
            return function(*arguments, **more)

        monkeypatch.setattr(owner, name, call)

    noted(module, "compute_gradients")
    noted(step, "align_loss")
    pretrain.main(load_params(tmp_path / "params.yaml"), argparse.Namespace(data=(), accept_code_change=None))
    to_gradients, to_loss = (way[: way.index("main") + 1] for way in (ways["compute_gradients"], ways["align_loss"]))
    assert len(to_gradients) <= 6, to_gradients
    assert len(to_loss) <= 8, to_loss
