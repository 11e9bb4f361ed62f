"""explain: everything known of one pair, from the page where it was found to the models that were trained on it.

Reads what the stages wrote (data/raw, data/filtered, data/shards), data/policy and MLflow's registry, and through git
and DVC the data of models that were trained on another version of it. It writes nothing, and says what does not exist.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from align.config import Params
from align.config.filter import FilterConfig
from align.config.paths import PathsConfig
from align.config.register import RegisterConfig
from align.config.store import StoreConfig
from align.console import show, show_json
from align.files import sha256_file, to_json
from align.lineage.data_versions import DataVersions
from align.lineage.explain_text import text_lines
from align.lineage.pair_history import PairHistory, look_up, look_up_models, require_pairs
from align.lineage.raw_pairs import RawRow
from align.services.store import fetcher

_HEX_DIGITS_OF_SHA256 = 64


def main(params: Params, args: argparse.Namespace) -> None:
    """`align explain`: find the pairs, look up each one's history, print them."""
    column, value = _column_and_value(args)
    rows = require_pairs(params.section(PathsConfig).raw, column, value)
    histories = _histories(params, rows)
    if args.json:
        show_json(to_json(list(histories)))
        return
    for number, history in enumerate(histories):
        if number:
            show("")
        show(*text_lines(history))


def _column_and_value(args: argparse.Namespace) -> tuple[str, str]:
    if args.url:
        return "url", args.url
    if Path(args.what).is_file():
        return "sha256", sha256_file(Path(args.what))
    return ("sha256" if len(args.what) == _HEX_DIGITS_OF_SHA256 else "key"), args.what


def _histories(params: Params, rows: list[RawRow]) -> Iterator[PairHistory]:
    paths, config = params.section(PathsConfig), params.section(FilterConfig)
    fetch, register = fetcher(params.section(StoreConfig)), params.section(RegisterConfig)
    with tempfile.TemporaryDirectory(prefix="align-") as scratch:
        versions = DataVersions(Path.cwd(), Path(scratch))
        for row in rows:
            history = look_up(
                row,
                config,
                filtered=paths.filtered,
                report=paths.reports / "filter",
                shards=paths.shards,
                policy=paths.policy,
                fetch=fetch,
            )
            yield look_up_models(history, register, paths.shards, versions, fetch)
