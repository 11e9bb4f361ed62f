"""The text tower against transformers' `BertModel`: the same names, start, hidden states and gradients."""

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from align.config.model import ModelConfig
from align.errors import DataError
from align.model.text_tower import TextTower
from align.model.tokenizer import SPECIAL_TOKENS, TextTokenizer, fit_wordpiece, save_tokenizer
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


def theirs(std):
    config = BertConfig(
        vocab_size=VOCAB_SIZE, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96,
        max_position_embeddings=CONFIG.max_tokens, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=std, attn_implementation="sdpa",
    )  # type: ignore[call-arg]  # the last is in **kwargs, which mypy cannot check  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def results(tower, mask):
    """Hidden states, and the gradient of every parameter."""
    ids = torch.randint(1, VOCAB_SIZE, (NUM_TEXTS, NUM_TOKENS), generator=torch.Generator().manual_seed(2))
    found = tower(input_ids=ids if mask is None else ids * mask, attention_mask=mask)
    hidden = found if isinstance(found, Tensor) else found.last_hidden_state
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
    (hidden * weights).sum().backward()
    grads = [param.grad for param in tower.parameters() if param.grad is not None]
    assert len(grads) == len(list(tower.parameters()))
    return [hidden.detach(), *grads]


@pytest.mark.parametrize("std", [None, 0.02])
def test_a_seed_gives_the_weights_that_transformers_gives(std):
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
def test_hidden_states_and_gradients_are_those_of_transformers(mask, training, again):
    torch.manual_seed(0)
    expected = theirs(0.3).train(training)
    ours = TextTower(CONFIG, VOCAB_SIZE).train(training)
    ours.load_state_dict(expected.state_dict())
    ours.gradient_checkpointing = again
    for mine, value in zip(results(ours, mask), results(expected, mask), strict=True):
        torch.testing.assert_close(mine, value, atol=1e-6, rtol=1e-6)


def test_padding_of_a_device_is_not_asked_for():
    """A host would wait for the answer; what a text gets does not depend on it."""
    tower = TextTower(CONFIG, VOCAB_SIZE)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    assert tower.to("meta")(ids.to("meta"), torch.ones_like(ids, device="meta")).shape == (2, 3, 24)


#: Many words of equal count, so that ties are common.
TEXTS = [f"{a}{b} {b}{a}" for a in ("ka", "lo", "mi", "nu") for b in ("ra", "se", "ti")] + ["Über die Brücke", "猫の絵"]


def saved(directory, texts, *, vocab_size=60, max_tokens=8):
    directory.mkdir()
    save_tokenizer(fit_wordpiece(texts, vocab_size=vocab_size, min_count=1), directory, max_tokens=max_tokens)
    return TextTokenizer.load(directory, max_tokens)


def test_equal_texts_in_any_order_are_equal_bytes(tmp_path):
    for run in range(3):
        saved(tmp_path / str(run), TEXTS if run else TEXTS[::-1])
    first = (tmp_path / "0" / "tokenizer.json").read_bytes()
    assert (tmp_path / "1" / "tokenizer.json").read_bytes() == first
    assert (tmp_path / "2" / "tokenizer.json").read_bytes() == first


def test_always_truncates_and_keeps_the_end_marker(tmp_path):
    ids, mask = saved(tmp_path / "t", TEXTS)(["kara " * 50, "kara"])
    assert ids.shape == (2, 8)
    start, end = SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]")
    assert ids[0, 0] == start and ids[0, -1] == end
    assert mask[0].tolist() == [1] * 8
    assert ids[1][mask[1] == 0].tolist() == [0] * int((mask[1] == 0).sum())


def test_lower_cases_but_keeps_accents_and_splits_han(tmp_path):
    tokenizer = saved(tmp_path / "t", [*TEXTS, "brucke"], vocab_size=200, max_tokens=16)
    same, accent, plain, han = tokenizer.ids(["BRÜCKE", "brücke", "brucke", "猫絵"])
    assert same == accent != plain
    assert len(han) == 4 and SPECIAL_TOKENS.index("[UNK]") not in han


def test_transformers_reads_the_folder(tmp_path):
    ours = saved(tmp_path / "t", TEXTS)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "t")
    texts = ["kara über", "katise " * 9]
    assert theirs(texts, truncation=True)["input_ids"] == ours.ids(texts)
    assert theirs.pad_token_id == 0 and theirs.model_max_length == 8


def test_no_word_and_no_tokenizer_are_clear_errors(tmp_path):
    with pytest.raises(DataError, match="no training text has a word"):
        fit_wordpiece(["", "  "], vocab_size=50, min_count=1)
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        TextTokenizer.load(tmp_path, 8)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="does not load"):
        TextTokenizer.load(tmp_path, 8)
