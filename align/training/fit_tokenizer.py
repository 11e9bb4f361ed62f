"""fit_tokenizer: learns the WordPiece vocabulary from the kept training texts (paper section 4.1: 100k words).

With `fit_tokenizer.from` it takes a tokenizer that was made elsewhere, such as that of a given BERT, and only measures
how it fits the texts. Only the training split is read, so words of the validation and test splits stay unseen. Of many
texts the first `fit_tokenizer.max_texts` are a sample: `align shard` has shuffled the images by its seed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from align.config import Params
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.infrastructure import StoreConfig
from align.config.model import ModelConfig
from align.config.paths import PathsConfig
from align.display.console import say
from align.display.report import Report, record_runtime, write_report
from align.durable.files import replace_directory
from align.formats.given_tokenizer import given_tokenizer
from align.formats.shards import iter_texts, read_manifest
from align.formats.verdict import SHARDS, require_passed
from align.interfaces.store import FetchTar
from align.model.tokenizer import TextTokenizer, fit_wordpiece, save_tokenizer
from align.services.files.files import StoreFiles
from align.services.s3.store import fetcher
from align.training.given_tars import given_data, given_texts
from align.training.tokenizer_page import write_page

_TEXTS_AT_ONCE = 10_000


class FitTokenizerReport(Report):
    """The vocabulary's size, and how it fits the texts that it was learned from."""

    longest_text: str


def fit_tokenizer(
    config: FitTokenizerConfig, *, max_tokens: int, shards: Path, out: Path, reports: Path,
    fetch: FetchTar | None = None, given: Sequence[Callable[[], Iterator[list[str]]]] = (),
) -> FitTokenizerReport:  # fmt: skip
    """Learns the vocabulary; writes the tokenizer folder `out` and the folder of the report, both replaced whole.

    Args:
        config: section `fit_tokenizer`.
        max_tokens: longest token sequence of the model; saved with the tokenizer.
        shards: data/shards, of which only the training split is read; `fetch` is for tars that are not there.
        given: each returns the texts of tars that others made, which are read in equal numbers instead of the shards.

    Raises:
        DataError: the training split has no text with a word in it, or the given tokenizer is not one of a BERT.
        CorruptError: the given tokenizer has another digest, or a shard is damaged.
    """

    def texts() -> Iterator[str]:
        sources = [texts_of() for texts_of in given] or [iter_texts(shards, "train", fetch)]
        most = -(-config.max_texts // len(sources))
        return chain.from_iterable(islice(chain.from_iterable(source), most) for source in sources)

    if config.given is not None:
        tokenizer = given_tokenizer(config.given)
    else:
        tokenizer = fit_wordpiece(texts(), vocab_size=config.vocab_size, min_count=config.min_count)
    with replace_directory(out, "fit_tokenizer") as part:
        save_tokenizer(tokenizer, part, max_tokens=max_tokens)
    tokenised = TextTokenizer.load(out, max_tokens=1_000_000)  # no text has more: lengths are those without truncation
    unknown: Any = tokenizer.token_to_id("[UNK]")
    tokens, lengths = Counter[int](), Counter[int]()
    longest, rest = (0, ""), texts()
    while some := list(islice(rest, _TEXTS_AT_ONCE)):
        ids_of = tokenised.ids(some)
        longest = max(longest, *((len(ids), text) for ids, text in zip(ids_of, some, strict=True)))
        lengths.update(map(len, ids_of))
        tokens.update(chain.from_iterable(ids_of))
    report = FitTokenizerReport(
        longest_text=longest[1],
        metrics={
            "fit_tokenizer/num_texts": lengths.total(),
            "fit_tokenizer/vocab_size": tokenizer.get_vocab_size(),
            "fit_tokenizer/tokens_per_text": round(tokens.total() / lengths.total(), 4),
            "fit_tokenizer/longest_text_tokens": longest[0],
            "fit_tokenizer/num_truncated": sum(number for length, number in lengths.items() if length > max_tokens),
            "fit_tokenizer/num_unknown_tokens": tokens[unknown],
        },
    )
    pieces = {piece: tokens[number] for piece, number in tokenised.vocabulary.items()}
    with replace_directory(reports, "fit_tokenizer") as part:
        write_page(report.metrics, pieces, lengths, max_tokens, to=part)
        write_report(report, part)
    return report


def main(params: Params, args: argparse.Namespace) -> None:
    """Entry point of `align fit_tokenizer`."""
    paths, store = params.section(PathsConfig), params.section(StoreConfig)
    indexes = [folder for folder, *_ in given_data(params, args.data, "fit_tokenizer")]
    if not indexes:
        require_passed(paths.reports / SHARDS, read_manifest(paths.shards).digest, paths.shards)
    with record_runtime("fit_tokenizer", paths.runtime):
        report = fit_tokenizer(
            params.section(FitTokenizerConfig), max_tokens=params.section(ModelConfig).max_tokens, shards=paths.shards,
            out=paths.tokenizer, reports=paths.reports / "fit_tokenizer", fetch=fetcher(store),
            given=[partial(given_texts, folder, StoreFiles(store)) for folder in indexes],
        )  # fmt: skip
    size, num_texts, length = (
        report.metrics[f"fit_tokenizer/{name}"] for name in ("vocab_size", "num_texts", "tokens_per_text")
    )
    say(f"fit_tokenizer: {size:,} tokens from {num_texts:,} texts, {length:.1f} tokens per text")
