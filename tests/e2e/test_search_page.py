"""The search page in a real browser: by keyboard alone, at three widths, dark and light, with hostile texts."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from align.formats.image_index import Promise
from align.search.service.answers import PairShown, RuleShown
from tests.support import colour_index, served
from tests.support.browser import open_page
from tests.support.colour_index import PAGE
from tests.support.colours import square

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='broken in'\">"
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27}
#: What a person can name where the focus is.
FOCUSED = "(document.activeElement.id || document.activeElement.dataset.key || document.activeElement.tagName)"


#: Key of a picture -> the address of its page, and the one that is linked; None: it is shown as text.
ADDRESSES = {
    "000000000": (PAGE, PAGE),
    "000000001": ("javascript:document.title='broken in'", None),
    "000000002": ("data:text/html,<script>document.title='broken in'</script>", None),
    "000000003": ("'\"><img src=x onerror=\"document.title='broken in'\">", None),
    "000000004": ("https://a.example/" + "x" * 10_000, None),
    "000000005": ("https://a.example/\u202egpj.exe", "https://a.example/%E2%80%AEgpj.exe"),
    "000000006": (" java\nscript:document.title='broken in'", None),
    "000000007": ("https://bank.example@evil.example/", None),
    "000000008": ("https:evil.example", None),
    "000000009": ("x" * 10_000, None),
    "000000010": ('HTTPS://EXAMPLE.com/a" onclick="x', "https://example.com/a%22%20onclick=%22x"),
    "000000011": (None, None),
}


def pair_of(item, header):
    rule = RuleShown(rule="text_too_short", what=HOSTILE, drops_where=HOSTILE, verdict="passes", values=HOSTILE)
    return PairShown(text=HOSTILE, kept=True, rules=[rule], notes=[HOSTILE])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    pages = {f"{first}{key[1:]}": page for key, (page, _) in ADDRESSES.items() for first in "01"}
    colour_index.build(root, pages=pages)
    with served.service(root, served.served(root)) as service:
        service._pair_of = pair_of
        yield service


@pytest.fixture(scope="module")
def url(made):
    with served.listening(made) as address:
        yield address


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with open_page(tmp_path_factory.mktemp("profile") / "chromium") as page:
        yield page


def press(page, key, times=1):
    for _ in range(times):
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            page.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key],
                **(text if kind == "keyDown" else {}),
            )  # fmt: skip


def tab_to(page, where):
    """Presses Tab until the focus is there; a person gives up earlier."""
    for _ in range(30):
        if page.run(f"{FOCUSED} === {json.dumps(where)}"):
            return
        press(page, "Tab")
    pytest.fail(f"Tab never comes to {where}; it is at {page.run(FOCUSED)}")


def choose(page, file):
    """A picture of one's own."""
    node = page.ask("DOM.querySelector", nodeId=page.ask("DOM.getDocument")["root"]["nodeId"], selector="#file")
    page.ask("DOM.setFileInputFiles", files=[str(file)], nodeId=node["nodeId"])


def shows(page, colour):
    """Waits until the three nearest are of a colour."""
    first = "[...document.querySelectorAll('#results .caption')].slice(0, 3)"
    page.wait(f"{first}.length === 3 && {first}.every((e) => e.innerText.startsWith('a {colour} '))")


def test_by_keyboard_alone_from_a_text_to_a_picture_and_back(tab, url):
    tab.open(url)
    tab_to(tab, "text")
    tab.type("blue")
    shows(tab, "blue")
    tab.wait("document.getElementById('status').innerText.startsWith('Pictures 1 to 12 of 12')")
    first = tab.run("document.querySelector('#results button').dataset.key")
    tab_to(tab, first)
    press(tab, "Enter")
    tab.wait("document.querySelector('#detail-body table')")
    assert tab.run(FOCUSED) == "detail-title"
    press(tab, "Tab")
    assert tab.run(FOCUSED) == "close"
    press(tab, "Tab", 12)
    assert tab.run(
        "document.getElementById('detail').contains(document.activeElement) || document.activeElement === document.body"
    )
    said = tab.text("#detail-body")
    for words in ("Web page", "train/00000.tar", "align version 1", "run-1", "text_too_short", "passes", first):
        assert words in said or words in tab.text("#detail")
    press(tab, "Escape")
    tab.wait("!document.getElementById('detail').open")
    tab.wait(f"{FOCUSED} === {json.dumps(first)}")


def test_a_line_comes_after_the_last_sure_picture_and_what_is_below_is_faded(tab, tmp_path):
    colour_index.build(tmp_path)
    first = served.served(tmp_path)
    promise = Promise(lines={0.75: 0.9, 0.9: 2.0}, slope=0.0, num_concepts=60)
    promised = replace(first, index=first.index.promising(promise, tmp_path / "index"))
    rows = "[...document.getElementById('results').children]"
    faded = f"{rows}.map((e) => e.className || getComputedStyle(e.querySelector('.picture, .absent')).opacity)"
    with served.service(tmp_path, promised) as service, served.listening(service) as address:
        tab.open(f"{address}/?text=blue")
        shows(tab, "blue")
        assert tab.run(f"{faded}.join(' ')") == " ".join(["1"] * 3 + ["line"] + ["below"] * 9)
        assert tab.run(f"{rows}[3].innerText").startswith("Of 4 questions like the held-out texts")
        tab.open(f"{address}/?text=nothing")
        tab.wait("document.querySelector('#results .line')")
        assert tab.run(f"{rows}[0].innerText").startswith("No picture here surely shows this (as sure as 3 in 4).")


