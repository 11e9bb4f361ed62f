"""Tars as no tool writes them: each member is read, or has a problem and is passed over, or ends the tar."""

import io
import random
import tarfile

import pytest

from align.formats.tar import BLOCK, padding
from align.formats.tar_members import DamagedTar, member_at, read_members

DATA = b"d" * 700


def header(name=b"odd.jpg", size=b"00000001274\0", kind=b"0", magic=b"ustar\x0000"):
    """A header with a right checksum, whatever its fields are."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    for start, field in ((100, b"0000644"), (108, b"0000000"), (116, b"0000000")):
        block[start : start + len(field)] = field
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = magic
    return signed(block)


def signed(block):
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


def member(name, data=DATA):
    return bytes(header(name, b"%011o\0" % len(data))) + data + padding(len(data))


def extended(kind, data):
    return bytes(header(b"././@Extended", b"%011o\0" % len(data), kind)) + data + padding(len(data))


def pax(*values):
    data = b""
    for key, value in values:
        size = len(key) + len(value) + 3
        size += len(str(size + len(str(size))))
        data += b"%d %s=%s\n" % (size, key, value)
    return extended(b"x", data)


def read(odd):
    return list(read_members(io.BytesIO(member(b"first.jpg") + odd + member(b"last.jpg") + bytes(2 * BLOCK))))


BODY = DATA + padding(len(DATA))
NEGATIVE_256 = b"\xff" * 11 + b"\x00"
#: A member whose size is impossible.
DAMAGED = {
    "octal below zero": bytes(header(size=b"-0000000001\0")),
    "octal below zero, with data": bytes(header(size=b"-0000001000\0")) + BODY,
    "no octal digits": bytes(header(size=b"999999999 \0")) + BODY,
    "base 256 below zero": bytes(header(size=NEGATIVE_256)) + BODY,
    "base 256 beyond the end": bytes(header(size=b"\x80" + b"\x7f" * 11)) + BODY,
    "octal beyond the end": bytes(header(size=b"77777777777\0")) + BODY,
    "PAX size below zero": pax((b"size", b"-512")) + member(b"odd.jpg"),
    "PAX size that is no number": pax((b"size", b"1e3")) + member(b"odd.jpg"),
    "PAX size beyond the end": pax((b"size", b"9" * 18)) + member(b"odd.jpg"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_an_impossible_size_ends_the_tar(kind):
    data = member(b"first.jpg") + DAMAGED[kind] + member(b"last.jpg") + bytes(2 * BLOCK)
    members = read_members(io.BytesIO(data))
    assert next(members).name == "first.jpg"
    with pytest.raises(DamagedTar, match=r"odd\.jpg at byte [\d,]+ (is no number from 0|are cut off)"):
        next(members)


#: An odd member, the name that is shown, and a part of its problem.
ODD = {
    "PAX of no structure": (extended(b"x", b"hello") + member(b"odd.jpg"), "odd.jpg", "extended header is damaged"),
    "PAX that ends early": (extended(b"x", b"99 path=a\n") + member(b"odd.jpg"), "odd.jpg", "header is damaged"),
    "PAX of length zero": (extended(b"x", b"0 path=a\n") + member(b"odd.jpg"), "odd.jpg", "header is damaged"),
    "PAX of two megabytes": (
        extended(b"x", b"1" * (2 << 20)) + member(b"odd.jpg"), "odd.jpg", "extended header has 2,097,152 bytes"
    ),
    "GNU sparse": (bytes(header(kind=b"S")) + BODY, "odd.jpg", "neither a file nor a link"),
    "hard link": (bytes(header(kind=b"1")), "odd.jpg", "a hard link"),
    "symbolic link": (bytes(header(kind=b"2")), "odd.jpg", "a symbolic link"),
    "device": (bytes(header(kind=b"3", size=b"77777777777\0")), "odd.jpg", "a device"),
    "unknown kind": (bytes(header(kind=b"Z")) + BODY, "odd.jpg", "neither a file nor a link"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_members_are_passed_over(kind):
    odd, name, problem = ODD[kind]
    first, passed_over, last = read(odd)
    assert (first.name, first.problem, last.name, last.problem) == ("first.jpg", None, "last.jpg", None)
    assert passed_over.name == name
    assert problem in (passed_over.problem or "")


def test_members_that_are_odd_and_right():
    tar = b"".join(
        [
            bytes(header(b"base256.jpg", b"\x80" + bytes(9) + (700).to_bytes(2, "big"))) + BODY,
            bytes(header(b"spaces.jpg", b"       1274 ")) + BODY,
            pax((b"path", "größer.jpg".encode()), (b"size", b"700")) + bytes(header(b"x", b"00000000000\0")) + BODY,
            extended(b"L", b"long/" * 60 + b"name.jpg\0") + member(b"short"),
            extended(b"g", b"14 size=-5\n") + member(b"global.jpg"),
            bytes(header(b"folder/\0", kind=b"5")),
            bytes(header(b"old-folder/\0", kind=b"\0")),
            member(b"bytes-\xff.jpg"),
            member(b"../../up.jpg"),
            member(b"empty.jpg", b""),
        ]
    )
    file = io.BytesIO(tar)
    members = list(read_members(file))
    assert [one.name for one in members] == [
        "base256.jpg", "spaces.jpg", "größer.jpg", "long/" * 60 + "name.jpg", "global.jpg", "bytes-\\xff.jpg",
        "../../up.jpg", "empty.jpg",
    ]  # fmt: skip
    for one in members:
        assert one.problem is None
        assert member_at(file, one.start) == one
        assert tar[one.offset : one.offset + one.size] == (DATA if one.size else b"")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_same_as_tarfile(tmp_path, form):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for number in range(50):
            one = tarfile.TarInfo(f"{'folder/' * (number % 14)}é{number}.jpg")
            one.size = number * 37
            tar.addfile(one, io.BytesIO(bytes(one.size)))
    with tarfile.open(path) as tar, path.open("rb") as file:
        expected = [(one.name, one.offset_data, one.size) for one in tar]
        assert [(one.name, one.offset, one.size) for one in read_members(file)] == expected


@pytest.mark.parametrize("damage", [
    lambda data: data[: 3 * 1536 - 100],  # after the data, in what fills the block
    lambda data: data[: 3 * 1536 + 100],
    lambda data: data[: 3 * 1536 + 1000],
    lambda data: data[: 3 * 1536] + b"x" * BLOCK + data[3 * 1536 + BLOCK :],
    lambda data: data[: 3 * 1536] + pax((b"path", b"a"))[:BLOCK],
])  # fmt: skip
def test_damage_is_an_error_after_the_members_before(damage):
    data = b"".join(member(b"%d.jpg" % number) for number in range(5))
    members = []
    with pytest.raises(DamagedTar):
        for one in read_members(io.BytesIO(damage(data))):
            members.append(one.name)
    assert members == ["0.jpg", "1.jpg", "2.jpg"]
    with pytest.raises(DamagedTar):
        list(read_members(io.BytesIO(b"")))
    with pytest.raises(DamagedTar):
        member_at(io.BytesIO(data), 512)


def test_any_bytes_end():
    chance = random.Random(7)
    whole = b"".join(
        [member(b"a.jpg"), pax((b"path", b"b.jpg")), member(b"b"), extended(b"L", b"c.jpg\0"), member(b"c")]
    )
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 5])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.7:  # a right checksum lets the other fields through
            for start in range(0, len(data) - BLOCK, BLOCK):
                if data[start + 257 : start + 262] == b"ustar":
                    data[start : start + BLOCK] = signed(data[start : start + BLOCK])
        file = io.BytesIO(data)
        try:
            for count, one in enumerate(read_members(file)):
                assert count < len(data) // BLOCK
                assert one.offset + one.size <= len(data)
        except DamagedTar:
            pass
