"""Decided rows are read in order of their row numbers, in bounded memory."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from align.filter.decide import RowsInOrder


def test_what_was_decided_is_read_piece_by_piece(tmp_path: Path) -> None:
    path, number = tmp_path / "decided.parquet", 2_000_000
    pq.write_table(
        pa.table({"row_number": range(number), "mask": range(number)}), path, row_group_size=20_000, compression="none"
    )
    rows, before, most = RowsInOrder(path), pa.total_allocated_bytes(), 0
    for begin in range(0, number, 7_000):
        taken = rows.below(begin + 7_000)
        assert taken["row_number"].to_pylist() == list(range(begin, min(begin + 7_000, number)))
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < path.stat().st_size / 4


def test_rows_with_gaps_are_read_up_to_a_row_number(tmp_path: Path) -> None:
    path, row_numbers = tmp_path / "decided.parquet", [3, 4, 7, 30, 31, 90]
    pq.write_table(pa.table({"row_number": row_numbers}), path, row_group_size=2)
    rows = RowsInOrder(path)
    pieces = [rows.below(end)["row_number"].to_pylist() for end in (3, 5, 30, 31, 31, 100, 200)]
    assert pieces == [[], [3, 4], [7], [30], [], [31, 90], []]
