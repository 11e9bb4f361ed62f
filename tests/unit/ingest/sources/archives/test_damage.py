"""Archives with flipped, cut, lost and foreign bytes: what is before them is read, and the rest is counted in bytes."""

import gzip
import io
import itertools
import random
import re
import time
import zlib
from collections import Counter

import pytest
from fastwarc.stream_io import ZstdWriter, zstd_train_dictionary_from_samples

from align.config.infrastructure import StoreConfig
from align.config.ingest import IngestConfig
from align.errors import DataError
from align.ingest.sources.archives.damage import whole_records
from align.ingest.sources.archives.warc import Warc
from align.services.files.files import StoreFiles
from tests.support.params import load_params
from tests.support.reading import rows_of
from tests.support.warc_records import page, picture, response, write_archive, zstd

NUM_PAGES = 5
PARAMS = load_params()
CONFIG, FILES = PARAMS.section(IngestConfig), StoreFiles(PARAMS.section(StoreConfig))


def records(num_bytes=0):
    """Pages, each with a text of its own; `num_bytes` of text that does not compress are added to each."""
    noise = random.Random(7)
    return [
        page(f"http://x/{n}", f"<img src={n}.png alt='page {n}'>{noise.randbytes(num_bytes // 2).hex()}")
        for n in range(NUM_PAGES)
    ]


def with_dictionary(parts):
    """The first frame of a .zst, and frames that need it."""
    samples = [page(f"http://x/{n}", f"<p>a page of words<img src={n}.png alt='page {n}'>") for n in range(500)]
    dictionary, packed, ends = zstd_train_dictionary_from_samples(samples, 1024), io.BytesIO(), []
    writer = ZstdWriter(packed, dictionary=dictionary, compress_dictionary_frame=True)
    for part in parts:
        writer.write(part)
        writer.finish()
        writer.flush()
        ends.append(len(packed.getvalue()))
    data = packed.getvalue()
    first = 8 + int.from_bytes(data[4:8], "little")
    return data[:first], [data[start:end] for start, end in itertools.pairwise([first, *ends])]


def stored(data):
    """A gzip member whose content is not compressed: only its checksum tells that a byte of it was flipped."""
    packer = zlib.compressobj(0, wbits=31)
    return packer.compress(data) + packer.flush()


PACKERS = {
    "a.warc": bytes, "a.warc.gz": lambda data: gzip.compress(data, mtime=0), "stored.warc.gz": stored,
    "a.warc.zst": zstd,
}  # fmt: skip


def opened(path, images_from="archive"):
    return Warc(CONFIG.model_copy(update={"images_from": images_from}), str(path), FILES)


def read(path, images_from="archive"):
    """The texts of the pages, and the counts."""
    counts = Counter()
    candidates, _ = rows_of(opened(path, images_from), counts)
    return [row["text"] for row in candidates], counts


def pages(up_to=NUM_PAGES):
    return [f"page {n}" for n in range(up_to)]


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("damaged", [0, 2, NUM_PAGES - 1])
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.numerics)])
def test_after_any_flipped_byte_no_damaged_record_is_used(tmp_path, name, damaged, step):
    """Of a file of Zstandard, the record before the damage is not used either."""
    parts = [PACKERS[name](one) for one in records()]
    path = tmp_path / name
    starts = [sum(map(len, parts[:n])) for n in range(NUM_PAGES + 1)]
    kept = [damaged - 1, damaged] if name.endswith(".zst") else [damaged]
    num_lost, positions = 0, range(0, len(parts[damaged]), step)
    for position in positions:
        flipped = bytearray(parts[damaged])
        flipped[position] ^= 0x15
        path.write_bytes(b"".join([*parts[:damaged], flipped, *parts[damaged + 1 :]]))
        try:
            texts, counts = read(path)
        except DataError as error:
            assert "not a web archive" in str(error)
            assert min(kept) <= 0
            num_lost += 1
            continue
        assert counts["damaged_files"] == (counts["bytes_lost"] > 0)
        if counts["bytes_lost"]:
            num_lost += 1
            assert texts == pages(len(texts))
            assert len(texts) in kept, f"byte {position}"
            begin = starts[-1] - counts["bytes_lost"]
            # without checksums, a record of which only the type is damaged is whole, and no page
            assert begin in (starts[len(texts)], starts[damaged + 1] if name == "a.warc" else None)
            with pytest.raises(DataError, match=rf"{name}: cut off or damaged at byte {begin:,} of"):
                rows_of(opened(path))
        elif name == "a.warc":  # it has no checksums
            assert [text for text in texts if text in pages()] == [text for text in pages() if text in texts]
            assert len(set(pages()) - set(texts)) <= 1, f"byte {position}"
        else:
            assert texts == pages(), f"byte {position}: packed records have checksums"
    assert num_lost > len(positions) * (0.1 if name == "a.warc" else 0.9)


