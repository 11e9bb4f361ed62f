"""LAMB against a line-by-line NumPy reference, and AdamW against torch's."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from align.config.model import TextTowerShape
from align.config.recipe import PretrainConfig
from align.model.dual_encoder import DualEncoder
from align.training import lamb as module
from align.training.lamb import Lamb, parameter_groups
from tests.support import lamb_reference
from tests.support.params import load_params
from tests.support.training_data import MODEL

RECIPE = load_params(overrides=["pretrain.optimiser=lamb"]).section(PretrainConfig)


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("beta2", [0.999, 0.9])
def test_equals_the_reference(adapt: bool, zero: bool, beta2: float) -> None:
    generator = np.random.default_rng(0)
    starts = [generator.normal(size=(3, 4)), generator.normal(size=(5,)) * (0.0 if zero else 1.0)]
    grads = [[generator.normal(size=start.shape) for start in starts] for _ in range(6)]
    params = [nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
    groups = [{"params": params, "adapt": adapt, "lr_scale": 0.5, "weight_decay": 0.02 if adapt else 0.0}]
    optimiser = Lamb(groups, weight_decay=0.02, betas=(0.9, beta2))
    optimiser.set_learning_rate(0.2)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = torch.from_numpy(grad)
        optimiser.step()
    for index, (param, start) in enumerate(zip(params, starts, strict=True)):
        expected = lamb_reference.lamb(
            start, [step[index] for step in grads], rate=0.1, decay=0.02, beta2=beta2, adapt=adapt
        )
        np.testing.assert_allclose(param.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_without_trust_ratio_it_is_adamw() -> None:
    recipe = RECIPE.model_copy(update={"optimiser": "adamw", "weight_decay": 0.3, "vector_learning_rate_scale": 1.0})
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    theirs.load_state_dict(ours.state_dict())
    optimiser = Lamb(parameter_groups(ours, recipe), weight_decay=0.3, betas=(0.8, 0.9), eps=1e-7)
    optimiser.set_learning_rate(0.05)
    decayed = [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(decayed, lr=0.05, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.3)
    for _ in range(5):
        inputs = torch.randn(7, 5, dtype=torch.float64)
        for model, of in ((ours, optimiser), (theirs, reference)):
            of.zero_grad()
            model(inputs).square().sum().backward()
            of.step()
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-14)


class _Kernels(TorchDispatchMode):
    """Counts operations that compute; a view computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += not func.is_view
        return func(*args, **(kwargs or {}))


def _kernels(num_params: int) -> int:
    """Of the second update of matrices and vectors in four groups."""
    groups = [
        {"params": [nn.Parameter(torch.ones(4, 3) if adapt else torch.ones(4)) for _ in range(num_params)],
         "adapt": adapt, "lr_scale": scale}
        for adapt in (True, False) for scale in (0.25, 1.0)
    ]  # fmt: skip
    optimiser = Lamb(groups, weight_decay=0.02, betas=(0.9, 0.99))
    for _ in range(2):  # the first one also allocates the moments, one by one
        for group in groups:
            for param in group["params"]:
                param.grad = torch.full_like(param, 0.1)
        with _Kernels() as kernels:
            optimiser.step()
    return kernels.num


def test_the_number_of_kernels_does_not_grow_with_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    few = _kernels(2)
    assert few == _kernels(50) < 100
    monkeypatch.setattr(module, "PIECE_BYTES", 10 * 4 * 3 * 4)  # ten matrices a piece
    assert few < _kernels(50) < 10 * few


