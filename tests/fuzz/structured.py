"""Inputs that are nearly right: hypothesis builds them, for the targets that refuse most random bytes early."""

import csv
import io
import json
from pathlib import Path
from urllib.parse import urlencode

from hypothesis import strategies as st
from ruamel.yaml import YAML

_ADDRESSES = (
    "a.png", "/a/../b.jpg?c=%zz", "//cdn.example.org/x.webp", "https://example.org:443/ä", "http://[::1]/",
    "http://[bad", "data:image/png;base64,AAAA", "data:,", "../../../../etc/passwd", "link.png", "inside.png",
    "file:///etc/passwd", "",
)  # fmt: skip
_WORDS = (
    "a red heart", "don't", "1920x1080", "img_", "ﾞ", "ﾟ", "\u0301", "\u0345\u0301", "\u1100\u1161", "ß", "İ",
    "\U0001f1e9\U0001f1ea", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "ka-ka.jpg", "a@b.de", "+49 30 1234567",
    "\u202e", "\x1b[31m", "\ud83d", "\u2028", "$x^2$", "_", "__", "'", "١٢", "/", "\\",
)  # fmt: skip
_words = st.lists(st.sampled_from(_WORDS) | st.text(max_size=8), max_size=12).map(" ".join) | st.text(max_size=64)
_address = (
    st.sampled_from(_ADDRESSES) | st.text(max_size=24) | st.tuples(st.sampled_from(_ADDRESSES), _words).map("".join)
)


def _encoded(text):
    return text.encode("utf-8", "surrogatepass")


def _element(children):
    names = (
        "img", "figure", "figcaption", "picture", "source", "base", "a", "p", "noscript", "template", "svg", "table",
        "title", "script", "style", "textarea", "iframe",
    )  # fmt: skip
    attributes = st.tuples(
        st.sampled_from(
            ("src", "srcset", "alt", "title", "href", "type", "data-src", "data-srcset", "aria-label", "x")
        ),
        _address
        | _words
        | st.lists(st.tuples(_address, st.sampled_from(("1x", "2x", "9e9w", "800w", ""))).map(" ".join)).map(", ".join),
    ).map(lambda pair: f" {pair[0]}='{pair[1]}'")
    return st.tuples(
        st.sampled_from(names),
        st.lists(attributes, max_size=4).map("".join),
        st.lists(children, max_size=4).map("".join),
    ).map(lambda parts: f"<{parts[0]}{parts[1]}>{parts[2]}" + (f"</{parts[0]}>" if len(parts[2]) % 3 else ""))


_page = st.recursive(_words, _element, max_leaves=24).map(_encoded)

_rules = st.lists(
    st.tuples(
        st.sampled_from(("User-agent", "Allow", "Disallow", "dissalow", "Content-Usage", "Sitemap", "#", "")),
        st.sampled_from((":", " :", "")),
        st.sampled_from(("*", "align-ingest", "GPTBot", "/a train-ai=n", "/", "/*.png$", "/a*b*c*d*e", "/%2F", "*$*"))
        | st.text(max_size=12),
    ).map("".join),
    max_size=24,
).map("\n".join)
_robots = st.tuples(_rules, st.text(max_size=40)).map("\n".join).map(_encoded)

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(_WORDS) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def _parameters():
    params = YAML(typ="safe", pure=True).load(Path(__file__).parents[1] / "support/params.yaml")
    return [f"{section}.{key}" for section, keys in params.items() for key in keys or ()]


_form = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(("demo", "../x", "-f", "a b", "refs/heads/main", "a..b")) | st.text(max_size=16),
        "ref": st.none() | st.sampled_from(("main", "--upload-pack=x", "HEAD~1", "@{1}")) | st.text(max_size=16),
        "profile": st.sampled_from(("demo", "paper", "../params", "x.yaml")) | st.text(max_size=8),
        "only": st.sampled_from(("all", "data", "training", "evaluation", "")),
        "from_stage": st.none() | st.sampled_from(("ingest", "pretrain", "")) | st.text(max_size=8),
        "num_steps": st.none() | st.integers(),
        "learning_rate": st.none() | st.floats(),
        "overrides": st.dictionaries(st.sampled_from(_parameters()) | st.text(max_size=12), _json, max_size=4),
        "snapshot_dirty": st.booleans(),
    },
).map(lambda form: _encoded(json.dumps(form)))

_row = st.fixed_dictionaries({"url": _address, "caption": _words}) | _json


def _separated(rows):
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_MINIMAL, escapechar="\\").writerows(rows)
    return _encoded("url,caption\n" + text.getvalue())


_table = (
    st.lists(st.lists(_address | _words, max_size=3), max_size=8).map(_separated)
    | st.lists(_row, max_size=6).map(lambda rows: _encoded("\n".join(map(json.dumps, rows))))
    | st.lists(_row, max_size=6).map(lambda rows: _encoded(json.dumps(rows)))
)

