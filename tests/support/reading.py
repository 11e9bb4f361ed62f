"""Reads whole sources, for tests."""

from collections import Counter
from typing import Any

from align.config import load_params
from align.config.download import DownloadConfig
from align.config.ingest import IngestConfig
from align.config.store import StoreConfig
from align.ingest.sources import Source, open_source
from align.ingest.sources.outcomes import OTHER_RECORDS, OUTCOMES, count_of
from align.services.store import open_files


def source_at(location: object, *overrides: str) -> Source:
    """The source of these `ingest.` overrides, such as `source=html`."""
    params = load_params(overrides=[each if each.startswith("download.") else f"ingest.{each}" for each in overrides])
    files = open_files(params.section(StoreConfig), params.section(DownloadConfig))
    return open_source(params.section(IngestConfig), str(location), files)


def rows_of(source: Source, counts: Counter[str] | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All candidates and all responses, file after file."""
    candidates: list[dict[str, Any]] = []
    responses: list[dict[str, Any]] = []
    counts = Counter() if counts is None else counts
    for file in source.files:
        for batch in source.scan(file, counts):
            assert 0 < len(batch) < 10_000
            (candidates if "text" in batch.schema.names else responses).extend(batch.to_pylist())
    return candidates, responses


def without_outcomes(counts: Counter[str]) -> dict[str, int]:
    """The counts of a scan, less those of an archive's records."""
    of_records = {OTHER_RECORDS, *map(count_of, OUTCOMES)}
    return {name: number for name, number in counts.items() if name not in of_records}
