"""Keeps mutated files readable as far as the interesting part: checksums are made right again."""

import gzip
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_GZIP = b"\x1f\x8b"
_TAR_BLOCK = 512
#: The most that is taken from a gzip member.
_MAX_BYTES = 1 << 20


def mutator(mutate):
    """The mutator of libFuzzer: every eighth file keeps its wrong checksums."""

    def mutated(data, max_size, seed):
        if seed % 8 == 0:
            return mutate(data, max_size)
        if data.startswith(_GZIP):
            return _first_member_mutated(data, max_size, mutate)[:max_size]
        return with_checksums(mutate(data, max_size))

    return mutated


def with_checksums(data):
    """The file with the checksums of a PNG's chunks or of a tar's headers made right."""
    if data.startswith(_PNG):
        return _png(data)
    return _tar(data) if data[257:262] == b"ustar" else data


def _first_member_mutated(data, max_size, mutate):
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(data, _MAX_BYTES)
    except zlib.error:
        return mutate(data, max_size)
    return gzip.compress(mutate(plain, max(max_size, len(plain))), mtime=0) + unpacker.unused_data


def _png(data):
    pieces, position = [_PNG], len(_PNG)
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4])
        if end + 4 > len(data):
            break
        pieces += [data[position:end], zlib.crc32(data[position + 4 : end]).to_bytes(4)]
        position = end + 4
    return b"".join([*pieces, data[position:]])


def _tar(data):
    blocks = bytearray(data)
    for start in range(0, len(blocks) - _TAR_BLOCK + 1, _TAR_BLOCK):
        if blocks[start + 257 : start + 262] == b"ustar":
            blocks[start + 148 : start + 156] = b" " * 8
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + _TAR_BLOCK])
    return bytes(blocks)