def test_it_begins_with_pictures_and_an_example(tab, url):
    tab.open(url)
    tab.wait("document.querySelectorAll('#results .caption').length === 12 && !document.getElementById('start').hidden")
    tab.run("document.getElementById('example').click()")
    tab.wait("document.getElementById('status').innerText.startsWith('Pictures 1 to 12 of 12')")
    assert tab.run("document.getElementById('start').hidden && Boolean(document.getElementById('text').value)")


@pytest.mark.parametrize("key", ADDRESSES)
def test_foreign_text_is_text_and_only_web_addresses_are_links(tab, url, key):
    page, link = ADDRESSES[key]
    tab.size(380, 800)
    try:
        tab.open(f"{url}/?key={key}")
        tab.wait("document.querySelector('#results button')")
        tab.run(f"import('/detail.js').then((module) => module.open('{key}', () => {{}}))")
        tab.wait("document.querySelector('#detail-body table')")
        found = tab.run("[...document.querySelectorAll('#detail-body a')].map((a) => [a.getAttribute('href'), a.rel])")
        wanted = [link, f"https://example.com/{key}.jpg"]
        assert found == [[one, "noreferrer noopener"] for one in wanted if one]
        shown = tab.run("document.querySelector('.chain li').innerText")
        if page is None:
            assert "not recorded" in shown
        elif len(page) > 200:
            assert len(shown) < 400 and "characters)" in shown
        elif link is None:
            assert " ".join(page.split()) in " ".join(shown.split())
        else:
            assert "\u202e" not in shown and link in shown
        assert HOSTILE in tab.text("#detail-body") and "broken in" not in tab.run("document.title")
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        assert tab.run("document.getElementById('detail').scrollWidth <= innerWidth")
    finally:
        tab.size(1300, 900)


def test_a_query_that_is_foreign_text_is_text(tab, url):
    tab.open(f"{url}/?text=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    tab.wait("document.querySelector('#results button')")
    assert tab.run("document.getElementById('text').value") == "<img src=x onerror=alert(1)>"


def test_the_address_holds_the_query_and_the_back_button_brings_it_back(tab, url):
    tab.open(f"{url}/?text=red")
    shows(tab, "red")
    tab.fill("What should the pictures show", "green")
    shows(tab, "green")
    tab.wait("location.search === '?text=green'")
    tab.run("history.back()")
    shows(tab, "red")
    assert tab.run("document.getElementById('text').value") == "red"
    tab.open(f"{url}/?text=yellow&split=test&words=shade")
    tab.wait("document.querySelectorAll('#results .caption').length === 4")
    assert (
        tab.run("document.getElementById('filters').open")
        and tab.run("document.getElementById('split').value") == "test"
    )


def test_a_picture_of_ones_own_with_words_taken_away_is_not_in_the_address(tab, url, tmp_path):
    (tmp_path / "yellow.png").write_bytes(square("yellow", format="PNG"))
    tab.open(url)
    choose(tab, tmp_path / "yellow.png")
    shows(tab, "yellow")
    assert tab.run("location.search") == "?picture=own" and tab.run(FOCUSED) == "plus"
    tab.fill("Take words away", "green")
    shows(tab, "red")
    assert tab.run("location.search") == "?minus=green&picture=own"
    tab.open(f"{url}/?minus=green&picture=own")  # as somebody else opens it
    tab.wait("document.getElementById('status').innerText.includes('choose the picture again')")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    choose(tab, tmp_path / "broken.png")
    tab.wait("document.getElementById('status').innerText.includes('not a picture that can be decoded')")


def test_a_picture_leads_to_pictures_like_it(tab, url):
    tab.open(f"{url}/?text=blue")
    shows(tab, "blue")
    tab.run("document.querySelector('#results button').click()")
    tab.click("Search for pictures like this one")
    tab.wait("location.search.startsWith('?key=')")
    tab.wait("document.querySelectorAll('#results .caption').length === 11")
    tab.click("Remove picture")
    tab.wait("location.search === '' && document.querySelectorAll('#results .caption').length === 12")  # the start
    assert tab.run(FOCUSED) == "text"


def test_it_says_when_another_version_answers_and_what_is_wrong(tab, url, made):
    tab.open(f"{url}/?text=blue")
    tab.wait("document.getElementById('served').innerText === 'Model: align version 1'")
    champion = made.champion
    before = champion._served
    try:
        champion._served = served.served(Path(made.pictures._shards).parent, "2" * 64, 2)
        champion._problem = "version 3 cannot be served: " + HOSTILE
        tab.wait("document.getElementById('served').innerText === 'Model: align version 2'")
        tab.wait("document.getElementById('warning').innerText.startsWith('version 3 cannot be served')")
        shows(tab, "blue")
        assert "broken in" not in tab.run("document.title")
        champion._served, champion._problem = None, "promote something"
        tab.wait("document.getElementById('served').innerText === 'No model yet'")
        tab.wait("document.getElementById('warning').innerText.includes('promote something')")
    finally:
        champion._served, champion._problem = before, None


@pytest.mark.parametrize("width", [1300, 800, 380])
@pytest.mark.parametrize("looks", ["light", "dark"])
def test_axe_finds_nothing_at_this_width(tab, url, width, looks):
    tab.size(width, 800)
    tab.look(looks)
    try:
        tab.open(f"{url}/?key=000000000&plus=blue&split=train")
        tab.wait("document.querySelector('#results button')")
        time.sleep(0.3)  # a transition of colours
        for opened in (False, True):
            if opened:
                tab.run("document.querySelector('#results button').click()")
                tab.wait("document.querySelector('#detail-body table')")
            assert tab.violations() == []
            assert tab.run("document.documentElement.scrollWidth <= innerWidth")  # nothing is cut off
    finally:
        tab.size(1300, 900)
        tab.look()
