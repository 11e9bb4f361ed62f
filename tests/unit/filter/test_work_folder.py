"""Tables of all shards: a task reads the rows of its shard, and little else of the file."""

import io
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.durable.steps import Work
from align.filter.tables import MAX_ROWS
from align.filter.work_folder import FilterWork
from align.formats.policy import OptedOut


def table(folder, row_numbers, row_group_size):
    """A table of all shards with some columns, in a folder of its own."""
    (folder / "judged").mkdir(parents=True)
    columns = {"row_number": row_numbers, "mask": [number % 97 for number in row_numbers]}
    path = folder / "judged/verdicts.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size, compression="none", use_dictionary=False)
    return path


def work_on(folder, shared=None):
    return FilterWork(Work(folder, shared), None, OptedOut([]), num_workers=1, num_threads=1, device="cpu")


@pytest.mark.parametrize("row_group_size", [1, 2, 100])
def test_rows_with_gaps_are_those_of_the_shard(tmp_path, row_group_size):
    of_shards = {0: [3, 4, MAX_ROWS - 1], 1: [], 2: [0], 3: [0, 1, 2, 3], 4: []}
    row_numbers = [shard * MAX_ROWS + row for shard, rows in of_shards.items() for row in rows]
    table(tmp_path, row_numbers, row_group_size)
    for shard, rows in of_shards.items():
        found = work_on(tmp_path).rows("judged/verdicts", shard)
        expected = [shard * MAX_ROWS + row for row in rows]
        assert found.to_pydict() == {"row_number": expected, "mask": [number % 97 for number in expected]}
        assert work_on(tmp_path).rows("judged/verdicts", shard, ["row_number"]).to_pydict() == {"row_number": expected}
        assert all(column.num_chunks <= 1 for column in found.columns)


def test_a_table_without_rows_has_none_of_any_shard(tmp_path):
    table(tmp_path, [], 100)
    assert work_on(tmp_path).rows("judged/verdicts", 0).to_pydict() == {"row_number": [], "mask": []}
    with duckdb.connect() as connection:
        path = tmp_path / "judged/verdicts.parquet"
        connection.execute(f"COPY (SELECT 1::BIGINT AS row_number WHERE false) TO '{path}' (FORMAT parquet)")
    assert work_on(tmp_path).rows("judged/verdicts", 3).to_pydict() == {"row_number": []}


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    num_read = 0

    def read(self, size=-1):
        data = super().read(size)
        Counted.num_read += len(data)
        return data


def test_from_a_store_only_the_row_groups_of_a_shard_are_read(tmp_path):
    row_numbers = [shard * MAX_ROWS + row for shard in range(50) for row in range(2_000)]
    data = table(tmp_path / "driver", row_numbers, 5_000).read_bytes()
    store = SimpleNamespace(open=lambda result, file: Counted(data) if result == "judged" else None)
    work = work_on(tmp_path / "elsewhere", store)
    assert work.rows("judged/verdicts", 20)["row_number"].to_pylist() == row_numbers[40_000:42_000]
    assert 0 < Counted.num_read < len(data) / 8
