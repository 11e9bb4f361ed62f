"""Parquet files of unknown origin: small files that unpack to gigabytes, damaged strings, and ordinary ones."""

from pathlib import Path

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
lengths = []
for batch in ForeignTable(Path(sys.argv[1]), sys.argv[1]).batches(["caption", "key"]):
    lengths += [len(text) for text in batch["caption"].to_pylist()]
print(len(lengths), *set(lengths))
"""


@pytest.mark.parametrize(("encoding", "num_rows"), [("RLE_DICTIONARY", 700), ("DELTA_BYTE_ARRAY", 500), ("PLAIN", 100)])
def test_a_small_file_takes_little_memory(tmp_path: Path, encoding: str, num_rows: int) -> None:
    path = parquet_bomb(tmp_path / "bomb.parquet", num_rows, encoding)
    assert path.stat().st_size < 40_000
    assert with_little_memory(READ, path, mib=500) == f"{num_rows} {MAX_CHARACTERS}"


def test_values_that_are_too_large_for_any_batch_are_an_error(tmp_path: Path) -> None:
    path = parquet_bomb(tmp_path / "bomb.parquet", 64, num_bytes=16 << 20)
    with pytest.raises(DataError, match=r"bomb\.parquet: 64 row\(s\) of row group 0 need more than 512 MiB of memory"):
        list(ForeignTable(path, str(path)).batches(["caption"]))


def test_ordinary_tables_are_read_as_they_are(tmp_path: Path) -> None:
    texts = [None if row % 7 == 0 else f"Grüße aus 東京 {row}" for row in range(10_000)]
    table = pa.table({"text": texts, "number": list(range(10_000)), "list": [[row] for row in range(10_000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3000)
    read = ForeignTable(tmp_path / "t.parquet", "t").batches(["number", "text", "list"])
    assert pa.Table.from_batches(read).select(table.column_names).to_pydict() == table.to_pydict()


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    damaged = pa.array([b"caf\xe9 au lait", b"fine", None], pa.binary()).view(pa.string())
    for name, column in {"plain": damaged, "large": damaged.cast(pa.large_string(), safe=False)}.items():
        pq.write_table(pa.table({"text": column}), tmp_path / f"{name}.parquet")
        (batch,) = ForeignTable(tmp_path / f"{name}.parquet", name).batches(["text"])
        assert batch["text"].to_pylist() == ["caf\ufffd au lait", "fine", None]
