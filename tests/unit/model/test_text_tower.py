"""The text tower against transformers' `BertModel`: the same names, start, hidden states and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from align.config.model import ModelConfig
from align.model.text_tower import TextTower
from tests.support.training_data import MODEL

NUM_TEXTS, NUM_TOKENS, VOCAB_SIZE = 6, 9, 50
CONFIG = ModelConfig.model_validate(MODEL.model_dump() | {"text_tower": {"width": 24, "layers": 3, "heads": 3}})

#: Tokens of each text; its padding is behind them.
LENGTHS = torch.tensor([9, 1, 4, 8, 2, 9])[:, None]
BEHIND = (torch.arange(NUM_TOKENS) < LENGTHS).long()
NOWHERE = torch.ones_like(BEHIND)
#: In front of the words, between them, and one text of nothing else.
ANYWHERE = BEHIND.flip(1)
ANYWHERE[0], ANYWHERE[4] = 0, torch.tensor([1, 0, 1] * 3)


def theirs(std: float) -> BertModel:
    config: Any = BertConfig(
        vocab_size=VOCAB_SIZE, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96,
        max_position_embeddings=CONFIG.max_tokens, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=std, attn_implementation="sdpa",
    )  # type: ignore[call-arg]  # the last is in **kwargs, which mypy cannot check  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def results(tower: nn.Module, mask: Tensor | None) -> list[Tensor]:
    """Hidden states, and the gradient of every parameter."""
    ids = torch.randint(1, VOCAB_SIZE, (NUM_TEXTS, NUM_TOKENS), generator=torch.Generator().manual_seed(2))
    found = tower(input_ids=ids if mask is None else ids * mask, attention_mask=mask)
    hidden: Tensor = found if isinstance(found, Tensor) else found.last_hidden_state
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
    (hidden * weights).sum().backward()
    grads = [param.grad for param in tower.parameters() if param.grad is not None]
    assert len(grads) == len(list(tower.parameters()))
    return [hidden.detach(), *grads]


@pytest.mark.parametrize("std", [None, 0.02])
def test_a_seed_gives_the_weights_that_transformers_gives(std: float | None) -> None:
    torch.manual_seed(1)
    ours, after = TextTower(CONFIG, VOCAB_SIZE, init_std=std), torch.rand(1)
    torch.manual_seed(1)
    expected = theirs(24**-0.5 if std is None else std).state_dict()
    assert torch.equal(torch.rand(1), after)
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    torch.manual_seed(1)
    scaled = TextTower(CONFIG, VOCAB_SIZE, init_std=std, position_init_scale=0.5).state_dict()
    moved = {name for name, value in scaled.items() if not torch.equal(value, expected[name])}
    assert moved == {f"embeddings.{table}_embeddings.weight" for table in ("position", "token_type")}
    assert all(torch.equal(scaled[name], expected[name] * 0.5) for name in moved)


@pytest.mark.parametrize(("training", "again"), [(True, "none"), (True, "blocks"), (False, "none")])
@pytest.mark.parametrize("mask", [None, NOWHERE, BEHIND, ANYWHERE], ids=["none", "nowhere", "behind", "anywhere"])
def test_hidden_states_and_gradients_are_those_of_transformers(mask: Tensor | None, training: bool, again: Any) -> None:
    torch.manual_seed(0)
    expected = theirs(0.3).train(training)
    ours = TextTower(CONFIG, VOCAB_SIZE).train(training)
    ours.load_state_dict(expected.state_dict())
    ours.gradient_checkpointing = again
    for mine, value in zip(results(ours, mask), results(expected, mask), strict=True):
        torch.testing.assert_close(mine, value, atol=1e-6, rtol=1e-6)


def test_padding_of_a_device_is_not_asked_for() -> None:
    """A host would wait for the answer; what a text gets does not depend on it."""
    tower = TextTower(CONFIG, VOCAB_SIZE)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    assert tower.to("meta")(ids.to("meta"), torch.ones_like(ids, device="meta")).shape == (2, 3, 24)
