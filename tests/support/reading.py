"""Reads whole sources, for tests."""

import json
from collections import Counter

from align.cli import main
from align.config.infrastructure import StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.errors import DataError
from align.formats.raw import raw_shards, read_table
from align.ingest.sources import open_source
from align.ingest.sources.outcomes import OTHER_RECORDS, OUTCOMES, count_of
from align.ingest.sources.reading import damage_in
from align.services.files.files import StoreFiles
from tests.support.params import PARAMS_FILE, at, load_params, sets


def source_at(location, *overrides):
    """The source of these `ingest.` overrides, such as `source=folder`."""
    params = load_params(overrides=[each if each.startswith("download.") else f"ingest.{each}" for each in overrides])
    files = StoreFiles(params.section(StoreConfig), params.section(DownloadConfig))
    return open_source(params.section(IngestConfig), str(location), files)


def rows_of(source, counts=None):
    """All candidates and all responses, file after file. Without `counts`, a damaged file is an error."""
    candidates = []
    responses = []
    found = Counter() if counts is None else counts
    for file in source.files:
        for batch in source.scan(file, found):
            assert 0 < len(batch) < 10_000
            (candidates if "text" in batch.schema.names else responses).extend(batch.to_pylist())
    if counts is None and (damage := damage_in(found)):
        raise DataError("; ".join(damage))
    return candidates, responses


def raw_rows(raw):
    """All rows of a data/raw."""
    return [row for shard in raw_shards(raw) for row in read_table(shard).to_pylist()]


#: Values for a table of addresses; what fails is not asked for again.
URL_TABLE = ("ingest.source=url_table", "download.num_retries=0", "download.backoff_s=0.0")


def url_table(folder, rows):
    """Writes addresses, each with its text, as a table in a folder; returns its path."""
    lines = [json.dumps({"url": url, "caption": text}) + "\n" for url, text in rows]
    (folder / "table.jsonl").write_text("".join(lines))
    return folder / "table.jsonl"


def ingest_words(root, archive, *values):
    """`align ingest` with one worker, which may ask this machine's servers; of equal keys the last one holds."""
    own = (f"paths.archive={archive}", "engine.num_workers=1", "download.allow_networks=[127.0.0.0/8]")
    folders = at(root, "raw", "reports", "runtime", "policy")
    return ["ingest", "--params", str(PARAMS_FILE), *sets(*own, *folders, *values)]


def ingested(root, archive, *values, words=(), code=0):
    """Runs `align ingest`; its rows, if it works."""
    assert main([*ingest_words(root, archive, *values), *words]) == code
    return raw_rows(root / "raw") if code == 0 else []


def read_all(path, source, counts=None):
    """The rows of a source without responses, each with its bytes."""
    opened = source_at(path, f"source={source}")
    rows, responses = rows_of(opened, counts)
    assert responses == []
    return [{**row, "bytes": opened.read(row["file"], row["offset"]) if row["file"] else None} for row in rows]


def short(rows, *columns):
    """Some columns of rows."""
    return [tuple(row[column] for column in columns) for row in rows]


def table_rows(path, *columns, counts=None):
    """The rows of a table of addresses; `columns` are such as `url=link`."""
    names = [f"columns.{column}" for column in columns]
    candidates, responses = rows_of(source_at(path, "source=url_table", *names), counts)
    assert responses == []
    return candidates


def pairs(rows):
    """Address and text of each row."""
    return [(row["url"], row["text"]) for row in rows]


def without_outcomes(counts):
    """The counts of a scan, less those of an archive's records."""
    of_records = {OTHER_RECORDS, *map(count_of, OUTCOMES)}
    return {name: number for name, number in counts.items() if name not in of_records}
