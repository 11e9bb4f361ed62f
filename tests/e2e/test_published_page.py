"""The page without a server, in a real browser: the committed one of the sample, and one of a small catalogue.

With ALIGN_PICTURES=FOLDER the pictures of the line in docs/search.md are taken into it.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from align.arguments.commands import READY, SITE
from align.config.ingest import IngestConfig
from align.config.search import IndexConfig
from align.formats.image_index import ImageIndex
from align.formats.model_folder import model_digest
from align.model.embedder import Embedder, load_with_tokenizer
from align.publish import MADE_BY, publish
from align.search.catalogue import index_catalogue
from align.search.queries import read_queries
from align.search.surely import LEVELS, line_for
from align.services.vector_index import VectorIndex
from tests.support import ROOT, tiny_model
from tests.support.browser import open_page
from tests.support.colours import COLOURS, square
from tests.support.params import load_params
from tests.support.prefect_ui import take
from tests.support.tried import trying

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='broken in'\">"
#: Of a text: accents, marks, controls, scripts, special tokens, long words, other cases, broken letters.
ODD = [
    "Ünïcode CAFÉ naïve", "ΟΔΟΣ Σ ς", "İstanbul ıI", "ǅ ß ẞ ﬁ", "\u65e5\u672c\u8a9e heart \u4e2d\u6587", "red " * 300,
    "\ud55c\uad6d\uc5b4 \u1100\u1161\u11a8", "a\u0301e\u0308 \u0344", "\u200bzero\u200d\ufeff", "   ", "", HOSTILE,
    "[MASK] red [SEP][CLS] [mask] [UNK]x", "tab\tline\nfeed\rend\x00\x07\ufffd", "x" * 100, "x" * 101 + " red",
    "\u2026\u2014\u201cquotes\u201d ¿qué? a_b-c/d", "$5.00 + 3% = `x` ~ ^ |", "\u061f\u2e52\U0001e95e punctuation",
    "\U0001f1eb\U0001f1f7 flag \u2764\ufe0f \U0001f469\u200d\U0001f680", "\U00020000\U0002f800 ideographs",
    "\u0378\ue000 nobody's", "\u2028line\u2029\u3000wide\u00a0",
]  # fmt: skip
FIRST = """(async (texts) => {
  const {search} = await import("./source.js"), {NONE} = await import("./query.js"), found = [];
  for (const text of texts) {
    const query = {...NONE, text};
    const begins = performance.now(), {hits} = await search(query, 10);
    const ms = performance.now() - begins;
    found.push([hits.map((hit) => hit.key), hits.map((hit) => hit.score), hits.map((hit) => hit.sure), ms]);
  }
  return found;
})"""
TOKENS = """(async (texts) => {
  const about = await (await fetch("about.json")).json();
  const file = await (await fetch(about.folder + "/tokenizer.json")).json();
  const read = (await import("./wordpiece.js")).tokenizer(file, about.max_tokens);
  return texts.map(read);
})"""
ELSEWHERE = "performance.getEntriesByType('resource').filter((one) => new URL(one.name).origin !== location.origin)"


@contextmanager
def serving(folder):
    """What Python serves of a folder, as anybody would."""
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0", "--directory", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process.stdout.readline().split("(")[1].split(")")[0].rstrip("/")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with open_page(tmp_path_factory.mktemp("profile") / "chromium") as page:
        yield page


@pytest.fixture(scope="module")
def url():
    """The page of the sample, below another folder."""
    with serving(ROOT / SITE.parent) as address:
        yield f"{address}/{SITE.name}/"


def index_of(folder):
    return ImageIndex.load(folder, VectorIndex.load)


def ask(page, function, values):
    return page.run(f"{function}({json.dumps(values)})")


def test_the_first_ten_are_those_of_the_command(tab, url):
    index, embedder = index_of(ROOT / READY / "index"), Embedder.load(ROOT / READY / "model")
    labelled = [one.query for one in read_queries(ROOT / "data/sample/queries.json").queries]
    drawn = random.Random(0).sample(sorted({text for texts in index.items.texts() for text in texts}), 200)
    assert len(labelled) == 20
    tab.open(url)
    answers = ask(tab, FIRST, [*labelled, *drawn])
    wanted = [index.search(row, 10) for row in embedder.embed_texts([*labelled, *drawn])]
    same = [keys == [hit.item.key for hit in hits] for (keys, *_), hits in zip(answers, wanted, strict=True)]
    assert np.mean(same) >= 0.99
    splits = embedder.splits([*labelled, *drawn])
    for (_, scores, sure, _), hits, split in zip(answers, wanted, splits, strict=True):
        assert np.allclose(scores, [hit.score for hit in hits], atol=2e-6)
        least = line_for(index.header.promise, LEVELS[0], split)
        assert [one for one, hit in zip(sure, hits, strict=True) if abs(hit.score - least) > 3e-6] == [
            hit.score > least for hit in hits if abs(hit.score - least) > 3e-6
        ]
    assert np.median([ms for *_, ms in answers[20:]]) < 100
    assert tab.run(ELSEWHERE) == []


def test_texts_become_the_same_tokens(tab, url):
    _, tokenizer = load_with_tokenizer(ROOT / READY / "model")
    chance = random.Random(0)
    letters = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000]
    texts = [*ODD, *("".join(chance.choices(letters, k=40)) for _ in range(300))]
    tab.open(url)
    assert ask(tab, TOKENS, texts) == tokenizer.ids(texts)


def test_by_keyboard_and_on_a_phone(tab, url):
    tab.size(390, 800)
    try:
        tab.open(url)
        tab.wait("document.querySelectorAll('#results .caption').length === 12")
        assert tab.run("document.getElementById('drop').hidden && document.getElementById('programs').hidden")
        tab.run("document.getElementById('text').focus()")
        tab.type("red heart")
        tab.wait("document.getElementById('status').innerText.startsWith('Pictures 1 to 24 of 4,993')")
        tab.wait("[...document.querySelectorAll('#results img')].slice(0, 2).every((one) => one.naturalWidth > 0)")
        assert tab.run("location.pathname + location.search").endswith("/site/?text=red+heart")
        tab.run("document.querySelector('#results button').focus()")
        tab.ask(
            "Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
        tab.wait("document.querySelector('#detail-body table')")
        tab.wait("document.querySelector('#detail-body img').naturalWidth > 0")
        assert tab.run("document.activeElement.id") == "detail-title"
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        tab.click("Search for pictures like this one")
        tab.wait("location.search.startsWith('?key=') && document.getElementById('preview').naturalWidth > 0")
        tab.wait("document.getElementById('status').innerText.startsWith('Pictures 1 to 24')")
        tab.fill("Take words away", "heart")
        tab.wait("location.search.includes('minus=heart')")
        tab.run("history.back()")
        tab.wait("!location.search.includes('minus')")
        assert tab.run(ELSEWHERE) == []
    finally:
        tab.size(1300, 900)


@pytest.mark.parametrize("looks", ["light", "dark"])
@pytest.mark.parametrize(
    ("name", "text", "place", "height_px"),
    [("search_line", "christmas tree", 4, 760), ("search_silent", "a submarine in a bathtub", 0, 555)],
)
def test_the_line_as_people_see_it_and_axe_finds_nothing(tab, url, looks, name, text, place, height_px):
    tab.look(looks)
    try:
        tab.open(f"{url}?text={text.replace(' ', '+')}")
        tab.wait("document.querySelector('#results .line')")
        kinds = tab.run("[...document.querySelectorAll('#results > li')].map((one) => one.className)")
        assert kinds == [""] * place + ["line"] + ["below"] * (24 - place)
        assert tab.text(".line").startswith("Of 4 questions" if place else "No picture here surely shows this")
        tab.run("document.getElementById('query').requestSubmit()")  # the first answer has waited for the text tower
        take(tab, name + "_dark" * (looks == "dark"), height_px)
        time.sleep(0.3)  # a transition of colours
        assert tab.violations() == []
    finally:
        tab.look()


def test_make_try_answers_within_ten_seconds(tab, tmp_path):
    begins = time.monotonic()
    with trying(tmp_path) as (_, address):
        tab.open(f"{address}/?text=red+heart")
        tab.wait("document.getElementById('status').innerText.startsWith('Pictures 1 to 24')")
        assert time.monotonic() - begins < 10


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A catalogue with hostile texts, its model, and its page."""
    root = tmp_path_factory.mktemp("shop")
    (root / "pictures").mkdir()
    rows = ["picture,title,price,kind,note"]
    for number, colour in enumerate(COLOURS):
        (root / f"pictures/{colour}.jpg").write_bytes(square(colour))
        note = HOSTILE.replace('"', '""') if number == 0 else "none"
        kind = "even" if number % 2 else "odd"
        rows.append(f'pictures/{colour}.jpg,a {colour} square,{number + 1}.50,{kind},"{note}"')
    (root / "shop.csv").write_text("\n".join(rows) + "\n")
    model, params = tiny_model.write(root), load_params()
    config = IndexConfig.model_validate(params.values["index"] | {"queries": None})
    reading = params.section(IngestConfig)
    index_catalogue(
        config, root / "shop.csv", reading, Embedder.load(model), model_digest(model), root / "index", update=False
    )
    publish_shop(root, index_of(root / "index"), root / "web/page")
    return root