def test_a_dictionary_and_damage(tmp_path):
    first, parts = with_dictionary(records())
    path = tmp_path / "a.warc.zst"
    for damaged in range(2, NUM_PAGES):
        for position in range(0, len(parts[damaged]), 13):
            flipped = bytearray(parts[damaged])
            flipped[position] ^= 0x15
            path.write_bytes(b"".join([first, *parts[:damaged], flipped, *parts[damaged + 1 :]]))
            texts, counts = read(path)
            if counts["bytes_lost"]:
                assert texts in (pages(damaged - 1), pages(damaged))
                assert counts["bytes_lost"] == sum(map(len, parts[len(texts) :]))
            else:
                assert texts == pages()
    source = opened(path)
    for row in rows_of(source, Counter())[1]:
        assert source.read(row["file"], row["offset"]).startswith(b"<img src=")


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("num_bytes", [100, 100_000])
@pytest.mark.parametrize("kind", ["foreign", "cut", "zeros"])
def test_a_file_is_used_up_to_its_first_gap(tmp_path, name, num_bytes, kind):
    """Bytes that are foreign, cut off, or filled with zeros, between records and within them."""
    parts = [PACKERS[name](one) for one in records(num_bytes)]
    path = tmp_path / name
    junk = random.Random(3).randbytes(3000)
    gap = {"foreign": junk, "cut": parts[2][: len(parts[2]) // 2], "zeros": b"\0" * 5000}[kind]
    path.write_bytes(b"".join([*parts[:2], gap, *parts[3:], junk]))
    texts, counts = read(path)
    num_used = 1 if name.endswith(".zst") else 2
    assert texts == pages(num_used)
    assert counts["bytes_lost"] == path.stat().st_size - sum(map(len, parts[:num_used]))
    assert counts["damaged_files"] == 1
    path.write_bytes(junk + b"".join(parts))
    with pytest.raises(DataError, match=f"{name}: not a web archive"):
        read(path)


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc.zst"])
def test_line_ends_of_headers_do_not_spread_damage(tmp_path, name, line_end):
    """Where every line ends in LF alone, too: no record has a CRLF at which reading its headers could end."""
    parts = [PACKERS[name](with_line_ends(one, line_end)) for one in records()]
    path = tmp_path / name
    for damaged, part in enumerate(parts[2:], 2):
        for position in (0, len(part) // 2, len(part) - 6):  # the magic, the content, and the checksum or before it
            flipped = bytearray(part)
            flipped[position] ^= 0x15
            path.write_bytes(b"".join([*parts[:damaged], flipped, *parts[damaged + 1 :]]))
            texts, counts = read(path)
            assert texts in ([pages(damaged), pages(damaged - 1)] if name.endswith(".zst") else [pages(damaged)])
            assert counts["bytes_lost"] == sum(map(len, parts[len(texts) :])), f"byte {position} of record {damaged}"


def test_an_archive_without_any_crlf_is_read(tmp_path):
    parts = [with_line_ends(one, b"\n") for one in records(400_000)]
    assert read(write_archive(tmp_path / "a.warc.gz", parts)) == (
        pages(), Counter({"pages": 5, "rows": 5, "outcome/page": 5}),
    )  # fmt: skip


def with_line_ends(record, line_end):
    """A response whose lines end otherwise, with the lengths that it then has."""
    head, content = record.split(b"\r\n\r\n", 1)
    content = content.removesuffix(b"\r\n\r\n").replace(b"\r\n", line_end)
    return with_length(head + b"\r\n\r\n", len(content)).replace(b"\r\n", line_end) + content + 2 * line_end


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
def test_pictures_before_the_damage_are_found_again(tmp_path, name):
    red = picture(9, 9)
    path = write_archive(
        tmp_path / name,
        [response("http://x/4.png", red, "image/png"), response("http://x/5.png", red * 2, "image/png"), *records()],
    )
    data = bytearray(path.read_bytes())
    data[-40] ^= 0xFF
    path.write_bytes(data[:-20])
    source = opened(path)
    responses = rows_of(source, Counter())[1]
    assert [source.read(row["file"], row["offset"]) for row in responses[:2]] == [red, red * 2]


def test_an_archive_that_is_compressed_as_a_whole_is_used_up_to_the_damage(tmp_path):
    whole = gzip.compress(b"".join(records(100_000)) * 8, mtime=0)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path = tmp_path / "a.warc.gz"
    path.write_bytes(bytes(flipped) + whole)
    counts = Counter()
    candidates, _ = rows_of(opened(path, "web"), counts)
    assert 10 < len(candidates) <= 20
    assert counts["damaged_files"] == 1


def test_what_other_readers_of_zstandard_skip_is_no_damage(tmp_path):
    """A seek table, as the seekable format has it after the last frame."""
    path = write_archive(tmp_path / "a.warc.zst", records())
    path.write_bytes(path.read_bytes() + bytes.fromhex("5e2a4d1804000000") + b"seek")
    assert read(path) == (pages(), Counter({"pages": 5, "rows": 5, "outcome/page": 5}))


def with_length(record, length):
    """A record that states another length."""
    return re.sub(rb"(Content-Length: )\d+(?=\r?\n)", rb"\g<1>%d" % length, record, count=1)


@pytest.mark.parametrize("length", [99_999_999, 500_200])  # beyond the end, and before it, within a record
def test_a_record_with_a_wrong_length_is_not_used(tmp_path, length):
    parts = [page(f"http://x/{n}", "<p>" + "x" * 300) for n in range(10_000)]
    parts[10] = with_length(parts[10], length)
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(parts))
    counts = read(path)[1]
    assert (counts["pages"], counts["damaged_files"]) == (10, 1)
    assert counts["bytes_lost"] == sum(map(len, parts[10:]))


@pytest.mark.parametrize("num_members", [1000, 20_000])
def test_many_members_are_read_once(num_members):
    """Where records have no offsets, all members are checked."""
    record = PACKERS["a.warc.gz"](b"".join(records()[:3]))
    data = record + gzip.compress(b"", mtime=0) * num_members
    for filler in (b"", b"\0\0\0"):
        stream = CountingReader(data + filler)
        counts = Counter()
        begins = lambda offset: data[offset : offset + 2] == b"\x1f\x8b"  # noqa: E731
        assert len(list(whole_records("a.warc.gz", stream, begins, 1000, counts))) == 3
        assert not counts
        assert stream.num_bytes < 4 * len(data) + (1 << 18)


class CountingReader(io.BytesIO):
    """Counts the bytes that are read."""

    num_bytes = 0

    def read(self, size=-1, /):
        data = super().read(size)
        self.num_bytes += len(data)
        return data


HOSTILE = {
    "magics.warc.gz": lambda n: bytes.fromhex("1f8b0800") * (n // 4),
    "members.warc.gz": lambda n: gzip.compress(b"WARC/1.0\nX:y\n\n")[:-4] * (n // 32),
    "magics.warc.zst": lambda n: bytes.fromhex("28b52ffd") * (n // 4),
    "frames.warc.zst": lambda n: (bytes.fromhex("28b52ffd0058a90000") + b"WARC/1.0\r\nX:y\r\n\r\njk") * (n // 30),
    "lines.warc": lambda n: b"\n\nWARC/1.0\nX:" * (n // 13),
    "headers.warc": lambda n: b"\n\nWARC/1.0\r\nContent-Length: 99\r\n\r\nx" * (n // 36),
    "lengths.warc": lambda n: b"\n\nWARC/1.0\r\nContent-Length: 9999999\r\n\r\n" * (n // 40),
    "zeros.warc": lambda n: bytes(n),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_looks_damaged_everywhere_takes_linear_time(tmp_path, kind):
    packed = PACKERS["a" + kind.removeprefix(kind.partition(".")[0])]
    good = b"".join(map(packed, records()))

    def spent_s(num_bytes):
        path = tmp_path / f"{num_bytes}.{kind}"
        path.write_bytes(good + HOSTILE[kind](num_bytes))
        start = time.process_time()
        texts, counts = read(path, "web")
        assert texts[:1] == ["page 0"]
        assert counts["bytes_lost"] <= path.stat().st_size
        return time.process_time() - start

    spent_s(1000)
    once = spent_s(200_000)
    assert spent_s(800_000) < 8 * max(once, 0.05)
