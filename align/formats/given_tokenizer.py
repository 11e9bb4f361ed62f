"""A tokenizer that was made elsewhere, such as BERT's own: read from a folder in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from align.config.given import Given
from align.durable.files import sha256_file
from align.errors import CorruptError, DataError, first_line, panics_are_errors
from align.formats.model_folder import TOKENIZER

_START, _END = "[CLS]", "[SEP]"


def given_tokenizer(given: Given) -> Tokenizer:
    """The tokenizer in a folder, after a check of its digest. Raises DataError as `read_tokenizer`; CorruptError if its
    file has another sha256.
    """
    file = _file(given.path)
    require_digest("fit_tokenizer.from", file, given.sha256)
    return read_tokenizer(given.path)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder, without truncation and padding. Raises DataError if there is none, it does not load,
    or it does not put its texts between [CLS] and [SEP], as a BERT's does.
    """
    file = _file(folder)
    try:
        with panics_are_errors():
            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            around = tokenizer.encode("").tokens
    except Exception as error:  # noqa: BLE001 (tokenizers raises nothing more precise)
        raise DataError(f"{file}: does not load: {first_line(error)}") from None
    if around != [_START, _END] or None in (tokenizer.token_to_id("[PAD]"), tokenizer.token_to_id("[UNK]")):
        raise DataError(
            f"{file}: not the tokenizer of a BERT: an empty text becomes {' '.join(around) or 'nothing'}; expected "
            f"{_START} {_END}, with [PAD] and [UNK] among its words; an encoder without these, such as T5 or RoBERTa, "
            "cannot be given, only begin with random weights"
        )
    return tokenizer


def require_digest(key: str, file: Path, expected: str) -> None:
    """Raises CorruptError if a file, which a parameter names, has another sha256 than the parameter says."""
    if (digest := sha256_file(file)) != expected:
        raise CorruptError(f"{key}: {file} has the sha256 {digest}, not {expected}; correct the path or the digest")


def _file(folder: Path) -> Path:
    if not (folder / TOKENIZER).is_file():
        raise DataError(f"{folder}: no tokenizer here: there is no {TOKENIZER}")
    return folder / TOKENIZER
