"""What training takes on cards that are not here: against published rates, and by hand where it is simple."""

import functools
import json
import re

import pytest
import torch
from torch.utils._pytree import tree_leaves

from align.cli import main
from align.config.params import profile_overrides
from align.errors import ConfigError
from align.pipeline import cards
from align.pipeline.cards import OF_BANDWIDTH, OF_PEAK, Card, card_named, limited, reckon
from align.pipeline.work import Work
from tests.support import ROOT
from tests.support.params import PARAMS_FILE, load_params

H100 = Card(80, 989, 3.35)


def efficientnet(width, depth, px, pairs):
    from transformers import EfficientNetConfig, EfficientNetModel

    config = EfficientNetConfig(width_coefficient=width, depth_coefficient=depth, hidden_dim=int(1280 * width))
    return _counted(lambda: EfficientNetModel(config), pixel_values=_pixels(pairs, px))


@functools.cache
def clip(layers, width, patch, text, pairs, again=False):
    """A CLIP of 224 px and 77 tokens, each attention as two products; `again`: gradient checkpointing."""
    from transformers import CLIPConfig, CLIPModel

    towers = [
        {"hidden_size": each, "intermediate_size": size, "num_hidden_layers": number, "num_attention_heads": heads,
         "hidden_act": "gelu"}
        for each, size, number, heads in (
            (width, 6144 if width == 1408 else 4 * width, layers, 16 if width > 768 else 12),
            (text[1], 4 * text[1], text[0], text[1] // 64),
        )
    ]  # fmt: skip
    towers[0] |= {"patch_size": patch, "image_size": 224}
    config = CLIPConfig(projection_dim=text[1], vision_config=towers[0], text_config=towers[1])

    def make():
        model = CLIPModel._from_config(config, attn_implementation="eager")
        if again:
            model.activation_checkpointing_enable()
        return model

    ids = torch.ones(pairs, 77, dtype=torch.int64, device="meta")
    return _counted(make, pixel_values=_pixels(pairs, 224), input_ids=ids)


def _pixels(pairs, px):
    return torch.zeros(pairs, 3, px, px, dtype=torch.bfloat16, device="meta")


def _counted(make, **inputs):
    with torch.device("meta"):
        model = make().train().to(torch.bfloat16)
        with Work() as work:
            found = [each for each in tree_leaves(dict(model(**inputs))) if isinstance(each, torch.Tensor)]
            learn = [each for each in found if each.requires_grad]
            torch.autograd.backward(learn, [torch.ones_like(each) for each in learn])
    return work


#: Pairs, or images, a second of one card. EfficientNet: NVIDIA DeepLearningExamples, PyTorch, one A100 80GB, AMP.
#: B/16 and L/14: open_clip on A100 40GB, samples_per_sec / gpus of trained_models_info.csv, of "Reproducible scaling
#: laws for contrastive language-image learning" (Cherti et al., 2023). g/14: NVIDIA NeMo's page on CLIP, 8 cards.
PUBLISHED = {
    "B0, 224 px, A100": (lambda: efficientnet(1.0, 1.0, 224, 256), 256, "A100", 2489),
    "B4, 380 px, A100": (lambda: efficientnet(1.4, 1.8, 380, 128), 128, "A100", 331),
    "ViT-B/16, A100 40GB": (lambda: clip(12, 768, 16, (12, 512), 256), 256, "A100 40GB", 134_240 / 344),
    "ViT-L/14, A100 40GB": (lambda: clip(24, 1024, 14, (12, 768), 112, True), 112, "A100 40GB", 60_328 / 768),
    "ViT-g/14, A100": (lambda: clip(40, 1408, 14, (24, 1024), 64), 64, "A100", 559 / 8),
    "ViT-g/14, H100": (lambda: clip(40, 1408, 14, (24, 1024), 64), 64, "H100", 935 / 8),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rates_are_met_within_30_per_cent(name):
    count, pairs, called, published = PUBLISHED[name]
    card = card_named(called)
    assert published / (pairs / limited(count(), card)[2]) == pytest.approx(1.0, abs=0.3)


def test_an_operation_takes_as_long_as_its_products_or_its_bytes():
    card = Card(80, 100.0, 1.0)
    with torch.device("meta"), Work() as work:
        large, thin = torch.empty(4096, 4096), torch.empty(4096, 1)
        large @ large
        large @ thin
        large.t()
    assert [name for name, *_ in work.done] == ["empty", "empty", "mm", "mm"]
    products, moved = 2 * 4096**3 / (100e12 * OF_PEAK), 4 * (4096**2 + 2 * 4096) / (1e12 * OF_BANDWIDTH)
    assert limited(work, card)[2] == pytest.approx(products + moved)
    assert limited(work, card, 0.5)[2] == pytest.approx(2 * products + moved)


@pytest.mark.parametrize(("profile", "gflop", "gb"), [("cc3m", 14, 23.5), ("coyo", 111, 41), ("paper", 806, 3)])
def test_a_profile_on_eight_cards(profile, gflop, gb):
    params = load_params(overrides=[*profile_overrides(profile), "finetune.num_steps=0"])
    found = reckon(params, H100, 8)["pretrain"]
    assert found["operations_per_pair"] / 1e9 == pytest.approx(gflop, abs=0.5)
    assert found["rank_bytes"] / 1e9 == pytest.approx(gb, abs=0.5)
    products = found["operations_per_pair"] / (H100.tflops * 1e12 * OF_PEAK)
    moved = found["bytes_per_pair"] / (H100.tb_per_s * 1e12 * OF_BANDWIDTH)
    assert max(products, moved) * (1 - 1e-9) < 8 / found["pairs_per_s"] < products + moved
    assert found["num_pairs"] == params.values["pretrain"]["num_steps"] * params.values["pretrain"]["batch_size"]


def test_what_takes_longer_is_reckoned_longer():
    def small(*overrides):
        return reckon(load_params(overrides=["pretrain.num_processes=null", *overrides]), H100, 2)

    def pretrain(override):
        (only,) = small("finetune.num_steps=0", f"pretrain.{override}").values()
        return only

    both = small()
    plain = both["pretrain"]
    assert both.keys() == {"pretrain", "finetune"}
    again = pretrain("micro_batch=32")["operations_per_pair"]
    assert again == pytest.approx(4 / 3 * plain["operations_per_pair"], rel=0.05)
    assert pretrain("gradient_checkpointing=blocks")["pairs_per_s"] < plain["pairs_per_s"]
    assert pretrain("precision=float32")["pairs_per_s"] < 0.7 * plain["pairs_per_s"]
    assert pretrain("image_px=32")["pairs_per_s"] > 1.1 * plain["pairs_per_s"]


def test_what_is_reckoned_is_said(capsys):
    params = ["--params", str(PARAMS_FILE), "--profile", str(ROOT / "infra/profiles/cc3m.yaml")]
    command = ["plan", *params, "--set", "finetune.num_steps=0", "--for"]
    assert main([*command, "8xH100", "--price", "2.50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["pretrain"]
    assert main([*command, "8xH100", "--price", "2.50"]) == 0
    text = capsys.readouterr().out
    hours = found["num_pairs"] / found["pairs_per_s"] / 3600
    assert f"reckoned: {found['pairs_per_s']:,.0f} pairs/s, " in text
    assert f", {hours * 20:,.0f} at 2.5 a card and hour" in text
    assert "too much" not in text and "Assumed: " in text and "does not fit" not in text
    gflop, mb, rate = (float(re.search(said, text)[1].replace(",", "")) for said in (
        r"limits ([\d.]+) GFLOP", r"the bandwidth ([\d.,]+) MB", r"reckoned: ([\d,]+) pairs",
    ))  # fmt: skip
    assert rate == pytest.approx(8 / (gflop / (989e3 * 0.6) + mb / (3.35e6 * 0.4)), rel=0.02)
    weights, pairs, each = re.search(r"moments ([\d.]+) GB, (\d+) pairs at a time of ([\d.,]+) MB", text).groups()
    assert found["rank_bytes"] / 1e9 == pytest.approx(float(weights) + int(pairs) * float(each) / 1e3, rel=0.02)
    assert main([*command, "1xL4", "--set", "pretrain.micro_batch=512"]) == 0
    text = capsys.readouterr().out
    assert "too much: lower pretrain.micro_batch" in text and "a card and hour" not in text


def test_a_batch_that_does_not_divide_among_the_cards_is_the_nearest_that_does(capsys):
    params = load_params(overrides=["pretrain.num_processes=null", "pretrain.batch_size=256", "finetune.num_steps=0"])
    cards.main(params, "6xH100", None, as_json=False)
    text = capsys.readouterr().out
    assert " steps of 288: " in text and "pairs; pretrain.batch_size 256 does not fit" in text
    assert "pairs/s, less than a second" in text
    cards.main(params, "100xH100", None, as_json=False)
    assert " steps of 1,600: " in capsys.readouterr().out


@pytest.mark.parametrize(("name", "peak"), [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121),
    ("NVIDIA L40S", 362), ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA H200", 989), ("Tesla T4", None),
    ("NVIDIA L40", None), ("NVIDIA RTX A1000", None), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ("NVIDIA H200 NVL", None), ("NVIDIA H100 NVL", 835), ("NVIDIA GH200 480GB", 989), ("NVIDIA GB200", None),
    ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA A10G", 70),
])  # fmt: skip
def test_peaks_by_name(name, peak):
    card = card_named(name)
    assert (None if card is None else card.tflops) == peak


@pytest.mark.parametrize(("asked", "reason"), [
    ("8xT4", "known are H100-PCIe"), ("H100", "expected such as 8xH100"), ("0xH100", "expected"),
])  # fmt: skip
def test_what_cannot_be_is_refused(asked, reason):
    with pytest.raises(ConfigError, match=reason):
        cards.main(load_params(overrides=["pretrain.num_processes=null"]), asked, None, as_json=False)
