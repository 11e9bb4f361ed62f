"""Archives with flipped, cut, lost and foreign bytes: every other record is read, and the gap is counted in bytes."""

import gzip
import io
import itertools
import random
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fastwarc.stream_io import ZstdWriter, zstd_train_dictionary_from_samples

from align.config.infrastructure import StoreConfig
from align.config.ingest import IngestConfig
from align.errors import DataError
from align.ingest.sources.archives import arc, damage, warc_records
from align.ingest.sources.archives.damage import Repaired
from align.ingest.sources.archives.warc import Warc
from align.services.files.files import StoreFiles
from tests.support.arc_records import arc_response, arc_start
from tests.support.params import load_params
from tests.support.reading import rows_of
from tests.support.warc_records import page, picture, response, write_archive, zstd

NUM_PAGES = 5
PARAMS = load_params()
CONFIG, FILES = PARAMS.section(IngestConfig), StoreFiles(PARAMS.section(StoreConfig))


def records(num_bytes: int = 0) -> list[bytes]:
    """Pages, each with a text of its own; `num_bytes` of text that does not compress are added to each."""
    noise = random.Random(7)
    return [
        page(f"http://x/{n}", f"<img src={n}.png alt='page {n}'>{noise.randbytes(num_bytes // 2).hex()}")
        for n in range(NUM_PAGES)
    ]


def with_dictionary(parts: list[bytes]) -> tuple[bytes, list[bytes]]:
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


def stored(data: bytes) -> bytes:
    """A gzip member whose content is not compressed: only its checksum tells that a byte of it was flipped."""
    packer = zlib.compressobj(0, wbits=31)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "a.warc": bytes, "a.warc.gz": lambda data: gzip.compress(data, mtime=0), "stored.warc.gz": stored,
    "a.warc.zst": zstd,
}  # fmt: skip


def opened(path: Path, images_from: str = "archive") -> Warc:
    return Warc(CONFIG.model_copy(update={"images_from": images_from}), str(path), FILES)


def read(path: Path, images_from: str = "archive") -> tuple[list[str], Counter[str]]:
    """The texts of the pages, and the counts."""
    counts: Counter[str] = Counter()
    candidates, _ = rows_of(opened(path, images_from), counts)
    return [row["text"] for row in candidates], counts


def pages(*without: int) -> list[str]:
    return [f"page {n}" for n in range(NUM_PAGES) if n not in without]


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("damaged", [0, 2, NUM_PAGES - 1])
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.full)])
def test_any_flipped_byte_costs_one_record_at_most(tmp_path: Path, name: str, damaged: int, step: int) -> None:
    parts = [PACKERS[name](one) for one in records()]
    path = tmp_path / name
    start = sum(map(len, parts[:damaged]))
    num_lost, positions = 0, range(0, len(parts[damaged]), step)
    for position in positions:
        flipped = bytearray(parts[damaged])
        flipped[position] ^= 0x15
        path.write_bytes(b"".join([*parts[:damaged], flipped, *parts[damaged + 1 :]]))
        texts, counts = read(path)
        others = [text for text in texts if text in pages(damaged)]
        assert others == pages(damaged), f"byte {position}"
        assert counts["bytes_lost"] in (0, len(parts[damaged])), f"byte {position}"
        assert counts["damaged_files"] == (counts["bytes_lost"] > 0)
        if counts["bytes_lost"]:
            num_lost += 1
            assert texts == others, f"byte {position}: a damaged record was used"
            with pytest.raises(
                DataError, match=rf"{name}: (cut off or damaged at byte {start:,} of|not a web)"
            ) as error:
                rows_of(opened(path))
            assert "not a web archive" in str(error.value) or f"{len(parts[damaged]):,} bytes cannot be" in str(
                error.value
            )
        elif name != "a.warc":
            assert texts == pages(), f"byte {position}: packed records have checksums"
    assert num_lost > len(positions) * (0.1 if name == "a.warc" else 0.9)


