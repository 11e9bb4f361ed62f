"""WordPiece learned from the training texts (paper section 4.1), saved as a transformers fast tokenizer.

Lower-cased like BERT uncased, but with accents: dropping them merges words in many languages. Texts are always
truncated to the model's length (upstream's ALIGN processor pads and never truncates).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from align.durable.files import sha256_file, to_json, write_text
from align.errors import DataError, panics_are_errors
from align.formats.model_folder import TOKENIZER, TOKENIZER_CONFIG, require_unchanged

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def fit_wordpiece(texts: Iterable[str], *, vocab_size: int, min_count: int) -> Tokenizer:
    """Learns a WordPiece vocabulary.

    The trainer numbers pieces of one character in the order of a hash table and breaks ties between merges by these
    numbers, so two runs would differ. Passing the pieces in advance, sorted, makes the result a function of the texts.

    Args:
        texts: the training texts.
        vocab_size: upper bound, including special tokens.
        min_count: two neighbouring pieces that occur together less often than this are not merged.

    Raises:
        DataError: no text has a word.
    """
    normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True
    )
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    if not counts:
        raise DataError("no training text has a word, so no vocabulary can be learned")
    inner = sorted({f"##{character}" for word in counts for character in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_count, special_tokens=[*SPECIAL_TOKENS, *inner], show_progress=False
    )
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trained.train_from_iterator((word for word, count in counts.items() for _ in range(count)), trainer)

    model = models.WordPiece(trained.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=100)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    end, start = SPECIAL_TOKENS.index("[SEP]"), SPECIAL_TOKENS.index("[CLS]")  # special tokens come first, in order
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", end), ("[CLS]", start))
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, *, max_tokens: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which `transformers.AutoTokenizer.from_pretrained` reads."""
    document = json.loads(tokenizer.to_str())
    write_text(directory / TOKENIZER, to_json(document))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "sha256": sha256_file(directory / TOKENIZER),
    }
    write_text(directory / TOKENIZER_CONFIG, to_json(config))


class TextTokenizer:
    """Texts -> padded tensors.

    Attributes:
        vocab_size: number of tokens, and rows of the word embedding.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()
        self.vocab_size = int(tokenizer.get_vocab_size(with_added_tokens=True))
        self.pad_id = tokenizer.token_to_id("[PAD]") or 0

    @classmethod
    def load(cls, directory: Path, max_tokens: int) -> TextTokenizer:
        """Reads the folder of any transformers fast tokenizer.

        Raises:
            DataError: the folder has no tokenizer.json, or it cannot be loaded.
            CorruptError: it is not the one that `save_tokenizer` wrote there.
        """
        path = directory / TOKENIZER
        if not path.exists():
            raise DataError(f"{directory}: no tokenizer here (tokenizer.json is missing); run `align fit_tokenizer`")
        require_unchanged(path, directory / TOKENIZER_CONFIG, "sha256")
        try:
            with panics_are_errors():
                tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 (tokenizers raises nothing more precise)
            raise DataError(f"{path}: does not load: {error}") from None
        return cls(tokenizer, max_tokens)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Piece -> its number."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids per text with [CLS] and [SEP], at most `max_tokens`, unpadded.

        Raises DataError: a stranger's tokenizer gives up.
        """
        with panics_are_errors():
            return [list(encoding.ids) for encoding in self._tokenizer.encode_batch(texts)]

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Pads to the longest text of the batch: (B, T) int64 ids and (B, T) int64 mask."""
        return pad(self.ids(texts), self.pad_id)


def pad(sequences: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Sequences of ids -> (B, T) ids and mask, T the longest."""
    longest = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
