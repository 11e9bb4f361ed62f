"""The image tower against transformers' `AlignVisionModel`: the same names, start, features and gradients."""

import pytest
import torch
from torch import Tensor, nn
from transformers import AlignVisionModel

from align.config.model import ModelConfig
from align.model.image_tower import ImageTower, estimate_statistics, initialise
from align.release.exchange.interchange import align_config
from tests.support.step_counts import cost
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
    ours = [each.projection.dropout.rate for each in ImageTower(sized).encoder.blocks]
    assert ours == rates and max(ours) > 0.2


@pytest.mark.parametrize(("what", "light"), [("none", 18), ("cheap", 20)])
def test_operations_grow_with_the_blocks_and_not_with_the_groups(what, light):
    with torch.device("meta"):
        blocks = ImageTower(MODEL).num_blocks
    few, many = (cost(MODEL, what, pairs=groups * MODEL.batch_norm_group) for groups in (1, 8))
    assert few.forward_calls == many.forward_calls <= 12 * blocks + 6
    assert few.light_calls == many.light_calls <= light * blocks + 8


def test_joined_operations_read_and_write_less_than_layers():
    pairs = 4 * MODEL.batch_norm_group
    joined, apart = (cost(MODEL, "none", apart=each, pairs=pairs) for each in (False, True))
    assert joined.moved_bytes < 0.75 * apart.moved_bytes
    assert joined.forward_calls < 0.6 * apart.forward_calls
