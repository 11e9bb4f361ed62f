"""Addresses: all spellings of one are recognised. (How pages are resolved is in ingest/sources/test_pages.py.)"""

import time

import pytest

from align.pairs.urls import identity


@pytest.mark.parametrize(("url", "same"), [
    ("http://a.example/b/c.jpg?d=e", "http://a.example/b/c.jpg?d=e"),
    ("https://www.a.example/b/c.jpg/", "http://a.example/b/c.jpg"),
    ("https://WWW.a.example/b/c.jpg?", "http://a.example/b/c.jpg"),
    ("http://www.example/", "http://www.example"),
    ("http://www.1.example/%62", "http://1.example/b"),
    ("HTTP://me:secret@A.Example:80/b//c.jpg#top", "http://a.example/b/c.jpg"),
    ("https://a.example:80/b", "http://a.example/b"),
    ("https://a.example.:8443", "http://a.example:8443"),
    ("ftp://a.example:80/b/", "ftp://a.example:80/b"),
    ("http://a.example/%7Eb/%63%2f%C3%A9.jpg?%64=e", "http://a.example/~b/c/\xe9.jpg?d=e"),
    ("http://a.example/../b/./c/../d/..", "http://a.example/b"),
    ("http://a.example/b/%2e%2E/c.jpg", "http://a.example/c.jpg"),
    ("http://a.example/b?e=1&d=2&&", "http://a.example/b?d=2&e=1"),
    ("http://a.example/b?utm_source=x&d=2&UTM_campaign=y&fbclid&gclid=3&mc_eid=4", "http://a.example/b?d=2"),
    ("http://a.example/b?utm=1&clid=2&d+e=%20f", "http://a.example/b?clid=2&d e= f&utm=1"),
    ("http://\uff21.b\xfccher\u3002example/", "http://a.xn--bcher-kva.example"),
    ("http://%61.example/", "http://a.example"),
    ("http://0177.1/", "http://127.0.0.1"),
    ("http://[2001:DB8:0::1]/", "http://2001:db8::1"),
    ("http://[::ffff:127.0.0.1]/b", "http://127.0.0.1/b"),
    ("http://[::FFFF:7f00:1]:8080/b", "http://127.0.0.1:8080/b"),
    ("coco:%31.jpg", "coco:%31.jpg"),
    ("data:image/png;sha256=%30", "data:image/png;sha256=%30"),
    ("http://[broken", "http://[broken"),
    ("http://a.example:x/", "http://a.example:x/"),
])  # fmt: skip
def test_all_spellings_of_an_address_have_one_identity(url, same):
    assert identity(url) == same
    assert identity(same) == same


def test_hostile_addresses_take_no_time():
    start = time.process_time()
    for url in ("http://" + "\xfc" * 100_000, "http://" + "1." * 100_000 + "x/", "http://a/" + "../b/" * 100_000,
                "http://a/" + "%41a" * 100_000, "http://" + "a." * 100_000 + "/%"):  # fmt: skip
        identity(url)
    assert time.process_time() - start < 1
