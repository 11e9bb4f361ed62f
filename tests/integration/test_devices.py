"""No operation of a step mixes devices. The meta device stands in for a GPU, and works without one."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer
from align.training import loss as loss_module
from align.training import step as module
from align.training.batches.batch import Batch, Tokens
from align.training.ranks.process_group import Ranks
from align.training.state import new_state
from align.training.step import compute_gradients
from tests.support.training_data import MODEL, pretrain_config

BATCH = 16
THERE = torch.device("meta")
_COPIES = {"_to_copy", "copy_"}


class Mixed(TorchDispatchMode):
    """Notes the operations that are given tensors of two devices; numbers without dimensions may be anywhere."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
        if func.overloadpacket.__name__ not in _COPIES and len({tensor.device.type for tensor in tensors}) > 1:
            self.found.append(str(func))
            args = [arg.to(THERE) if isinstance(arg, Tensor) else arg for arg in args]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def words(data, monkeypatch):
    """What makes tokens; and the ways of a GPU."""
    monkeypatch.setattr(module, "autocast", lambda *_: nullcontext())  # torch has none for the meta device
    monkeypatch.setattr(loss_module, "_tile_function", lambda function, _: loss_module._ON_CUDA.get(function, function))
    return TextTokenizer.load(data[1], MODEL.max_tokens)


def whole_step(words, what, micro_batch):
    """The operations of a step with its update that mixed devices."""
    recipe = pretrain_config(batch_size=BATCH, micro_batch=micro_batch, gradient_checkpointing=what, clip_norm=1.0)
    model = DualEncoder(MODEL, words.vocab_size).train()
    model.gradient_checkpointing = what
    state = new_state(model.to(THERE), recipe)
    texts = ["a bar at the top", "red"] * (BATCH // 2)
    batch = Batch(
        torch.zeros(BATCH, MODEL.image_px, MODEL.image_px, 3, dtype=torch.uint8), texts,
        torch.rand(BATCH, model.vision_model.num_blocks), Tokens.of(words.ids(texts), words.pad_id),
    )  # fmt: skip
    with Mixed() as mixed:
        state.optimiser.set_learning_rate(0.1)
        gradients = compute_gradients(model, recipe, Ranks(0, 1, THERE), batch)
        state.update(gradients)
    assert {param.grad.device.type for param in model.parameters() if param.grad is not None} == {"meta"}
    assert gradients.loss.device.type == gradients.norm.device.type == "meta"
    moments = [each for kept in state.optimiser.state.values() for each in kept.values() if isinstance(each, Tensor)]
    assert moments and {each.device.type for each in moments} == {"meta"}
    return mixed.found


@pytest.mark.parametrize(("what", "micro_batch"), [("none", None), ("cheap", 8), ("blocks", None)])
def test_a_step_stays_on_its_device(words, what, micro_batch):
    assert whole_step(words, what, micro_batch) == []


def test_what_notes_mixed_devices_sees_draws_that_stayed_on_the_host(words, monkeypatch):
    there = module._there
    monkeypatch.setattr(
        module, "_there", lambda tensor, device: tensor if tensor.dtype == torch.float32 else there(tensor, device)
    )
    assert whole_step(words, "none", None) != []


def test_what_a_step_copies_to_a_gpu_is_pinned(monkeypatch):
    calls = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(Tensor, "to", lambda self, device, non_blocking: calls.append((device, non_blocking)) or self)
    for there in (torch.device("cuda", 0), THERE):
        module._there(torch.ones(2), there)
    assert calls == ["pinned", (torch.device("cuda", 0), True), (THERE, True)]