def publish_shop(root, index, out):
    publish(model=root / "model", index=index, runtime=ROOT / SITE / "runtime", out=out)


def test_a_catalogue_is_filtered(tab, shop):
    with serving(shop / "web") as address:
        tab.open(f"{address}/page/")
        tab.wait(f"document.querySelectorAll('#results .caption').length === {len(COLOURS)}")
        assert HOSTILE in tab.text("#results") and "broken in" not in tab.run("document.title")
        assert tab.run("[...document.querySelectorAll('[data-condition]')].map((one) => one.dataset.condition)") == [
            "price>=", "price<=", "kind=", "note=",
        ]  # fmt: skip
        for query, number in (
            ("where=price%3C%3D2.50", 2), ("where=price%3E2,50&where=kind%3Dodd", len(range(2, len(COLOURS), 2))),
            ("words=SQUARE", len(COLOURS)), ("words=squar", 0), ("where=price%3E99", 0), ("where=kind%3Dnone", 0),
        ):  # fmt: skip
            tab.open(f"{address}/page/?{query}")
            said = f"Pictures 1 to {number} of " if number else "No picture of "
            tab.wait(f"document.getElementById('status').innerText.startsWith({json.dumps(said)})")
        for query, said in (
            ("where=kind%3E1", "has texts, which only = compares"),
            ("where=price%3D1.234,5,6", "is no number"),
        ):
            tab.open(f"{address}/page/?{query}")
            tab.wait(f"document.getElementById('status').innerText.includes({json.dumps(said)})")


