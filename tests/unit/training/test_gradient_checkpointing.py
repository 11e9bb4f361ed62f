"""Gradient checkpointing: the same loss and gradients, and fewer bytes kept for the backward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from align.config.model import Checkpointing, ModelConfig
from align.model.dual_encoder import DualEncoder
from align.training.loss import align_loss
from tests.support.training_data import MODEL

BATCH = 8


def images(model: DualEncoder, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(BATCH, 3, 32, 32, generator=generator) * 2 - 1
    return model.encode_image(pixels, torch.rand(BATCH, model.vision_model.num_blocks, generator=generator))


def texts(model: DualEncoder, seed: int) -> Tensor:
    ids = torch.randint(5, 50, (BATCH, 16), generator=torch.Generator().manual_seed(seed))
    return model.encode_text(ids, torch.ones_like(ids))


def kept_bytes(work: Callable[[], Tensor]) -> int:
    """Bytes of all distinct storages that autograd keeps for a backward pass."""
    storages: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    del result  # it had to keep its graph until here
    return sum(size for size, _ in storages.values())


@pytest.fixture
def model() -> DualEncoder:
    torch.manual_seed(0)
    tower = {"width_coefficient": 0.25, "depth_coefficient": 0.5}
    text = {"width": 16, "layers": 3, "heads": 2}
    changes = {"image_tower": tower, "text_tower": text, "stochastic_depth": 0.5}
    return DualEncoder(ModelConfig.model_validate(MODEL.model_dump() | changes), vocab_size=50).train()


def gradients(model: DualEncoder) -> tuple[float, dict[str, Tensor]]:
    """Of a batch in two parts: the second one's draws must not be those that the first is computed again with."""
    model.zero_grad()
    image_embeds = torch.cat([images(model, 1), images(model, 2)])
    loss = align_loss(image_embeds, torch.cat([texts(model, 3), texts(model, 4)]), model.temperature, 0.1)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return float(loss.detach()), {name: param.grad.clone() for name, param in model.named_parameters()}


@pytest.mark.parametrize("what", ["cheap", "blocks"])
@pytest.mark.parametrize("kind", ["group", "batch"])
def test_loss_and_gradients_stay_the_same(model: DualEncoder, kind: str, what: Checkpointing) -> None:
    model = DualEncoder(model.config.model_copy(update={"batch_norm": kind}), 50).train()
    assert model.gradient_checkpointing == "none"
    plain = gradients(model)
    model.gradient_checkpointing = what
    again = gradients(model)
    assert again[0] == plain[0]
    for name, grad in plain[1].items():
        torch.testing.assert_close(again[1][name], grad, atol=1e-7, rtol=1e-5, msg=name)
    model.gradient_checkpointing = "none"
    assert gradients(model)[0] == plain[0]


@pytest.mark.parametrize(
    ("tower", "what", "at_most"), [(images, "cheap", 0.75), (images, "blocks", 0.4), (texts, "blocks", 0.4)]
)
def test_fewer_bytes_are_kept(
    model: DualEncoder, tower: Callable[[DualEncoder, int], Tensor], what: Checkpointing, at_most: float
) -> None:
    plain = kept_bytes(lambda: tower(model, 1))
    model.gradient_checkpointing = what
    again = kept_bytes(lambda: tower(model, 1))
    assert 0 < again < at_most * plain, (again, plain)


def test_evaluation_is_not_computed_twice(model: DualEncoder) -> None:
    model.gradient_checkpointing = "blocks"
    with torch.inference_mode():
        assert images(model.eval(), 1).shape == (BATCH, model.config.embed_width)
    assert model.gradient_checkpointing == "blocks"