_image = st.fixed_dictionaries({"id": st.integers(0, 3), "file_name": _address}) | _json
_annotation = st.fixed_dictionaries({"image_id": st.integers(0, 4) | _json, "caption": _words}) | _json
_karpathy = st.fixed_dictionaries(
    {"filename": _address, "sentences": st.lists(st.fixed_dictionaries({"raw": _words}) | _json, max_size=2)}
)
_coco = (
    st.fixed_dictionaries(
        {"images": st.lists(_image, max_size=3) | _json, "annotations": st.lists(_annotation, max_size=3) | _json}
    )
    | st.fixed_dictionaries({"images": st.lists(_karpathy | _json, max_size=3)})
    | _json
).map(lambda data: _encoded(json.dumps(data)))

_link = (
    st.fixed_dictionaries(
        {"path": st.sampled_from(("IMG@/src", "A@/href")), "url": _address | _json, "alt": _words | _json}
    )
    | _json
)
_wat = st.tuples(_address | _json, st.lists(_link, max_size=4) | _json, _json).map(
    lambda parts: _encoded(
        json.dumps({"Envelope": {
            "WARC-Header-Metadata": {"WARC-Target-URI": parts[0]},
            "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {
                "Head": {"Base": parts[2]}, "Links": parts[1],
            }}},
        }}, separators=(",", ":"))
    )
)  # fmt: skip


def _member(parts):
    """A tar header with the given size field and type, its checksum made right, and data."""
    name, size, kind, data = parts
    block = bytearray(512)
    block[:100] = name.encode("utf-8", "replace")[:100].ljust(100, b"\0")
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124:136] = (size or b"%011o" % len(data)).ljust(12, b"\0")[:12]
    block[136:157] = b"00000000000\0" + b" " * 8 + kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


_size = (
    st.just(b"")
    | st.sampled_from(
        (b"\xff" * 12, b"\x80" + b"\0" * 10 + b"\1", b"\x80" + b"\xff" * 11, b"-0000000001", b"77777777777")
    )
    | st.binary(max_size=12)
)
_pax = st.tuples(
    st.sampled_from(("size", "path", "hdrcharset", "mtime")),
    st.sampled_from(("-1", "1e9", "", "0", "99999999999999999999", "../x")) | st.text(max_size=8),
).map(lambda pair: _record(f"{pair[0]}={pair[1]}\n".encode("utf-8", "replace")))


def _record(text):
    length = len(text) + 3
    return b"%d %s" % (length if length < 100 else length + 1, text)


_tar = st.lists(
    st.tuples(
        st.sampled_from(("a.jpg", "a.txt", "a.json", "b/0001.png", "b/0001.json", "../x.jpg", "."))
        | st.text(max_size=12),
        _size,
        st.sampled_from((b"0", b"5", b"x", b"g", b"L", b"S", b"1", b"\0")),
        st.binary(max_size=32) | _pax | _json.map(lambda value: _encoded(json.dumps({"caption": value, "url": value}))),
    ).map(_member),
    max_size=5,
).map(lambda members: b"".join([*members, bytes(1024)]))  # fmt: skip

_query = st.dictionaries(
    st.sampled_from((
        "text", "key", "plus", "minus", "weight", "split", "words", "offset", "limit", "large", "of", "ready",
    )),
    _words | st.sampled_from(("train", "1", "0", "-1", "1e999", "nan", "000000001", "a " * 500)),
    max_size=5,
)  # fmt: skip
_body = st.dictionaries(
    st.sampled_from(("text", "key", "image", "images", "texts", "words", "split", "weight", "limit", "x")),
    st.recursive(_words | st.none() | st.floats() | st.sampled_from(("iVBORw0KGgo=", "train")), st.lists, max_leaves=8),
    max_size=6,
).map(lambda value: _encoded(json.dumps(value)))  # fmt: skip


def _request(parts):
    method, path, query, headers, body, is_chunked = parts
    length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(body)}"
    asked = urlencode(query, errors="surrogatepass")
    lines = [f"{method} {path}?{asked} HTTP/1.1", "Host: 127.0.0.1:4300", length, *headers]
    text = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + text


_service = st.lists(
    st.tuples(
        st.sampled_from(("GET", "POST", "HEAD", "OPTIONS", "PUT")),
        st.sampled_from((
            "/search", "/search/image", "/embed", "/embed/image", "/image/000000001", "/item/000000001", "/item/..%2f",
            "/item/%00", "/health", "/metrics", "/openapi.json", "/", "/page.js", "//search", "/%ff",
        )),
        _query,
        st.lists(
            st.sampled_from((
                "Content-Type: application/json", "Content-Type: image/png", "Expect: 100-continue", "Host: evil",
                "Origin: http://evil", "Authorization: Basic !!", "Content-Encoding: gzip", "Connection: close",
            )),
            max_size=3,
        ),
        _body | st.binary(max_size=64),
        st.booleans(),
    ).map(_request),
    min_size=1, max_size=3,
).map(b"".join)  # fmt: skip

STRATEGIES = {
    "page": _page, "wat": _wat, "tar": _tar, "table": _table, "coco": _coco,
    "text": _words.map(_encoded),
    "url": st.tuples(_address.filter(lambda text: "\n" not in text), _address).map("\n".join).map(_encoded),
    "robots": _robots, "form": _form, "service": _service,
}  # fmt: skip
