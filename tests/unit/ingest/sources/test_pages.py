"""Pages -> pictures and texts, addresses, charsets: what pages really do."""

import base64
import hashlib
import random
from urllib.parse import quote, quote_from_bytes, urldefrag, urljoin, urlsplit, urlunsplit

import pytest

from align.ingest.sources.pages import PageImage, decode_html, page_images
from align.pairs.urls import MAX_INLINE_BYTES, Resolver, canonical_url
from tests.support.warc_records import picture

TEXT_FROM = ("alt", "figcaption", "title", "aria-label")
PAGE = "https://x.example/dir/page.html"


def images(html, text_from=TEXT_FROM):
    return page_images(html.encode(), PAGE, None, text_from)[0]


def urls(html):
    return [image.url.removeprefix("https://x.example/dir/") for image in images(html)]


def test_base_entities_and_what_cannot_be_asked_for():
    html = (
        '<head><base href="//cdn.example/pics/"></head><img src=" a b.png#top " alt="caf&eacute; &quot;x&quot;">'
        '<IMG SRC="HTTP://Other.example:80/C.jpg"><img alt="no source"><img src="../up.png" alt="">'
        '<!-- <img src=comment.png> --><img src="data:image/png;base64,?" alt=inline><img src="http://[" alt=bad>'
        '<img src="ftp://x/y.png"><img src="//host.example/p?q=1&amp;r=2" alt="two&#10;lines"><img src="http:///x">'
    )
    assert images(html) == [
        PageImage("https://cdn.example/pics/a%20b.png", 'café "x"', "alt"),
        PageImage("http://other.example/C.jpg", "", None),
        PageImage(f"{PAGE}#img-2", "no source", "alt", "no address"),
        PageImage("https://cdn.example/up.png", "", None),
        PageImage("data:image/png;base64,?", "inline", "alt", "broken data: URL"),
        PageImage("http://[", "bad", "alt", "invalid URL"),
        PageImage("ftp://x/y.png", "", None, "not http or https"),
        PageImage("https://host.example/p?q=1&r=2", "two\nlines", "alt"),
        PageImage("http:///x", "", None, "invalid URL"),
    ]
    assert images("") == []
    assert images("<p>no picture, but <imgx> and &lt;img src=x&gt;") == []
    assert urls("<noscript><img src=a.png></noscript><template><img src=b.png></template><image src=c.png>") == [
        "a.png", "c.png",
    ]  # fmt: skip


def test_first_text_that_says_something():
    figure = "<figure><figcaption>A <b>cap</b>tion</figcaption><img src=a {}></figure>"
    assert [
        (one.text, one.text_source)
        for attributes in ("alt=alt title=t", "alt='' title=t", "alt=' &nbsp;&#9;' title=t", "title=t aria-label=l")
        for one in images(figure.format(attributes))
    ] == [("alt", "alt")] + [("A caption", "figcaption")] * 3
    assert images("<img src=a alt='' title=' ' aria-label=label>")[0][1:3] == ("label", "aria-label")
    assert images("<img src=a title=t aria-label=label>")[0][1:3] == ("t", "title")
    assert images("<img src=a alt='!'>")[0][1:3] == ("!", "alt")
    assert images("<img src=a alt=' '>")[0][1:3] == ("", None)
    assert images(figure.format("alt=alt title=t"), ("title", "alt"))[0][1:3] == ("t", "title")
    assert images(figure.format("title=t"), ("alt",))[0][1:3] == ("", None)
    assert images("<img src=a><p>x<figcaption>of no figure</figcaption>")[0][1:3] == ("", None)


def test_caption_is_that_of_the_nearest_figure():
    html = (
        "<figure><figure><img src=1></figure><figure><img src=2><div><figcaption>two</figcaption></div></figure>"
        "<img src=3><figcaption>outer</figcaption></figure>"
    )
    assert [one.text for one in images(html)] == ["", "two", "outer"]


