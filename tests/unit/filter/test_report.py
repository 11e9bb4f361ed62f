"""The filter's page: what it counts, by a real engine over hand-made tables, and what it shows and hides."""

import re

import duckdb
import pyarrow as pa
import pytest

from align.config.filter import FilterConfig
from align.filter.examples import ExamplePair, PairExamples
from align.filter.overview import overview_metrics, overview_of
from align.filter.page import write_page
from align.filter.report import FilterReport, FunnelRow, Vocabulary
from align.filter.rules import RULES
from align.formats import filtered
from align.pairs.text import mask_personal_data
from tests.support.params import load_params
from tests.support.small_data import jpeg

CONFIG = load_params().section(FilterConfig)


def rows_of(pairs, images):
    """Runs SQL over the filter's tables; what a test does not say of a pair or image is null."""
    connection = duckdb.connect()

    def register(name, rows, schema):
        empty = dict.fromkeys(schema.names)
        connection.register(name, pa.Table.from_pylist([empty | row for row in rows], nullable(schema)))

    numbered = [
        {"key": f"{row:09d}", "text": "", "num_emails": 0, "num_phones": 0, "keep": True} | pair
        for row, pair in enumerate(pairs)
    ]
    for name, schema in (("decisions", filtered.DECISIONS_SCHEMA), ("facts", filtered.FACTS_SCHEMA)):
        register(name, [{k: v for k, v in row.items() if k in schema.names} for row in numbered], schema)
    register("images", images, filtered.IMAGES_SCHEMA)
    return lambda query: connection.execute(query).fetchall()


def nullable(schema):
    return pa.schema([pa.field(field.name, field.type) for field in schema])


def image(name, width, height, nsfw_score=None):
    return {
        "image_id": name, "image_key": f"key of {name}", "width_px": width, "height_px": height,
        "nsfw_score": nsfw_score,
    }  # fmt: skip


def pair(text, image, **more):
    """A pair of image number `image`; equal texts are counted by the test."""
    words = len(text.split())
    return {
        "text": text, "image_id": f"i{image}", "image_key": f"key of i{image}", "num_words": words,
        "num_texts": 1, "num_images": 1,
    } | more  # fmt: skip


PAIRS = [
    pair("a shared text", 0, num_images=3, num_texts=2, language="en"),
    pair("a shared text", 1, num_images=3, language="en", keep=False, reason="image_too_small"),
    pair("a shared text", 2, num_images=3, language="en"),
    pair("another one of four", 0, num_texts=2, language="de"),
    pair("write to ada@example.org now", 3, num_emails=1, keep=False, reason="text_personal_data"),
    pair("call +44 20 7946 0958", 4, num_phones=1),
]
IMAGES = [
    image("i0", 200, 300),
    image("i1", 199, 900),
    image("i2", 5000, 4000, 0.9),
    image("i3", 224, 225),
    image("i4", 225, 1000),
]
SHOWN = [
    ("https://Example.org/a.png", "alt", "a photograph of the old town hall and its square", True),
    ("https://example.org:8000/b", "title", "too short", False),
    ("data:image/png;base64,x", "alt", "das alte Rathaus und die kleine Kirche", True),
    ("http://[", None, "a photograph of the new town hall and its tower", False),
]


def seen(pairs=PAIRS, images=IMAGES):
    return overview_of(rows_of(pairs, images), SHOWN)


def test_distributions_are_of_pairs_and_of_distinct_images():
    overview = seen()
    assert overview.words_per_text == {3: 3, 4: 2, 5: 1}
    assert {low: num for low, num in overview.short_sides.items() if num} == {150: 1, 200: 2, 225: 1, 4000: 1}
    assert [(one.name, one.num_pairs, one.num_kept) for one in overview.languages] == [("en", 3, 1), ("de", 1, 1)]
    assert [(one.name, one.num_pairs, one.num_kept) for one in overview.text_sources] == [
        ("alt", 2, 2), ("title", 1, 0), ("unknown", 1, 0),
    ]  # fmt: skip


def test_hosts_are_counted_without_regard_to_port_case_or_scheme():
    overview = seen()
    assert [(one.name, one.num_pairs, one.num_kept) for one in overview.hosts] == [
        ("example.org", 2, 1), ("(data:)", 1, 1), ("(not a URL)", 1, 0),
    ]  # fmt: skip
    assert overview.num_looked_at == 4
    shown = [(url, *SHOWN[0][1:]) for url in ("images/0.jpg", "images/a:b", "1.jpg")]
    files = overview_of(rows_of(PAIRS, IMAGES), shown)
    assert [(one.name, one.num_pairs) for one in files.hosts] == [("images", 2), (".", 1)]


def test_personal_data_is_counted_and_masked():
    overview = seen().personal_data
    assert (overview.num_with_email, overview.num_with_phone, overview.num_pairs, overview.num_kept) == (1, 1, 2, 1)
    assert sorted(overview.examples) == ["call +•• •• •••• ••••", "write to a••@•••••••.••• now"]


