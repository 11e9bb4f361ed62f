"""Towers of timm and transformers compute what their library does, and train, stop and travel as our own do."""

import functools
import sys

import onnxruntime
import pytest
import timm
import torch
import transformers
from pydantic import ValidationError

from align.config.model import ModelConfig
from align.errors import ConfigError, DataError, StoppedError
from align.evaluate.embed import ModelTowers
from align.model.batch_norm import BatchNorm2d
from align.model.dual_encoder import DualEncoder, load_model, save_model
from align.model.embedder import Embedder
from align.model.image_tower import estimate_statistics
from align.model.library_towers import StochasticDepth
from align.model.tokenizer import TextTokenizer
from align.pipeline import estimate
from align.release.exchange import onnx
from align.release.exchange.export import ParitySamples, export
from align.release.packaging.package import package
from align.training.ranks.process_group import launch
from align.training.stage import train_stage
from align.training.train import run
from tests.support import training_data
from tests.support.pictures import blurred_png
from tests.support.rank_runs import ended_with, last
from tests.support.training_data import MODEL, TermAt, finetune_config, plan, pretrain_config

SIGLIP = {
    "model_type": "siglip_text_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2,
}  # fmt: skip
BERT = SIGLIP | {"model_type": "bert", "hidden_dropout_prob": 0.5}
ROBERTA = SIGLIP | {"model_type": "roberta", "max_position_embeddings": 17}
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
NUM_WORDS = 50


def shaped(image="timm:test_vit", text=SIGLIP, pooling="last", **more):
    towers = {"image_tower": image, "text_tower": {"config": text, "pooling": pooling}}
    return ModelConfig.model_validate(MODEL.model_dump() | towers | more)


def built(config):
    torch.manual_seed(0)
    return DualEncoder(config, NUM_WORDS)


