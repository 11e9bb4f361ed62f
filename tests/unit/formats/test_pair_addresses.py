"""addresses.parquet: what was written comes back, whatever it says, and damage is one line."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import CorruptError
from align.formats import pair_addresses
from align.formats.pair_addresses import ADDRESSES, PairAddress, PairAddresses, iter_addresses, write_addresses

HOSTILE = [
    "javascript:alert(1)", "data:text/html,<script>x</script>", "https://a.example/\u202egpj.exe", "",
    "\"'><img src=x>", "https://a.example/" + "x" * 10_000, "\0\n", "赤い/ä",
]  # fmt: skip
NUMS = np.array([1, 3, 2, 2])


def write(folder: Path) -> Path:
    write_addresses(folder, NUMS, pa.array(HOSTILE), pa.array([f"https://p.example/{n}" for n in range(8)]))
    return folder


@pytest.mark.parametrize("rows_per_group", [1, 3, 4096])
def test_every_image_gets_the_addresses_of_its_own_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_group: int
) -> None:
    monkeypatch.setattr(pair_addresses, "_ROWS_PER_GROUP", rows_per_group)
    found = PairAddresses.load(write(tmp_path), 4)
    start = 0
    for position, number in enumerate(NUMS):
        addresses = found.of(position, int(number))
        assert [one.page_url for one in addresses] == HOSTILE[start : start + number]
        assert [one.url for one in addresses] == [f"https://p.example/{n}" for n in range(start, start + number)]
        start += int(number)
    assert [one.page_url for one in iter_addresses(tmp_path)] == HOSTILE


def test_as_many_addresses_as_pairs_and_none_of_an_older_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="7 pages and 8 pictures for 8 pairs"):
        write_addresses(tmp_path, NUMS, pa.array(HOSTILE[1:]), pa.array(HOSTILE))
    assert list(iter_addresses(tmp_path)) == []
    write_addresses(tmp_path, np.array([], np.int64), pa.array([], pa.string()), pa.array([], pa.string()))
    PairAddresses.load(tmp_path, 0)


def test_what_is_open_stays_when_the_file_is_replaced(tmp_path: Path) -> None:
    found = PairAddresses.load(write(tmp_path), 4)
    (tmp_path / "new").write_bytes(b"other")
    os.replace(tmp_path / "new", tmp_path / ADDRESSES)
    assert found.of(0, 1) == (PairAddress(HOSTILE[0], "https://p.example/0"),)


def test_damage_is_one_line(tmp_path: Path) -> None:
    good = (write(tmp_path) / ADDRESSES).read_bytes()
    for number in (0, 3, 5):
        with pytest.raises(CorruptError, match=r"damaged .*run `align index` again"):
            PairAddresses.load(tmp_path, number)
    with pytest.raises(CorruptError, match="addresses are missing"):
        PairAddresses.load(tmp_path, 4).of(0, 2)
    table = pq.read_table(tmp_path / ADDRESSES)
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array([None] * 4, table.schema.field(0).type)),
                   tmp_path / ADDRESSES)  # fmt: skip
    with pytest.raises(CorruptError, match="damaged"):
        PairAddresses.load(tmp_path, 4).of(0, 1)
    for place in range(0, len(good), max(1, len(good) // 200)):
        (tmp_path / ADDRESSES).write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            found = PairAddresses.load(tmp_path, 4)
            for position, number in enumerate(NUMS):
                assert len(found.of(position, int(number))) == number
        except CorruptError as error:
            assert "\n" not in str(error)
