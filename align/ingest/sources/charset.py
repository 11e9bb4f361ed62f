"""A page's bytes -> its text, in any charset, stated or not."""

from __future__ import annotations

import codecs

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
#: Python's codecs of these names cover less than what browsers (and so pages) mean by them.
_WIDER = {"shift_jis": "cp932", "euc_kr": "cp949", "gbk": "gb18030", "big5": "big5hkscs", "iso8859-11": "cp874"}


def decode_html(body: bytes, http_charset: str | None) -> str:
    """The text of a page in any charset.

    Tried in this order: the byte order mark; UTF-8, if all but a few of the bytes beyond ASCII are valid (in another
    charset that does not happen by chance, while headers are often wrong); the HTTP header; the <meta> tag; detection.
    A charset that the bytes contradict is skipped. A last character that is cut off does not contradict it, because
    crawlers cut long pages. If none fits, the first one that fits all but a few bytes is used; finally Windows-1252.
    """
    for bom, encoding in _BOMS:
        if body.startswith(bom):
            return body.decode(encoding, errors="replace")
    if body.isascii():
        if b"\x1b" not in body and b"\0" not in body:  # neither ISO-2022 escape sequences nor UTF-16
            return body.decode("ascii")
    elif (utf8 := _decoded(body, "utf-8") or _nearly_decoded(body, "utf-8")) is not None:
        return utf8
    names = [
        map_encoding_to_html5(http_charset, False) if http_charset else None,
        detect_encoding(body, from_html_meta=True),
        detect_encoding(body),
    ]
    encodings = [_WIDER.get(name, name) for name in names if name]
    for encoding in encodings:
        text = _decoded(body, encoding)
        if text is not None:
            return text
    for encoding in encodings:
        text = _nearly_decoded(body, encoding)
        if text is not None:
            return text
    return body.decode("cp1252", errors="replace")


def _nearly_decoded(body: bytes, encoding: str) -> str | None:
    """The text, if at most one in fifty bytes beyond ASCII is invalid in this charset."""
    text = body.decode(encoding, errors="replace")
    num_bytes = len(body) - len(body.translate(None, bytes(range(128, 256))))
    return text if text.count("\ufffd") * 50 <= num_bytes else None


def _decoded(body: bytes, encoding: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(body)
    except (UnicodeDecodeError, LookupError):
        return None
