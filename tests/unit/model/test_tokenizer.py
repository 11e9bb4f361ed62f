"""WordPiece: determinism, truncation, scripts, and saved files."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from align.errors import DataError
from align.model.tokenizer import SPECIAL_TOKENS, TextTokenizer, fit_wordpiece, save_tokenizer

#: Many words of equal count, so that ties are common.
TEXTS = [f"{a}{b} {b}{a}" for a in ("ka", "lo", "mi", "nu") for b in ("ra", "se", "ti")] + ["Über die Brücke", "猫の絵"]


def saved(directory: Path, texts: list[str], *, vocab_size: int = 60, max_tokens: int = 8) -> TextTokenizer:
    directory.mkdir()
    save_tokenizer(fit_wordpiece(texts, vocab_size=vocab_size, min_count=1), directory, max_tokens=max_tokens)
    return TextTokenizer.load(directory, max_tokens)


def test_equal_texts_in_any_order_are_equal_bytes(tmp_path: Path) -> None:
    for run in range(3):
        saved(tmp_path / str(run), TEXTS if run else TEXTS[::-1])
    first = (tmp_path / "0" / "tokenizer.json").read_bytes()
    assert (tmp_path / "1" / "tokenizer.json").read_bytes() == first
    assert (tmp_path / "2" / "tokenizer.json").read_bytes() == first


def test_always_truncates_and_keeps_the_end_marker(tmp_path: Path) -> None:
    ids, mask = saved(tmp_path / "t", TEXTS)(["kara " * 50, "kara"])
    assert ids.shape == (2, 8)
    start, end = SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]")
    assert ids[0, 0] == start and ids[0, -1] == end
    assert mask[0].tolist() == [1] * 8
    assert ids[1][mask[1] == 0].tolist() == [0] * int((mask[1] == 0).sum())


def test_lower_cases_but_keeps_accents_and_splits_han(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "t", [*TEXTS, "brucke"], vocab_size=200, max_tokens=16)
    same, accent, plain, han = tokenizer.ids(["BRÜCKE", "brücke", "brucke", "猫絵"])
    assert same == accent != plain
    assert len(han) == 4 and SPECIAL_TOKENS.index("[UNK]") not in han


def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    ours = saved(tmp_path / "t", TEXTS)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "t")
    texts = ["kara über", "katise " * 9]
    assert theirs(texts, truncation=True)["input_ids"] == ours.ids(texts)
    assert theirs.pad_token_id == 0 and theirs.model_max_length == 8


def test_no_word_and_no_tokenizer_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training text has a word"):
        fit_wordpiece(["", "  "], vocab_size=50, min_count=1)
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        TextTokenizer.load(tmp_path, 8)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="does not load"):
        TextTokenizer.load(tmp_path, 8)
