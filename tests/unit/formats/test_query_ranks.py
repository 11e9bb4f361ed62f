from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError, FormatError
from align.formats.query_ranks import QueryRanks, Ranked, read_ranks, write_ranks
from align.statistics.chance import chance


def ranks():
    def part(labels, *values, languages=()):
        ids = tuple(f"q{index}" for index in range(len(values)))
        clusters, ones = ("c0", "c0", "c1")[: len(values)], np.ones(len(values), int)
        return Ranked(ids, clusters, labels, np.array(values), ones, 12, languages)

    return QueryRanks(
        {"s": "d1", "t": "d2"},
        {
            ("s", "image_to_text"): part(None, 1, 6, 12),
            ("s", "text_to_image"): part(None, 1, 1, 1, languages=("en", None, "de")),
            ("t", "zero_shot"): part(("cat", "owl"), 1, 2),
            ("t", "tied"): replace(part(None, 2, 6), ties=np.array([[1, 1], [5, 2]])),
        },
    )


def test_what_is_written_is_read_and_equal_ranks_are_equal_bytes(tmp_path):
    write_ranks(ranks(), tmp_path / "a.parquet")
    write_ranks(ranks(), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    found = read_ranks(tmp_path / "a.parquet")
    assert found.sets == {"s": "d1", "t": "d2"}
    assert list(found.ranked) == list(ranks().ranked)
    for key, part in ranks().ranked.items():
        one = found.ranked[key]
        assert (one.queries, one.clusters, one.labels, one.num_items, one.languages) == (
            part.queries, part.clusters, part.labels, part.num_items, part.languages
        )  # fmt: skip
        assert (one.ranks == part.ranks).all() and (one.num_correct == part.num_correct).all()
        assert (one.recall(1) == part.recall(1)).all()
    assert found.ranked["t", "tied"].recall(1) == pytest.approx([1 / 2, 2 / 7])  # of two items, and two of seven


def test_another_schema_version_or_columns_that_it_lacks_are_refused(tmp_path):
    path = tmp_path / "ranks.parquet"
    write_ranks(ranks(), path)
    table = pq.read_table(path)
    earlier = table.replace_schema_metadata({**table.schema.metadata, b"align.schema_version": b"2"})
    for other, version in ((earlier, 2), (table.drop_columns(["wrong_ties"]), 3)):
        pq.write_table(other, path)
        with pytest.raises(FormatError, match=f"schema_version {version}, or other columns .*; this code reads 3"):
            read_ranks(path)


def test_metrics_follow_from_the_ranks():
    def value(metric):
        return float(np.mean([group.values.mean() for group in ranks().scored(metric)]))

    assert value("s/image_to_text/recall@1") == pytest.approx(1 / 3)
    assert value("s/image_to_text/recall@10") == pytest.approx(2 / 3)
    assert value("s/image_to_text/mean_recall") == pytest.approx((1 + 1 / 3) / 3)
    assert value("s/mean_recall") == pytest.approx((1 + (1 + 1 / 3) / 3) / 2)
    assert value("t/zero_shot/accuracy") == 0.5
    assert ranks().chance("t/zero_shot/accuracy") == pytest.approx(1 / 12)
    assert ranks().chance("s/mean_recall") == pytest.approx(np.mean([chance([1], 12, k) for k in (1, 5, 10)]))
    for name in ("s/recall@1", "t/knn/accuracy", "s/image_to_text/recall@2", "s/zero_shot/accuracy", "u/mean_recall"):
        with pytest.raises(DataError, match="was not measured; the measured sets are s, t"):
            ranks().scored(name)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "ranks.parquet"
    with pytest.raises(DataError, match="no such file; run `align evaluate`"):
        read_ranks(path)
    path.write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(DataError, match="not readable as Parquet"):
        read_ranks(path)
    write_ranks(ranks(), path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not readable as Parquet"):
        read_ranks(path)
    pq.write_table(pa.table({"set": ["s"]}), path)
    with pytest.raises(FormatError, match="schema_version none"):
        read_ranks(path)
    write_ranks(ranks(), path)
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, b"align.schema_version": b"4"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(FormatError, match="schema_version 4"):
        read_ranks(path)