def test_a_dictionary_is_still_used_after_the_damage(tmp_path: Path) -> None:
    first, parts = with_dictionary(records())
    path = tmp_path / "a.warc.zst"
    for damaged in range(NUM_PAGES):
        for position in range(0, len(parts[damaged]), 13):
            flipped = bytearray(parts[damaged])
            flipped[position] ^= 0x15
            path.write_bytes(b"".join([first, *parts[:damaged], flipped, *parts[damaged + 1 :]]))
            texts, counts = read(path)
            if counts["bytes_lost"]:
                assert (texts, counts["bytes_lost"]) == (pages(damaged), len(parts[damaged]))
            else:
                assert texts == pages()
    source = opened(path)
    for row in rows_of(source, Counter())[1]:
        body = source.read(row["file"], row["offset"])
        assert body is not None
        assert body.startswith(b"<img src=")


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("num_bytes", [100, 100_000])
def test_several_gaps_in_one_file(tmp_path: Path, name: str, num_bytes: int) -> None:
    """Bytes that are lost, foreign, or filled with zeros, between records and within them."""
    parts = [PACKERS[name](one) for one in records(num_bytes)]
    path = tmp_path / name
    junk = random.Random(3).randbytes(3000)
    damaged = [parts[0], junk, parts[1][: len(parts[1]) // 2], parts[2], b"\0" * 5000, parts[3], junk, parts[4]]
    path.write_bytes(b"".join(damaged))
    texts, counts = read(path)
    assert texts == pages(1)
    assert counts["bytes_lost"] == 3000 + len(parts[1]) // 2 + 5000 + 3000
    assert counts["damaged_files"] == 1
    path.write_bytes(junk + b"".join(parts[2:]) + junk)
    texts, counts = read(path)
    assert (texts, counts["bytes_lost"]) == (pages(0, 1), 6000)


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc.zst"])
def test_line_ends_of_headers_do_not_spread_damage(tmp_path: Path, name: str, line_end: bytes) -> None:
    """Where every line ends in LF alone, too: no record has a CRLF at which reading its headers could end."""
    parts = [PACKERS[name](with_line_ends(one, line_end)) for one in records()]
    path = tmp_path / name
    for damaged, part in enumerate(parts):
        for position in (0, len(part) // 2, len(part) - 6):  # the magic, the content, and the checksum or before it
            flipped = bytearray(part)
            flipped[position] ^= 0x15
            path.write_bytes(b"".join([*parts[:damaged], flipped, *parts[damaged + 1 :]]))
            texts, counts = read(path)
            assert (texts, counts["bytes_lost"]) == (pages(damaged), len(part)), f"byte {position} of record {damaged}"


def test_an_archive_without_any_crlf_is_read(tmp_path: Path) -> None:
    parts = [with_line_ends(one, b"\n") for one in records(400_000)]
    assert read(write_archive(tmp_path / "a.warc.gz", parts)) == (
        pages(), Counter({"pages": 5, "rows": 5, "outcome/page": 5}),
    )  # fmt: skip


def with_line_ends(record: bytes, line_end: bytes) -> bytes:
    """A response whose lines end otherwise, with the lengths that it then has."""
    head, content = record.split(b"\r\n\r\n", 1)
    content = content.removesuffix(b"\r\n\r\n").replace(b"\r\n", line_end)
    return with_length(head + b"\r\n\r\n", len(content)).replace(b"\r\n", line_end) + content + 2 * line_end


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
def test_pictures_after_the_damage_are_found_again(tmp_path: Path, name: str) -> None:
    red = picture(9, 9)
    path = write_archive(
        tmp_path / name,
        [*records(), response("http://x/4.png", red, "image/png"), response("http://x/5.png", red * 2, "image/png")],
    )
    data = bytearray(path.read_bytes())
    data[1] ^= 0xFF
    path.write_bytes(data)
    source = opened(path)
    responses = rows_of(source, Counter())[1]
    assert [source.read(row["file"], row["offset"]) for row in responses[-2:]] == [red, red * 2]


def test_an_archive_that_is_compressed_as_a_whole_is_used_up_to_the_damage(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(records(100_000)) * 8, mtime=0)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path = tmp_path / "a.warc.gz"
    path.write_bytes(bytes(flipped) + whole)
    counts: Counter[str] = Counter()
    candidates, _ = rows_of(opened(path, "web"), counts)
    assert 40 < len(candidates) <= 80
    assert counts["damaged_files"] == 1


def test_what_other_readers_of_zstandard_skip_is_no_damage(tmp_path: Path) -> None:
    """A seek table, as the seekable format has it after the last frame."""
    path = write_archive(tmp_path / "a.warc.zst", records())
    path.write_bytes(path.read_bytes() + bytes.fromhex("5e2a4d1804000000") + b"seek")
    assert read(path) == (pages(), Counter({"pages": 5, "rows": 5, "outcome/page": 5}))


def with_length(record: bytes, length: int) -> bytes:
    """A record that states another length."""
    return re.sub(rb"(Content-Length: |text/html )\d+(?=\r?\n)", rb"\g<1>%d" % length, record, count=1)


@pytest.mark.parametrize("suffix", ["warc", "arc"])
@pytest.mark.parametrize(
    ("length", "num_wrong"), [(99_999_999, 40), (500_200, 40), (2_000_000, 12)]
)  # beyond the end, and before it: the latter end within records
def test_wrong_lengths_cost_only_their_records(tmp_path: Path, suffix: str, length: int, num_wrong: int) -> None:
    num_pages = 10_000
    html = "<p>" + "x" * 300
    parts = (
        [page(f"http://x/{n}", html) for n in range(num_pages)]
        if suffix == "warc"
        else [arc_start(), *(arc_response(f"http://x/{n}", html.encode()) for n in range(num_pages))]
    )
    for number in range(num_wrong):
        parts[20 * number + 10] = with_length(parts[20 * number + 10], length)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"".join(parts))
    counts = read(path)[1]
    assert counts["pages"] == num_pages - num_wrong
    assert counts["damaged_files"] == 1
    assert counts["bytes_lost"] == sum(len(parts[20 * number + 10]) for number in range(num_wrong))
    assert "reading_bounds_reached" not in counts


def test_the_bound_is_named_where_it_ends_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "_READ_AGAIN", 0)
    monkeypatch.setattr(damage, "_READ_AGAIN_BYTES", 1 << 18)
    parts = records(1000)
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join([parts[0], b"\xff" * 1_000_000, parts[1]]))
    texts, counts = read(path)
    assert (texts, counts["damaged_files"], counts["reading_bounds_reached"]) == (["page 0"], 1, 1)
    with pytest.raises(DataError, match="the bound on reading parts of a file again ended the search"):
        rows_of(opened(path))
    path.write_bytes(b"\xff" * 1_000_000)
    with pytest.raises(DataError, match=r"not a web archive .*the bound on reading parts"):
        read(path)


