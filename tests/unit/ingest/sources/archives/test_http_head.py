"""Heads of HTTP responses, usual, odd and hostile."""

import io
import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.ingest.sources.archives.http_head import MAX_HEAD_BYTES, parse_head, read_head

_LINES = (
    b"HTTP/1.1 200 OK", b"Content-Type: Text/HTML; Charset=UTF-8", b"Location: /a", b"location: /b", b"X-Folded: one",
    b"\t two",
)  # fmt: skip


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n", b"\r\r\n"])
def test_line_ends(line_end):
    data = line_end.join([*_LINES, b"", b"<p>\r\n\r\nbody"])
    head = parse_head(data)
    assert head.status == 200
    assert (head.content_type, head.charset) == ("text/html", "utf-8")
    assert head.get("LOCATION") == "/a"  # the first one, as fastwarc's header map has it
    assert head.get("X-Folded") == "one two"
    assert head.get("Server") is None
    assert head.get("Server", "") == ""
    assert data[len(head.data) :] == b"<p>\r\n\r\nbody"
    assert read_head(io.BytesIO(data)) == (head, b"<p>\r\n\r\nbody")


def test_mixed_line_ends():
    for ends in itertools.product((b"\r\n", b"\n"), repeat=len(_LINES) + 1):
        lines = b"".join(line + end for line, end in zip([*_LINES, b""], ends, strict=True))
        head = parse_head(lines + b"<p>\r\n\r\nbody")
        assert head.data == lines
        assert (head.get("Location"), head.get("X-Folded"), head.charset) == ("/a", "one two", "utf-8")


@pytest.mark.parametrize(("line", "status"), [
    (b"HTTP/1.1 200", 200), (b"HTTP/1.0 404 Not Found", 404), (b"HTTP/2 301 ", 301), (b"http/1.1  200\tOK", 200),
    (b"HTTP 200 OK", 200), (b"HTTP/1.1 200 R\xe9ponse", 200), (b"HTTP/1.1", None), (b"HTTP/1.1 2000 OK", None),
    (b"HTTP/1.1 OK", None), (b"ICY 200 OK", None), (b"<html>", None), (b"", None), (b"\0", None),
])  # fmt: skip
def test_status_lines(line, status):
    for data in (line + b"\r\n\r\nbody", line + b"\nA: b\n\nbody", line + b"\r\n", line):
        head = parse_head(data)
        assert (head and head.status) == status
        assert read_head(io.BytesIO(data))[0] == head


@pytest.mark.parametrize(("value", "content_type", "charset"), [
    (b"text/html", "text/html", None),
    (b"TEXT/html ;charset='Latin1' ; x=y", "text/html", "latin1"),
    (b'text/html; x=y; charset="utf-8"', "text/html", "utf-8"),
    (b"text/html; charset = utf-8", "text/html", "utf-8"),
    (b"text/html;charset=", "text/html", None),
    (b"text/html; xcharset=utf-8", "text/html", None),
    (b"text/html, text/html; charset=big5", "text/html", "big5"),
    (b"", "", None),
    (b"\xff", "\xff", None),
])  # fmt: skip
def test_content_types(value, content_type, charset):
    head = parse_head(b"HTTP/1.1 200 OK\nContent-Type:" + value + b"\n\n")
    assert (head.content_type, head.charset) == (content_type, charset)


def test_values_in_utf8_and_in_latin_1():
    head = parse_head(b"HTTP/1.1 302 \nLocation : /\xc3\xa4\nX: \xe4\n\n")
    assert (head.get("location"), head.get("x")) == ("/ä", "ä")


def test_a_head_without_an_empty_line():
    head = parse_head(b"HTTP/1.1 304 Not Modified\r\nEtag: a\r\n")
    assert head.get("etag") == "a"
    assert parse_head(b"HTTP/1.1 200 OK\r\nEtag: a\r\n<html><p>body") is None


def test_long_heads():
    lines = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"y" * 1000) for i in range(900)) + b"A: b\r\n\r\n"
    head, rest = read_head(io.BytesIO(lines + b"body"))
    assert (head.data, head.get("a"), rest[:4]) == (lines, "b", b"body")
    head, rest = read_head(io.BytesIO(lines[:-4] + b"z" * MAX_HEAD_BYTES + b"\r\n\r\nbody"))
    assert head is None
    assert len(rest) == MAX_HEAD_BYTES + 1  # and no more was read


class _Slow(io.BytesIO):
    """Gives one byte at a time."""

    def read(self, size=-1, /):
        return super().read(min(size or 1, 1))


@settings(derandomize=True)
@given(st.lists(st.sampled_from([b"HTTP/1.1 200", b"\r", b"\n", b":", b" ", b"a", b"Content-Type", b"\xff\0"])))
def test_any_bytes(pieces):
    data = b"".join(pieces)
    head = parse_head(data)
    assert read_head(_Slow(data)) == (head, data[len(head.data) if head else 0 :])
    if head:
        assert data.startswith(head.data)
        _ = head.get("a"), head.content_type, head.charset  # none raises


@pytest.mark.parametrize(
    "piece", [b"\r", b"\n ", b" ", b"a", b"a:\n", b"\n\r\r", b"a:\n ", b"; charset", b";charset=  ", b"Content-Type  "]
)
def test_time_is_linear(piece):
    for start in (b"HTTP/1.1 200 OK\n", b"HTTP/1.1 200 OK\nContent-Type:", b"HTTP/1.1 200 "):
        for end in (b"", b"\nx\n\n"):
            data = start + piece * ((MAX_HEAD_BYTES - 100) // len(piece)) + end
            started = time.process_time()
            head, _ = read_head(io.BytesIO(data))
            if head:
                _ = head.content_type, head.charset, head.get("Location")
            assert time.process_time() - started < 1, (start, piece, end)