@pytest.mark.parametrize("piece_bytes", [1, 200, 1 << 20])
def test_pieces_and_strides_change_no_bit(monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    """Against one piece; weights that are channels-last have updates that are."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 2, 2), (5, 2), (6, 3, 3, 3), (1, 7)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    grads = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]

    def trained(layout: torch.memory_format) -> list[torch.Tensor]:
        laid_out = [start.contiguous(memory_format=layout) if start.ndim == 4 else start for start in starts]
        params = [nn.Parameter(start.clone()) for start in laid_out]
        optimiser = Lamb([{"params": params}], weight_decay=0.02, betas=(0.9, 0.99))
        optimiser.set_learning_rate(0.1)
        for step in grads:
            for param, grad in zip(params, step, strict=True):
                param.grad = grad.clone()
            optimiser.step()
        return [param.detach() for param in params]

    whole = trained(torch.contiguous_format)
    monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
    for mine, one in zip(trained(torch.contiguous_format), whole, strict=True):
        assert torch.equal(mine, one)
    for mine, one in zip(trained(torch.channels_last), whole, strict=True):
        torch.testing.assert_close(mine, one)  # a norm adds in another order


def test_groups_spare_vectors_and_scale_the_text_tower() -> None:
    model = nn.Module()
    model.text_model = nn.Module()
    model.text_model.embeddings = nn.Module()
    model.text_model.embeddings.words = nn.Embedding(7, 2)
    model.text_model.embeddings.norm = nn.LayerNorm(7)
    model.text_model.dense = nn.Linear(2, 3)
    model.vision_model = nn.Linear(2, 4)
    model.log_temperature = nn.Parameter(torch.tensor(0.0))
    recipe = RECIPE.model_copy(update={"text_learning_rate_scale": 0.25, "vector_learning_rate_scale": 0.5})
    groups = {
        (group["adapt"], group["lr_scale"]): sorted(tuple(param.shape) for param in group["params"])
        for group in parameter_groups(model, recipe)
    }
    assert groups == {
        (True, 0.25): [(3, 2)], (False, 0.125): [(3,), (7,), (7,)], (True, 1.0): [(4, 2), (7, 2)],
        (False, 0.5): [(), (4,)],
    }  # fmt: skip


def _rates(model: DualEncoder, **changes: Any) -> dict[str, float]:
    groups = parameter_groups(model, RECIPE.model_copy(update={"text_learning_rate_scale": 1.0, **changes}))
    scale = {id(param): group["lr_scale"] for group in groups for param in group["params"]}
    return {name: scale[id(param)] for name, param in model.named_parameters()}


def test_layers_learn_more_slowly_the_deeper_they_lie() -> None:
    """By hand, for both towers: two layers of text, and the four blocks that the small image tower has."""
    tower = TextTowerShape(width=16, layers=2, heads=2)
    model = DualEncoder(MODEL.model_copy(update={"text_tower": tower, "embed_width": 12}), 30)
    plain, scaled = _rates(model), _rates(model, layer_decay=0.5)
    number = len(model.vision_model.encoder.blocks)
    powers = {"text_model.embeddings.": 3, "text_model.encoder.layer.0.": 2, "text_model.encoder.layer.1.": 1}
    powers |= {"vision_model.embeddings.": number + 1}
    powers |= {f"vision_model.encoder.blocks.{block}.": number - block for block in range(number)}
    powers |= {"text_projection.": 0, "vision_projection.": 0, "log_temperature": 0}
    for name, rate in scaled.items():
        (power,) = (power for prefix, power in powers.items() if name.startswith(prefix))
        assert rate == plain[name] * 0.5**power, name


def test_the_layers_of_a_vit_are_those_of_timm() -> None:
    model = DualEncoder(MODEL.model_copy(update={"image_tower": "timm:test_vit"}), 30)
    own = _rates(model, layer_decay=0.7, vector_learning_rate_scale=1.0)
    theirs = timm.create_model("test_vit", num_classes=3)
    names = {id(param): name for name, param in theirs.named_parameters()}
    for group in param_groups_layer_decay(theirs, layer_decay=0.7):
        for name in (names[id(param)] for param in group["params"]):
            rate = own["vision_projection.weight" if name.startswith("head.") else f"vision_model.model.{name}"]
            assert rate == pytest.approx(group["lr_scale"]), name


def test_a_step_moves_each_layer_by_its_own_rate() -> None:
    """LAMB's reference, with the rate of the depth."""
    model = DualEncoder(MODEL, 30)
    starts = {name: param.detach().clone().numpy() for name, param in model.named_parameters()}
    recipe = RECIPE.model_copy(update={"layer_decay": 0.5, "text_learning_rate_scale": 1.0})
    groups = parameter_groups(model, recipe)
    optimiser = Lamb(groups, weight_decay=recipe.weight_decay, betas=(0.9, 0.99))
    optimiser.set_learning_rate(0.1)
    for param in model.parameters():
        param.grad = torch.rand(param.shape)
    optimiser.step()
    for name, power in (("text_model.encoder.layer.0.output.dense.weight", 1), ("text_projection.weight", 0)):
        param = model.get_parameter(name)
        assert param.grad is not None
        expected = lamb_reference.lamb(
            starts[name], [param.grad.numpy()], rate=0.1 * 0.5**power, decay=recipe.weight_decay, beta2=0.99, adapt=True
        )
        np.testing.assert_allclose(param.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
