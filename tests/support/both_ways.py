"""A folder of img2dataset decided both ways: by the filter itself (paths.raw), and by `ingest.source: shards` first."""

from collections import Counter

import pyarrow.parquet as pq
import pytest

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.filter.filter import FilterFolders, filter_pairs
from align.formats.raw import raw_shards, read_table
from align.ingest.ingest import ingest
from align.ingest.workers import Resources
from align.pairs.urls import canonical_or_as_is
from tests.support.params import load_params
from tests.support.small_filter import quicken

#: Address, text, whether it is kept, and all reasons why it is not.
Decision = tuple[str, str, bool, tuple[str, ...]]

_PARAMS = load_params(overrides=["engine.num_workers=1", "engine.num_threads=2", "ingest.source=shards"])


def by_the_filter(folder, work, policy=None, **filter_values):
    """The decisions of `align filter` on a folder in img2dataset's layout, however it numbers its pairs."""
    config = _PARAMS.section(FilterConfig).model_copy(update=filter_values)
    none = work / "none"
    none.mkdir(parents=True)
    folders = FilterFolders(folder, none, policy or none, work / "filtered", work / "reports/filter")
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        filter_pairs(config, _PARAMS.section(EngineConfig), folders)
    urls = {
        row["key"]: canonical_or_as_is(row["url"])
        for shard in raw_shards(folder)
        for row in read_table(shard, ["key", "url"]).to_pylist()
    }
    rows = pq.read_table(work / "filtered/decisions").to_pylist()
    return Counter((urls[row["key"]], row["text"], row["keep"], tuple(row["reasons"])) for row in rows)


def ingested(folder, raw, policy=None, **ingest_values):
    """data/raw of such a folder by `ingest.source: shards`."""
    config = _PARAMS.section(IngestConfig).model_copy(update=ingest_values)
    resources = Resources(_PARAMS.section(DownloadConfig), _PARAMS.section(EngineConfig), _PARAMS.section(StoreConfig))
    assert ingest(config, resources, archive=str(folder), raw=raw, policy=policy or raw.parent / "none") is not None
    return raw


def by_shards(folder, work, policy=None, **filter_values):
    """The decisions by `align ingest` with `source: shards`, then `align filter`."""
    work.mkdir(parents=True, exist_ok=True)
    return by_the_filter(ingested(folder, work / "raw", policy), work, policy, **filter_values)
