import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.formats.filtered import find_pair


@pytest.mark.parametrize("sizes", [(1,), (3, 4, 1), (0, 2, 0, 0, 5, 3, 0), (0, 0)])
def test_a_pair_is_found_in_few_of_the_parts(tmp_path, sizes, monkeypatch):
    opened, read = [], pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda path, **how: opened.append(path) or read(path, **how))
    (tmp_path / "facts").mkdir()
    keys = iter(f"{number:03d}5" for number in range(100))
    written = []
    for number, size in enumerate(sizes):
        mine = [next(keys) for _ in range(size)]
        table = pa.table({"number": pa.array([number] * size), "key": pa.array(mine, pa.string())})
        pq.write_table(table, tmp_path / f"facts/{number:05d}.parquet", row_group_size=2)
        written += [{"number": number, "key": key} for key in mine]
    for row in written:
        assert find_pair(tmp_path, "facts", row["key"]) == row
    assert len(opened) == len(written)
    for key in ("", "0000", "0036", "9"):
        assert find_pair(tmp_path, "facts", key) is None
    assert find_pair(tmp_path, "decisions", "0005") is None