@pytest.mark.parametrize(("text", "masked"), [
    ("a heart, 200 x 300", "a heart, 200 x 300"),
    ("mail: ada.b@example.org", "mail: a••.•@•••••••.•••"),
    ("x@y.de and z@y.de", "x@•.•• and z@•.••"),
])  # fmt: skip
def test_only_personal_data_is_masked(text, masked):
    assert mask_personal_data(text) == masked


def test_metrics_are_of_the_same_figures():
    shown = overview_metrics(seen())
    assert shown == {
        "filter/words_per_text/median": 3, "filter/words_per_text/p95": 5, "filter/short_side_px/median": 200,
        "filter/short_side_px/p95": 4000,
        "filter/personal_data/num_with_email": 1, "filter/personal_data/num_with_phone": 1,
        "filter/personal_data/num_kept": 1, "filter/language/en": 0.75,
        "filter/language/de": 0.25, "filter/top_host_share": 0.5,
    }  # fmt: skip


def report(overview, num_pairs, dropped):
    left, funnel = num_pairs, []
    for code in RULES:
        left -= dropped.get(code, 0)
        num = dropped.get(code, 0)
        funnel.append(FunnelRow(reason=code, drops_where=None, num_alone=num, num_first=num, num_remaining=left))
    return FilterReport(
        metrics={"filter/num_pairs": num_pairs}, num_pairs=num_pairs, num_kept=left, num_images=5, num_nsfw_scored=1,
        num_evaluation_sets=1, evaluation_sets={"concepts": "0" * 64}, evaluation_matches={"concepts": 1},
        vocabulary=Vocabulary(num_ngrams=7, num_frequent=7, last_count=1), funnel=funnel, overview=overview,
    )  # fmt: skip


def example(reason, key, text="a picture of it", **more):
    values = dict.fromkeys(ExamplePair.__dataclass_fields__) | {
        "reason": reason, "key": key, "image_key": key, "text": text, "num_words": 4, "num_texts": 1, "num_images": 11,
        "width_px": 100, "height_px": 90, "url": "https://example.org/x.png", "num_characters": len(text),
    }  # fmt: skip
    return ExamplePair(**values | more)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    examples = [
        example(None, "k0"), example("opted_out", "k1", "somebody's picture"),
        example("image_missing", "k2", error_message="HTTP 404", image_key=None),
        example("image_nsfw", "k3", nsfw_score=0.91), example("image_too_small", "k4"),
        example("image_near_duplicate_of_test", "k5", twin="concepts/t", twin_cosine=0.981),
        example("text_shared_by_many_images", "k6"), example("text_is_filename", "k7", "ada@example.org"),
    ]  # fmt: skip
    pictures = {f"k{index}": jpeg(index) for index in range(8)} | {"key of i0": jpeg(50)}
    gallery = PairExamples(examples, pictures, {"concepts/t": (jpeg(60), "a test image")})
    write_page(report(seen(), 6, {"image_too_small": 1, "text_personal_data": 1}), CONFIG, gallery, root / "one")
    write_page(report(seen(), 6, {"image_too_small": 1, "text_personal_data": 1}), CONFIG, gallery, root / "two")
    first, second = ({path.name: path.read_bytes() for path in (root / name).iterdir()} for name in ("one", "two"))
    assert first == second  # equal data, equal bytes
    assert set(first) == {"report.html", "funnel.png"}
    return first["report.html"].decode()


def test_the_page_shows_the_funnel_and_what_stands_out(page):
    for text in ("4 of 6 pairs kept (66.7%)", "example.org", "HTTP 404"):
        assert text in page
    assert page.count("<svg role=img") == 3
    funnel = page.partition("<div class=bars>")[2].partition("The funnel")[0]
    assert funnel.startswith("<span>raw pairs</span><span>6</span><div><hr width=100.0%>")
    assert "score 0.91" in page and "100 x 90" in page and "cosine 0.981" in page and "11 images" in page
    assert "test image concepts/t" in page
    assert (
        "Off here: pair_low_similarity, text_other_language, text_personal_data, pair_licence, image_repeat, "
        "pair_repeat." in page
    )
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)


def test_what_people_opted_out_is_not_shown_and_personal_data_is_masked(page):
    assert "somebody" not in page and "Dropped: opted_out" not in page
    assert "ada@example.org" not in page and "a••@•••••••.•••" in page


def test_nsfw_pictures_are_blurred(tmp_path):
    """The same picture, shown for another reason, is other bytes."""
    overview = overview_of(rows_of([], []), [])
    sources = []
    for reason in ("image_nsfw", "image_too_small"):
        gallery = PairExamples([example(reason, "k", nsfw_score=0.9)], {"k": jpeg(1)}, {})
        write_page(report(overview, 1, {reason: 1}), CONFIG, gallery, tmp_path)
        sources += re.findall(r"data:image/jpeg;base64,([^\"]+)", (tmp_path / "report.html").read_text())
    assert len(sources) == 2 and len(sources[0]) < len(sources[1])