def test_an_open_page_says_that_it_was_published_again_without_what_is_taken_down(tab, shop, tmp_path):
    index, page = index_of(shop / "index"), shutil.copytree(shop / "web/page", tmp_path / "page")
    gone, before = next(iter(index.items)), next(page.glob("data-*"))
    with serving(tmp_path) as address:
        tab.open(f"{address}/page/?words=square")
        tab.wait(f"document.querySelectorAll('#results .caption').length === {len(COLOURS)}")
        assert tab.text("#warning") == ""
        publish_shop(shop, index.without([gone.image_id], None), page)
        after = b"".join(path.read_bytes() for path in sorted(page.rglob("*")) if path.is_file())
        assert not before.exists() and gone.key.encode() not in after and index.thumbnail(gone.key) not in after
        again = "These pictures are out of date: reload the page."
        tab.wait(f"document.getElementById('warning').innerText === {json.dumps(again)}", 10)
        tab.fill("What should the pictures show?", "red")  # for which it has not yet read the vectors
        tab.wait(f"document.getElementById('status').innerText === {json.dumps(f'No results: {again}')}")
        assert tab.run("document.querySelectorAll('#results .caption').length") == 0
        tab.open(f"{address}/page/?text=red")
        tab.wait(f"document.getElementById('status').innerText.includes('of {len(COLOURS) - 1}')")
        assert gone.key not in tab.text() and tab.text("#warning") == ""
    assert json.loads((page / ".align.json").read_text())["made_by"] == MADE_BY