def test_stochastic_depth_drops_whole_samples():
    depth = StochasticDepth(0.25).train()
    depth.keep = torch.tensor([0.0, 4 / 3, 4 / 3])
    out = depth(torch.ones(3, 2, 2, 2))
    assert out[:, 0, 0, 0].tolist() == pytest.approx([0.0, 4 / 3, 4 / 3])
    assert torch.equal(out[0], torch.zeros(2, 2, 2))
    assert torch.equal(depth.eval()(torch.ones(3, 2, 2, 2)), torch.ones(3, 2, 2, 2))


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_resnet"])
@torch.no_grad()
def test_an_image_tower_computes_what_timm_does(name):
    tower = built(shaped(f"timm:{name}", stochastic_depth=0.5)).vision_model
    pixels = torch.rand(8, 3, 40, 48)
    estimate_statistics(tower, [pixels * 2 - 1])
    theirs = timm.create_model(name, num_classes=0, **({"dynamic_img_size": True} if name == "test_vit" else {})).eval()
    states = {
        key.removeprefix("model."): value for key, value in tower.state_dict().items() if key.startswith("model.")
    }
    theirs.load_state_dict(states)
    mean, std = (torch.tensor(theirs.pretrained_cfg[part])[:, None, None] for part in ("mean", "std"))
    pixels = pixels[:, :, :32]  # 32 x 48: of no size that timm names
    torch.testing.assert_close(tower.eval()(pixels * 2 - 1), theirs((pixels - mean) / std), atol=1e-5, rtol=1e-5)
    norms = [module for module in tower.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert bool(norms) == (name != "test_vit") and all(type(norm) is BatchNorm2d and norm.group == 4 for norm in norms)


@pytest.mark.parametrize(
    ("text", "kind"),
    [(SIGLIP, "SiglipTextModel"), (BERT, "BertModel"), (T5, "T5EncoderModel"), (ROBERTA, "RobertaModel")],
)
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
@torch.no_grad()
def test_a_text_tower_computes_what_transformers_does(text, kind, pooling):
    model = built(shaped(text=text, pooling=pooling)).train()  # dropout is off in training, too
    ids = torch.randint(1, NUM_WORDS, (3, MODEL.max_tokens))
    lengths = [MODEL.max_tokens, 2, 4]
    theirs = getattr(transformers, kind)(model.text_model.model.config).eval()
    assert theirs.load_state_dict(model.text_model.model.state_dict(), strict=False).unexpected_keys == []
    found = model.text_features(ids, torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        alone = theirs(input_ids=ids[row : row + 1, :length]).last_hidden_state[0]
        expected = {"first": alone[0], "last": alone[-1], "mean": alone.mean(0)}[pooling]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_every_weight_learns_and_recomputed_layers_drop_the_same_branches(name):
    model = built(shaped(f"timm:{name}", BERT, "first", stochastic_depth=0.5)).train()
    for param in model.vision_model.parameters():
        if param.ndim == 1:  # some begin as zeros, which make a branch silent
            torch.nn.init.uniform_(param, 0.5, 1.0)
    pixels, draws = torch.rand(8, 3, 32, 32), torch.rand(8, model.vision_model.num_blocks)
    ids, found = torch.arange(1, 13).view(2, 6), []
    for what in ("none", "blocks"):
        model.gradient_checkpointing = what  # type: ignore[assignment]  # mypy sees a str
        model.zero_grad()
        parts = [model.encode_image(pixels[rows], draws[rows]) for rows in (slice(4), slice(4, 8))]
        texts = model.encode_text(ids, torch.ones_like(ids))
        (torch.cat([*parts, texts]) * torch.arange(1.0, 17)).sum().backward()
        found.append({key: param.grad for key, param in model.named_parameters() if key != "log_temperature"})
    for key, grad in found[0].items():
        assert grad is not None, key
        torch.testing.assert_close(found[1][key], grad)
    whole = model.encode_image(pixels)
    assert not torch.allclose(torch.cat([part.detach() for part in parts]), whole)  # some branches were dropped


@pytest.mark.parametrize(("changes", "said"), [
    ({"image": "timm:test_vi"}, r"no such model; names like it: .*test_vit"),
    ({"image": "timm:test_vit.foo"}, r"image_tower timm:test_vit.foo at image_px 32: Invalid pretrained tag \(foo\)"),
    ({"image": "timm:mixer_s16_224"}, "at image_px 32: Input height .32. doesn't match model .224."),
    ({"text": {"model_type": "brt"}}, "model.text_tower: transformers .* has no model_type brt"),
    ({"text": BERT | {"hidden_size": 15}}, "model.text_tower bert: The hidden size .15. is not a multiple"),
    ({"text": BERT | {"max_position_embeddings": 8}}, "bert has 8 positions, model.max_tokens is 16"),
    ({"text": ROBERTA | {"max_position_embeddings": 16}}, "roberta has 15 positions, model.max_tokens is 16"),
    (
        {"text": ROBERTA | {"max_position_embeddings": 17, "pad_token_id": 1}},
        "roberta has 15 positions, model.max_tokens is 16",
    ),
])  # fmt: skip
def test_what_is_no_tower_is_one_line(changes, said):
    with pytest.raises(ConfigError, match=said) as error:
        built(shaped(**changes))
    assert "\n" not in str(error.value)


def test_a_name_that_would_be_fetched_is_refused(monkeypatch):
    for name in ("timm:hf-hub:timm/test_vit.r160_in1k", "timm:local-dir:/tmp", "timm:../x"):
        with pytest.raises(ValidationError, match="should match pattern"):
            shaped(name)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm: pip install 'align-mlops\[timm\]'"):
        built(shaped())


def test_plan_counts_what_the_model_holds():
    config = shaped("timm:test_resnet", BERT)
    counted, wider = (
        estimate.estimate(shape, NUM_WORDS, pretrain_config(), num_ranks=1, on_gpu=False)
        for shape in (config, config.model_copy(update={"image_px": 36}))
    )
    assert counted.num_parameters == sum(param.numel() for param in built(config).parameters())
    assert 0 < counted.activation_bytes_per_pair < wider.activation_bytes_per_pair


CHANGES = {"num_steps": 4, "validate_every_steps": 4, "optimiser": "adamw", "learning_rate": 1e-3}
MIXED = shaped("timm:test_resnet", stochastic_depth=0.5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("library")
    data = training_data.write(root)
    made = plan(data, root / "one", pretrain_config(**CHANGES), model=MIXED)
    train_stage(made, out=root / "model", reports=root / "reports")
    return data, root


def test_a_stopped_run_resumes_to_the_byte_and_parts_change_nothing(trained, tmp_path):
    data, root = trained
    expected = load_model(root / "model").state_dict()
    for name, change in {"stopped": {}, "parts": {"micro_batch": 4, "gradient_checkpointing": "blocks"}}.items():
        other = plan(data, tmp_path / name, pretrain_config(**(CHANGES | change)), model=MIXED)
        if name == "stopped":
            with pytest.raises(StoppedError, match="stopped by SIGTERM"):
                run(training_data.with_log(other, TermAt(2)))
        result = run(other)
        for key, value in result.model.state_dict().items():
            if name == "stopped":
                assert torch.equal(value, expected[key]), key
            else:
                # Adam's first steps are as large for a gradient that is almost 0, whose sign rounding decides
                other_digits = ~torch.isclose(value, expected[key], atol=1e-4, rtol=1e-3)
                assert float(other_digits.float().mean()) < 0.01, key


def test_another_version_of_a_library_computes_other_things(trained, tmp_path, monkeypatch):
    """So no run goes on under it, and no embedding is kept."""
    data, root = trained

    def keys():
        return plan(data, tmp_path).name, plan(data, tmp_path, model=MIXED).name, ModelTowers(root / "model").decides

    before = keys()
    monkeypatch.setattr("align.config.model.version", lambda name: f"{name} 0")
    after = keys()
    assert after[0] == before[0] and after[1] != before[1]
    assert before[2][:-3] == after[2][:-3] and after[2][-3:-1] == ["timm 0", "transformers 0"] != before[2][-3:-1]


def _work(plans, ranks):
    return [ended_with(each, ranks) for each in plans]


@pytest.mark.tools
def test_two_ranks_are_one(trained, tmp_path):
    data, root = trained
    two = {"whole": {}, "sharded": {"shard_weights": True}}
    plans = [
        plan(data, tmp_path / name, pretrain_config(**CHANGES, num_processes=2, **more), model=MIXED)
        for name, more in two.items()
    ]
    launch(functools.partial(_work, plans), 2, 1, None)
    expected = last(root, "one")
    for name in two:
        saved = last(tmp_path, name)
        for key, value in saved["model"].items():
            torch.testing.assert_close(value, expected["model"][key], atol=1e-4, rtol=1e-3)


@pytest.mark.tools
def test_the_model_is_tuned_at_another_size_and_travels(trained, tmp_path):
    (shards, tokenizer), root = trained
    larger = finetune_config(image_px=36, resize_px=36)
    start = load_model(root / "model").config
    made = plan((shards, tokenizer), tmp_path, larger, model=larger.trained(start), initial=root / "model")
    train_stage(made, out=tmp_path / "model", reports=tmp_path / "reports")
    assert load_model(tmp_path / "model").config.image_px == 36
    samples = ParitySamples({"one": blurred_png(0, (40, 50))}, ["a red bar"])
    with pytest.raises(DataError, match="text tower siglip_text_model is not ALIGN's BERT"):
        export("hf", model_dir=tmp_path / "model", samples=samples, out=tmp_path / "hf")
    assert export("align", model_dir=tmp_path / "model", samples=samples, out=tmp_path / "copy").image < 1e-5
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/metrics.json").write_text("{}\n")
    package(
        model=tmp_path / "model", evaluation=tmp_path / "evaluation", out=tmp_path / "packed",
        reports=tmp_path / "packing",
    )  # fmt: skip
    required = (tmp_path / "packed/requirements.txt").read_text().split()
    assert "timm>=1.0.20" in required and "transformers>=5.0" in required
    texts = [
        Embedder.load(folder).embed_texts(["a bar"])
        for folder in (tmp_path / "model", tmp_path / "packed/artifacts/model")
    ]
    assert (texts[0] == texts[1]).all()


@pytest.mark.tools
@torch.no_grad()
def test_t5_becomes_an_onnx_program(tmp_path):
    model = built(shaped(text=T5, pooling="mean")).eval()
    with onnx._quiet():
        program = onnx._traced(onnx._plain(model))["text_encoder"]
        onnx._save_onnx(program, tmp_path / "text_encoder.onnx")
    ids = torch.randint(1, NUM_WORDS, (3, 7))
    mask = (torch.arange(7) < torch.tensor([7, 2, 4])[:, None]).long()
    (found,) = onnxruntime.InferenceSession(tmp_path / "text_encoder.onnx").run(
        None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    )
    torch.testing.assert_close(torch.from_numpy(found), model.encode_text(ids, mask), atol=1e-5, rtol=1e-5)


def test_a_picture_size_that_the_tower_refuses_is_said_before_work(tmp_path):
    config = shaped("timm:mixer_s32_224", image_px=224, resize_px=224)
    said = "timm:mixer_s32_224 at image_px 32: Input height .32. doesn't match model .224."
    smaller = config.model_copy(update={"image_px": 32, "resize_px": 32})
    made = plan(training_data.write(tmp_path, px=32), tmp_path, model=smaller)
    with pytest.raises(ConfigError, match=said):
        run(made)
    with torch.device("meta"):
        model = DualEncoder(config, NUM_WORDS)
    tokenizer = TextTokenizer.load(tmp_path / "tokenizer", config.max_tokens)
    with pytest.raises(ConfigError, match=said):
        Embedder(model, tokenizer, 32)


def test_a_table_with_two_names_is_saved(tmp_path):
    model = built(shaped(text=T5))
    save_model(model, tmp_path, stage="pretrain")
    again = load_model(tmp_path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