@pytest.mark.parametrize(("html", "expected"), [
    ("<img src=s srcset='a 320w, b 1024w, c 640w'>", "b"),
    ("<img src=s srcset='a, b 2x,c 1.5x'>", "b"),
    ("<img src=s srcset='a 1x'>", "s"),  # equals: src
    ("<img srcset='a'>", "a"),
    ("<img src=s srcset='  ,, '>", "s"),
    ("<img src=s srcset='w_3,h_2/a.jpg 3w, w_9,h_8/b.jpg 9w'>", "w_9,h_8/b.jpg"),  # commas in addresses
    ("<img src=s srcset='a 2x, b 1w'>", "b"),  # a width is a statement, a density only a relation
    ("<img src=s srcset='a .5x, b banana'>", "s"),
    ("<img src=s srcset='a 100w 50h, b 99w'>", "a"),
    ("<picture><source srcset='a 2000w'><source srcset='b 3000w'><img src=s srcset='c 1000w'></picture>", "b"),
    ("<picture><source type=image/webp srcset=a><img src=s></picture>", "s"),
    ("<picture><source type=image/avif srcset='a 9w'><img src=s srcset='c 9w'></picture>", "c"),
    ("<picture><source type=image/svg+xml srcset='a 9000w'><img src=s></picture>", "s"),
    ("<picture><source srcset='a 2x'></picture><img src=s>", "s"),
    ("<picture><source data-srcset='a.jpg 2x'><img src=s></picture>", "a.jpg"),
    ("<img src=spacer.gif data-src=real.jpg>", "real.jpg"),
    ("<img data-original=/real>", "https://x.example/real"),
    ('<img src=s data-src=true data-lazy=\'{"a": "b.jpg"}\'>', "s"),
    ("<img src=s data-lazy-src='' data-src=' '>", "s"),
    ("<img src=s srcset='tiny 1w' data-srcset='a.jpg 800w, b.jpg 400w'>", "a.jpg"),
    ("<img src=s data-ezsrc='b.jpg' data-ezsrcset='a.jpg 800w, b.jpg 400w'>", "a.jpg"),
    ("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw=' srcset=a>", "a"),
    ("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw=' data-src=a.jpg>", "a.jpg"),
    ("<img src=s srcset='data:image/gif;base64,R0lGODlhAQABAAAAACw= 2x'>", "s"),
])  # fmt: skip
def test_which_address_is_taken(html, expected):
    assert urls(html) == [expected]


@pytest.mark.parametrize(
    "name", ["data-lsrc", "data-img-url", "data-gt-lazy-src", "data-ezsrc", "data-orig-src", "data-wpfc-original-src"]
)
def test_attributes_of_scripts_for_lazy_loading(name):
    assert urls(f"<img src=/blank.gif {name}='a.jpg'>") == ["a.jpg"]
    assert urls(f"<img data-x=y {name.upper()}='a.jpg'>") == ["a.jpg"]
    assert urls(f"<img src=s {name}=true data-src='b.jpg'>") == ["b.jpg"]
    assert urls(f'<img src=s {name}=\'{{"a": "b.jpg"}}\'>') == ["s"]


def test_srcset_of_a_megabyte_takes_no_time():
    assert urls(f"<img src=s srcset='{'a' * 500_000} banana {',' * 200_000} {'b ' * 200_000}'>") == ["s"]


def test_data_uris():
    data = picture(3, 2)
    name = f"data:image/png;sha256={hashlib.sha256(data).hexdigest()}"
    encoded = base64.b64encode(data).decode()
    for uri in (
        f"data:image/png;base64,{encoded}",
        f"DATA:IMAGE/PNG;charset=x;Base64,{encoded.rstrip('=')}",
        f"data:image/png;base64,{quote(encoded[:20])}\n {encoded[20:]}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(data).decode()}",
        f"data:image/png,{quote_from_bytes(data)}",
    ):
        assert images(f'<img src="{uri}" alt=x>') == [PageImage(name, "x", "alt", None, data)]
    for broken in ("data:", "data:,", "data:image/png;base64,AAA!", "data:image/png;base64,A", "data:image/png"):
        assert [one.problem for one in images(f'<img src="{broken}">')] == ["broken data: URL"]
    for size, problem in ((MAX_INLINE_BYTES, None), (MAX_INLINE_BYTES + 1, "data: URL too large")):
        uri = f"data:image/png;base64,{base64.b64encode(bytes(size)).decode()}"
        assert [one.problem for one in images(f'<img src="{uri}">')] == [problem]
    assert [one.url for one in images("<img src='data:,hi'>")] == [
        f"data:text/plain;sha256={hashlib.sha256(b'hi').hexdigest()}"
    ]


def test_canonical_url_is_stable():
    once = canonical_url("HTTP://X.example:80/a b/ü.png?q=1 2#f")
    assert once == "http://x.example/a%20b/%C3%BC.png?q=1%202"
    assert canonical_url(once) == once


def test_short_cuts_give_the_spelling_of_the_long_way():
    """The regular expressions for simple addresses against urllib alone, on 30,000 addresses made of awkward parts."""
    parts = [
        "http://", "https://", "HTTP://", "x.com", "X.com", "/", "//", "..", ".", "../", "a", "b.png", "?", "q=1", "#",
        "f", " ", "%20", "ü", ";", "@", ":", "\\", "\t", "[", ":80", "./", "&", "~", "=", "'", '"', "|", "\n",
    ]  # fmt: skip
    bases = [
        "http://x.com/", "https://x.com/a/b/c.html", "https://x.com/a/b/", "http://x.com/a/../b/", "http://x.com", "",
        "http://x.com//a//b", "http://x.com/a;p/b?x=/y", "http://X.com:80/a b/c", "http://x.com/?q=../a", "http://x/.a/b",
    ]  # fmt: skip

    def long_way(url):
        safe = "!#$%&'()*+,/:;=?@[]~"
        pieces = urlsplit(urldefrag(url.strip())[0])
        host = pieces.netloc.lower().removesuffix({"http": ":80", "https": ":443"}.get(pieces.scheme, "\n"))
        path = pieces.path or ("/" if host else "")
        return urlunsplit((pieces.scheme, host, quote(path, safe=safe), quote(pieces.query, safe=safe), ""))

    generator = random.Random(0)
    for _ in range(30_000):
        url = "".join(generator.choices(parts, k=generator.randint(1, 6)))
        base = generator.choice(bases)
        try:
            expected = long_way(urljoin(base, url.strip()))
        except ValueError:
            with pytest.raises(ValueError):
                Resolver(base).joined(url)
        else:
            assert Resolver(base).joined(url) == expected, (base, url)


