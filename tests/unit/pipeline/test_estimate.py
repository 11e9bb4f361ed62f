"""What a run needs, counted without memory for it, against what was measured."""

import pytest
import torch

from align.config.model import ModelConfig
from align.config.params import profile_overrides
from align.config.recipe import PretrainConfig
from align.model.dual_encoder import DualEncoder
from align.pipeline.estimate import Device, estimate, needs
from align.training.state import new_state
from tests.support import ROOT
from tests.support.params import load_params


def of(*overrides, profile=None, num_ranks=1, on_gpu=True):
    params = load_params(overrides=[*profile_overrides(profile, ROOT), *overrides])
    vocab_size = params.values["fit_tokenizer"]["vocab_size"]
    recipe = params.section(PretrainConfig)
    return estimate(params.section(ModelConfig), vocab_size, recipe, num_ranks=num_ranks, on_gpu=on_gpu)


def on_cpu(model, recipe):
    """Of one rank, for a vocabulary of 500 words."""
    return estimate(model, 500, recipe, num_ranks=1, on_gpu=False)


def test_the_paper_s_ablation_model_needs_what_was_measured():
    needs = of(profile="ablation", num_ranks=1024)
    assert needs.num_parameters == pytest.approx(62.14e6 + 162.25e6, rel=0.001)  # computed in the paper's tables
    assert needs.activation_bytes_per_pair / 2**20 == pytest.approx(277, rel=0.01)  # docs/scale.md
    assert needs.pairs_at_a_time == 16  # 16,384 over 1,024 ranks; micro_batch is larger


def test_parameters_are_those_of_the_model():
    params = load_params()
    model = DualEncoder(params.section(ModelConfig), 500)
    lamb, muon = (
        load_params(overrides=[f"pretrain.optimiser={each}"]).section(PretrainConfig) for each in ("lamb", "muon")
    )
    needs = on_cpu(params.section(ModelConfig), lamb)
    assert needs.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert needs.state_bytes == 16 * needs.num_parameters and needs.checkpoint_bytes == 12 * needs.num_parameters
    state = new_state(model, muon)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    state.optimiser.step()
    kept = [kept for of_param in state.optimiser.state.values() for kept in of_param.values() if torch.is_tensor(kept)]
    assert on_cpu(params.section(ModelConfig), muon).checkpoint_bytes == 4 * (
        needs.num_parameters + sum(moment.numel() for moment in kept)
    )


def test_what_saves_memory_saves_it_here():
    plain, half = of(on_gpu=False), of(on_gpu=True)
    assert half.activation_bytes_per_pair < 0.7 * plain.activation_bytes_per_pair
    recomputed = of("pretrain.gradient_checkpointing=blocks", on_gpu=False)
    assert recomputed.activation_bytes_per_pair < 0.5 * plain.activation_bytes_per_pair
    alone = of("model.batch_norm_group=1", on_gpu=False)  # what is counted belongs to pairs: no weights are in it
    assert alone.activation_bytes_per_pair == pytest.approx(plain.activation_bytes_per_pair, rel=0.05)
    parts = of("pretrain.micro_batch=32", on_gpu=False)
    assert parts.pairs_at_a_time == 32 and parts.rank_bytes < plain.rank_bytes
    assert of("pretrain.shard_weights=true", num_ranks=4).state_bytes == plain.state_bytes // 4


def test_a_locked_tower_has_weights_only():
    params = load_params()
    model = DualEncoder(params.section(ModelConfig), 500)
    towers = {"image": model.vision_model, "text": model.text_model}
    of_model = [sum(parameter.numel() for parameter in part.parameters()) for part in (model, *towers.values())]
    free = params.section(PretrainConfig).model_copy(update={"optimiser": "lamb"})
    plain = on_cpu(params.section(ModelConfig), free)
    for which, size in zip(towers, of_model[1:], strict=True):
        recipe = free.model_copy(update={"locked": which})
        needs = on_cpu(params.section(ModelConfig), recipe)
        assert needs.num_parameters == of_model[0]
        assert needs.state_bytes == 16 * of_model[0] - 12 * size
        assert needs.checkpoint_bytes == 12 * of_model[0] - 8 * size
        assert needs.activation_bytes_per_pair < plain.activation_bytes_per_pair


def test_ranks_of_this_machine_share_its_memory():
    def of_this_machine(*overrides):
        params = load_params(overrides=["pretrain.num_processes=null", *overrides])
        return needs(params, Device("CPU", 8_000, 4, on_gpu=False))["pretrain"]

    found = of_this_machine()
    assert found["num_ranks"] == 4 and found["available_bytes"] == 2_000
    assert of_this_machine("pretrain.batch_size=64")["pairs_at_a_time"] < found["pairs_at_a_time"]
