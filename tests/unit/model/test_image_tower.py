"""The image tower against transformers' `AlignVisionModel`: the same names, start, features and gradients."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from transformers import AlignVisionModel

from align.config.model import ModelConfig
from align.model.image_tower import ImageTower, estimate_statistics, initialise
from align.pipeline.work import Work
from align.release.exchange.interchange import align_config
from tests.support.training_data import MODEL

TOWER = {"width_coefficient": 0.3, "depth_coefficient": 0.6}  # 19 channels become 24; two blocks of a stage are three


def config(**changes):
    return ModelConfig.model_validate(MODEL.model_dump() | {"image_tower": TOWER, "batch_norm_group": 64} | changes)


def theirs(ours):
    return AlignVisionModel(align_config(ours, 50, 64).vision_config)


def pixels(count):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def results(tower, dtype):
    """Features, and the gradient of every parameter by name."""
    found = tower.to(dtype)(pixels(8).to(dtype))
    features = found if isinstance(found, Tensor) else found.pooler_output
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    grads = {name: param.grad for name, param in tower.named_parameters() if param.grad is not None}
    assert len(grads) == len(list(tower.parameters()))
    return {"features": features.detach(), **grads}


@pytest.mark.parametrize("shape", ["B0", TOWER, {"width_coefficient": 1.2, "depth_coefficient": 0.3}])
def test_a_seed_gives_the_weights_it_gave_when_the_modules_were_those_of_transformers(shape):
    """They were built, their depthwise convolutions were replaced, and all convolutions started again."""
    sized = config(image_tower=shape)
    torch.manual_seed(3)
    ours, after = ImageTower(sized).state_dict(), torch.rand(1)
    torch.manual_seed(3)
    upstream = theirs(sized)
    for module in upstream.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.reset_parameters()
    initialise(upstream)
    expected = upstream.state_dict()
    assert torch.equal(torch.rand(1), after)
    assert list(ours) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in ours.items())


@pytest.mark.parametrize(("training", "again", "dtype", "apart"), [
    (False, "none", torch.float32, 1e-4), (True, "none", torch.float32, 1e-2), (True, "none", torch.float64, 1e-9),
    (True, "cheap", torch.float64, 1e-9), (True, "blocks", torch.float64, 1e-9),
])  # fmt: skip
def test_features_and_gradients_are_those_of_transformers(training, again, dtype, apart):
    sized = config(stochastic_depth=0.0)
    torch.manual_seed(0)
    ours, upstream = ImageTower(sized), theirs(sized)
    estimate_statistics(ours, [pixels(8)])
    upstream.load_state_dict(ours.state_dict())
    ours.gradient_checkpointing = again
    found, expected = results(ours.train(training), dtype), results(upstream.train(training), dtype)
    assert set(found) == set(expected)
    least = 1e-3 * max(float(value.abs().max()) for value in expected.values())  # some gradients are 0 but for rounding
    for name, value in expected.items():
        atol = apart * max(float(value.abs().max()), least)
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=name)


def test_blocks_are_dropped_at_the_rates_of_transformers():
    sized = config(stochastic_depth=0.3)
    rates = [block.projection.dropout.p for block in theirs(sized).encoder.blocks]
    ours = [block.drop_rate for block in ImageTower(sized).encoder.blocks]
    assert ours == rates and max(ours) > 0.2


def work(what, pairs, **options):
    """Counts a forward and a backward pass as a GPU has them."""
    with torch.device("meta"):
        tower = ImageTower(MODEL).train().to(torch.bfloat16)
        tower.gradient_checkpointing = what
        with Work(**options) as forward:
            features = tower(torch.zeros(pairs, 3, 32, 32, dtype=torch.bfloat16))
        kept = forward.kept_bytes
        with Work(**options) as backward:
            features.sum().backward()
    names = [[name for name, *_ in each.done] for each in (forward, backward)]
    return Counter(names[0]), Counter(names[1]), kept


@pytest.mark.parametrize("what", ["none", "cheap", "blocks"])
def test_operations_do_not_grow_with_the_groups(what):
    one, many = (work(what, pairs=groups * MODEL.batch_norm_group) for groups in (1, 8))
    assert one[:2] == many[:2]


def test_cheap_computes_everything_again_but_convolutions():
    none, cheap, blocks = (work(what, pairs=8) for what in ("none", "cheap", "blocks"))
    assert none[0] == cheap[0] == blocks[0]
    assert none[1]["convolution"] == cheap[1]["convolution"] == 0 < blocks[1]["convolution"]
    assert none[1]["var_mean"] == 0 < cheap[1]["var_mean"]
    assert none[2] > 1.8 * cheap[2] > 3 * blocks[2]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_s_gradients_are_those_of_differences(stride):
    torch.manual_seed(0)
    tower = ImageTower(MODEL).double().train()
    block = next(each for each in tower.encoder.blocks
                 if each.expansion and each.depthwise_conv.depthwise_conv.stride[0] == stride)  # fmt: skip
    x = torch.randn(8, block.expansion.expand_conv.in_channels, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x, torch.tensor([0.0, 1.25] * 4)), fast_mode=True)
