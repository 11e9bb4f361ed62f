"""Parquet files of unknown origin: small files that unpack to gigabytes, damaged strings, and ordinary ones."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import CorruptError, DataError
from align.formats import pair_addresses
from align.formats.pair_addresses import ADDRESSES, PairAddress, PairAddresses, write_addresses
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


HOSTILE = [
    "javascript:alert(1)", "data:text/html,<script>x</script>", "https://a.example/\u202egpj.exe", "",
    "\"'><img src=x>", "https://a.example/" + "x" * 10_000, "\0\n", "赤い/ä",
]  # fmt: skip
NUMS = np.array([1, 3, 2, 2])


def write(folder):
    step = pair_addresses.IMAGES_AT_ONCE
    nums = [NUMS[first : first + step] for first in range(0, len(NUMS), step)]
    write_addresses(folder, nums, [addresses(HOSTILE[:5]), addresses(HOSTILE[5:], 5)])
    return folder


def addresses(pages, first=0):
    pictures = [f"https://p.example/{number}" for number in range(first, first + len(pages))]
    return pa.table({"page_urls": pages, "urls": pictures})


@pytest.mark.usefixtures("any_blocks")
def test_every_image_gets_the_addresses_of_its_own_pairs(tmp_path):
    found = PairAddresses.load(write(tmp_path), 4)
    start = 0
    for position, number in enumerate(NUMS):
        read = found.of(position, int(number))
        assert [one.page_url for one in read] == HOSTILE[start : start + number]
        assert [one.url for one in read] == [f"https://p.example/{n}" for n in range(start, start + number)]
        start += int(number)
    pages = list[str]()
    assert not list(found.covered(lambda url, page: bool(pages.append(page)))) and pages == HOSTILE


def test_as_many_addresses_as_pairs(tmp_path):
    for pages in (HOSTILE[1:], [*HOSTILE, ""]):
        with pytest.raises(ValueError, match=f"{len(pages)} addresses for 8 pairs"):
            write_addresses(tmp_path, [NUMS], [addresses(pages)])
    write_addresses(tmp_path, [], [])
    PairAddresses.load(tmp_path, 0)


def test_what_is_open_stays_when_the_file_is_replaced(tmp_path):
    found = PairAddresses.load(write(tmp_path), 4)
    (tmp_path / "new").write_bytes(b"other")
    os.replace(tmp_path / "new", tmp_path / ADDRESSES)
    assert found.of(0, 1) == (PairAddress(HOSTILE[0], "https://p.example/0"),)


def test_damage_is_one_line(tmp_path):
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