@pytest.mark.parametrize(("body", "charset"), [
    ("Grüße €".encode(), "iso-8859-1"),  # the header is wrong: the bytes are UTF-8
    ("Grüße €".encode("cp1252"), "utf-8"),  # the header is wrong in the opposite way
    ("Grüße €".encode("cp1252"), None),
    ("Grüße €".encode("utf-8-sig"), "shift_jis"),
    ("Grüße €".encode("utf-16"), None),
    ("<meta charset=windows-1252>Grüße €".encode("cp1252"), None),
    ("Grüße €".encode("cp1252"), "no-such-charset"),
])  # fmt: skip
def test_wrong_charset_is_read_as_what_it_is(body, charset):
    assert decode_html(body, charset).endswith("Grüße €")


@pytest.mark.parametrize(("text", "encoding", "name"), [
    ("日本の写真、①番目の髙い山", "cp932", "Shift_JIS"),  # ① and 髙 are Windows' additions
    ("日本の写真", "euc_jp", "euc-jp"),
    ("日本の写真", "iso2022_jp", "iso-2022-jp"),
    ("Собака на траве", "cp1251", "windows-1251"),
    ("Собака на траве", "koi8-r", "koi8-r"),
    ("똠방각하 사진", "cp949", "euc-kr"),
    ("中文圖片", "big5", "big5"),
    ("中国图片€", "gb18030", "gb2312"),
])  # fmt: skip
def test_declared_charsets_are_used(text, encoding, name):
    assert decode_html(text.encode(encoding), name) == text
    assert decode_html(f"<meta charset={name}>{text}".encode(encoding), None).endswith(text)
    equivalent = f'<meta http-equiv="Content-Type" content="text/html; charset={name}">{text}'
    assert decode_html(equivalent.encode(encoding), None).endswith(text)


@pytest.mark.parametrize(
    ("text", "encoding"), [("これは日本語の文章です。写真を見て。" * 3, "cp932"), ("Собака на траве", "cp1251")]
)
def test_undeclared_charsets_are_detected(text, encoding):
    assert decode_html(text.encode(encoding), None) == text


def test_a_cut_or_stray_byte_does_not_change_the_charset():
    russian = "Собака на траве. " * 20
    assert decode_html(russian.encode()[:-1] + "ы".encode()[:1], "windows-1252").startswith(russian[:-2])
    assert decode_html((russian + "日").encode()[:-1], None) == russian
    stray = russian.encode() + b"\xff" + russian.encode()
    assert decode_html(stray, "windows-1252") == f"{russian}\ufffd{russian}"
    japanese = "日本の写真" * 30
    assert decode_html(japanese.encode("cp932") + b"\xff\xff" + japanese.encode("cp932"), "shift_jis").startswith(
        japanese
    )


def test_every_text_of_a_picture_gives_a_pair_if_all_are_asked_for():
    html = (
        "<figure><img src=a alt='An owl' title='an owl at night' aria-label=' An  owl '>"
        "<figcaption>An owl</figcaption></figure><img src=b alt=' '><img alt=x title=y>"
        f"<img src='data:image/png;base64,{base64.b64encode(picture(2, 2)).decode()}' alt=one title=two>"
    )
    found, _ = page_images(html.encode(), PAGE, None, TEXT_FROM, every=True)
    assert [(one.url.rpartition("/")[2][:10], one.text, one.text_source) for one in found] == [
        ("a", "An owl", "alt"), ("a", "an owl at night", "title"), ("b", "", None),
        ("page.html#", "x", "alt"), ("page.html#", "y", "title"), (found[5].url.rpartition("/")[2][:10], "one", "alt"),
        (found[6].url.rpartition("/")[2][:10], "two", "title"),
    ]  # fmt: skip
    assert found[5].inline is found[6].inline and found[5].inline == picture(2, 2)
    assert [one.text_source for one in images(html)] == ["alt", None, "alt", "alt"]
    found, _ = page_images(html.encode(), PAGE, None, ("aria-label", "alt"), every=True)
    assert [one.text_source for one in found[:2]] == ["aria-label", None]  # of equal texts the first source counts
