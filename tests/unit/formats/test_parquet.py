"""Parquet files of unknown origin: small files that unpack to gigabytes, damaged strings, and ordinary ones."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError
from align.formats.parquet import ForeignTable
from align.pairs.text import MAX_CHARACTERS
from tests.support.bombs import parquet_bomb, with_little_memory

READ = """
from pathlib import Path
from align.formats.parquet import ForeignTable
for path in sys.argv[1:]:
    lengths = []
    for batch in ForeignTable(Path(path), path).batches(["caption", "key"]):
        lengths += [len(text) for text in batch["caption"].to_pylist()]
    print(len(lengths), *set(lengths))
"""


def test_a_small_file_takes_little_memory(tmp_path):
    num_rows = {"RLE_DICTIONARY": 700, "DELTA_BYTE_ARRAY": 500, "PLAIN": 100}
    paths = [parquet_bomb(tmp_path / encoding, number, encoding) for encoding, number in num_rows.items()]
    assert max(path.stat().st_size for path in paths) < 40_000
    expected = [f"{number} {MAX_CHARACTERS}" for number in num_rows.values()]
    assert with_little_memory(READ, *paths, mib=500).splitlines() == expected


def test_values_that_are_too_large_for_any_batch_are_an_error(tmp_path):
    path = parquet_bomb(tmp_path / "bomb.parquet", 64, num_bytes=16 << 20)
    with pytest.raises(DataError, match=r"bomb\.parquet: 64 row\(s\) of row group 0 need more than 512 MiB of memory"):
        list(ForeignTable(path, str(path)).batches(["caption"]))


def test_ordinary_tables_are_read_as_they_are(tmp_path):
    texts = [None if row % 7 == 0 else f"Grüße aus 東京 {row}" for row in range(10_000)]
    table = pa.table({"text": texts, "number": list(range(10_000)), "list": [[row] for row in range(10_000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3000)
    read = ForeignTable(tmp_path / "t.parquet", "t").batches(["number", "text", "list"])
    assert pa.Table.from_batches(read).select(table.column_names).to_pydict() == table.to_pydict()


def test_bytes_that_are_no_text_are_replaced(tmp_path):
    damaged = pa.array([b"caf\xe9 au lait", b"fine", None], pa.binary()).view(pa.string())
    for name, column in {"plain": damaged, "large": damaged.cast(pa.large_string(), safe=False)}.items():
        pq.write_table(pa.table({"text": column}), tmp_path / f"{name}.parquet")
        (batch,) = ForeignTable(tmp_path / f"{name}.parquet", name).batches(["text"])
        assert batch["text"].to_pylist() == ["caf\ufffd au lait", "fine", None]