@pytest.mark.parametrize("num_members", [1000, 20_000])
def test_many_members_are_read_once(num_members: int) -> None:
    """Where records have no offsets, all members are checked."""
    record = PACKERS["a.warc.gz"](b"".join(records()[:3]))
    data = record + gzip.compress(b"", mtime=0) * num_members
    for filler in (b"", b"\0\0\0"):
        stream = CountingReader(data + filler)
        repaired = Repaired("a.warc.gz", stream, warc_records.LAYOUT)
        walk = warc_records.Walker(lambda offset: data[offset : offset + 2] == b"\x1f\x8b", 1000, repaired)
        counts: Counter[str] = Counter()
        assert len(list(repaired.records(walk, counts))) == 3
        assert not counts
        assert stream.num_bytes < 4 * len(data) + (1 << 18)


def test_bodies_that_are_read_again_count() -> None:
    data = b"http://x/ - 20080521031200 text/html 4000001\nHTTP/1.1 200 OK\n\nx\n" * 150_000
    stream = CountingReader(arc_start() + data)
    repaired = Repaired("a.arc", stream, arc.LAYOUT)
    counts: Counter[str] = Counter()
    assert sum(1 for _ in repaired.records(arc.Walker(1 << 30), counts)) == 1
    assert counts["reading_bounds_reached"] == 1
    assert stream.num_bytes < 20 * len(data) + (64 << 20)


class CountingReader(io.BytesIO):
    """Counts the bytes that are read."""

    num_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.num_bytes += len(data)
        return data


def nested_members(num_bytes: int) -> bytes:
    """Each member holds the beginnings of all later ones, and none has its checksum."""
    head = bytes.fromhex("1f8b08000000000000ff")
    line = b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 99999999\r\n\r\n"
    step = len(head) + 5 + len(line)
    data = bytearray()
    while len(data) < num_bytes:
        left = min(0xFFFF, num_bytes - len(data) + len(line))
        left -= (left - len(line)) % step
        data += head + b"\0" + left.to_bytes(2, "little") + (left ^ 0xFFFF).to_bytes(2, "little") + line
    return bytes(data)


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "magics.warc.gz": lambda n: bytes.fromhex("1f8b0800") * (n // 4),
    "members.warc.gz": lambda n: gzip.compress(b"WARC/1.0\nX:y\n\n")[:-4] * (n // 32),
    "nested.warc.gz": nested_members,
    "magics.warc.zst": lambda n: bytes.fromhex("28b52ffd") * (n // 4),
    "frames.warc.zst": lambda n: (bytes.fromhex("28b52ffd0058a90000") + b"WARC/1.0\r\nX:y\r\n\r\njk") * (n // 30),
    "lines.warc": lambda n: b"\n\nWARC/1.0\nX:" * (n // 13),
    "headers.warc": lambda n: b"\n\nWARC/1.0\r\nContent-Length: 99\r\n\r\nx" * (n // 36),
    "lengths.warc": lambda n: b"\n\nWARC/1.0\r\nContent-Length: 9999999\r\n\r\n" * (n // 40),
    "zeros.warc": lambda n: bytes(n),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_looks_damaged_everywhere_takes_linear_time(tmp_path: Path, kind: str) -> None:
    good = PACKERS["a" + kind.removeprefix(kind.partition(".")[0])](records()[0])

    def spent_s(num_bytes: int) -> float:
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
