"""Reads whole sources, for tests."""

from collections import Counter
from pathlib import Path
from typing import Any

from align.cli import main
from align.config.infrastructure import StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.errors import DataError
from align.formats.raw import raw_shards, read_table
from align.ingest.sources import Source, open_source
from align.ingest.sources.outcomes import OTHER_RECORDS, OUTCOMES, count_of
from align.ingest.sources.reading import damage_in
from align.services.files.files import StoreFiles
from tests.support.params import PARAMS_FILE, at, load_params, sets


def source_at(location: object, *overrides: str) -> Source:
    """The source of these `ingest.` overrides, such as `source=folder`."""
    params = load_params(overrides=[each if each.startswith("download.") else f"ingest.{each}" for each in overrides])
    files = StoreFiles(params.section(StoreConfig), params.section(DownloadConfig))
    return open_source(params.section(IngestConfig), str(location), files)


def rows_of(source: Source, counts: Counter[str] | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All candidates and all responses, file after file. Without `counts`, a damaged file is an error."""
    candidates: list[dict[str, Any]] = []
    responses: list[dict[str, Any]] = []
    found = Counter() if counts is None else counts
    for file in source.files:
        for batch in source.scan(file, found):
            assert 0 < len(batch) < 10_000
            (candidates if "text" in batch.schema.names else responses).extend(batch.to_pylist())
    if counts is None and (damage := damage_in(found)):
        raise DataError("; ".join(damage))
    return candidates, responses


def raw_rows(raw: Path) -> list[dict[str, Any]]:
    """All rows of a data/raw."""
    return [row for shard in raw_shards(raw) for row in read_table(shard).to_pylist()]


def ingested(root: Path, archive: object, *values: object, words: tuple[str, ...] = (), code: int = 0) -> list[Any]:
    """Runs `align ingest` with one worker, which may ask this machine's servers; its rows, if it works."""
    own = (f"paths.archive={archive}", "engine.num_workers=1", "download.allow_networks=[127.0.0.0/8]")
    folders = at(root, "raw", "reports", "runtime", "policy")
    assert main(["ingest", "--params", str(PARAMS_FILE), *sets(*own, *folders, *values), *words]) == code
    return raw_rows(root / "raw") if code == 0 else []


def read_all(path: object, source: str, counts: Counter[str] | None = None) -> list[Any]:
    """The rows of a source without responses, each with its bytes."""
    opened = source_at(path, f"source={source}")
    rows, responses = rows_of(opened, counts)
    assert responses == []
    return [{**row, "bytes": opened.read(row["file"], row["offset"]) if row["file"] else None} for row in rows]


def short(rows: list[Any], *columns: str) -> list[tuple[Any, ...]]:
    """Some columns of rows."""
    return [tuple(row[column] for column in columns) for row in rows]


def table_rows(path: object, *columns: str, counts: Counter[str] | None = None) -> list[Any]:
    """The rows of a table of addresses; `columns` are such as `url=link`."""
    names = [f"columns.{column}" for column in columns]
    candidates, responses = rows_of(source_at(path, "source=url_table", *names), counts)
    assert responses == []
    return candidates


def pairs(rows: list[Any]) -> list[tuple[str, str]]:
    """Address and text of each row."""
    return [(row["url"], row["text"]) for row in rows]


def without_outcomes(counts: Counter[str]) -> dict[str, int]:
    """The counts of a scan, less those of an archive's records."""
    of_records = {OTHER_RECORDS, *map(count_of, OUTCOMES)}
    return {name: number for name, number in counts.items() if name not in of_records}
