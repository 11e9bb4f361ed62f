"""The sections of a trace: text, JSON and page print the same list; texts, addresses and names are hostile."""

import json
import re
from html.parser import HTMLParser

from align.display.html import policy
from align.durable.files import to_json
from align.lineage.trace.sections import KINDS, Picture, Section, Trace, known
from align.lineage.trace.show import as_page, text_lines

EVIL = """</title></svg><script>alert(1)</script><img src=x onerror="alert('2')">\u202e" onmouseover='x' \x00 ]]>"""
GONE = "data ffff is not here; `git fetch --all`"


def evil_trace():
    """Every field that can hold foreign text holds it; added from the last link to the first."""
    trace = Trace(EVIL, EVIL, answers=[EVIL], notes=[EVIL])
    for kind in reversed(KINDS):
        trace.add(Section(
            kind, EVIL, ((EVIL, EVIL), ("page", f"https://host/{EVIL}"), ("page", "javascript:alert(1)")),
            missing=(EVIL,), pictures=(Picture(b"\xff\xd8\xff", EVIL),), asked=kind == "pair",
        ))  # fmt: skip
    return trace


class _Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text):
        super().__init__()
        self.tags = set()
        self.attributes = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs


def test_nothing_hostile_is_markup_and_no_link_leads_out_of_the_page():
    page = _Page(as_page(evil_trace()))
    assert not page.tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    links = [value or "" for name, value in page.attributes if name in ("href", "src")]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    inside = {link[1:] for link in links if link.startswith("#")}
    assert inside and inside <= {value for name, value in page.attributes if name == "id"}


def test_the_policy_allows_the_style_of_this_page_and_nothing_else():
    from align.display.html import page

    pages = (as_page(evil_trace()), page("", "", []))
    style, plain = (re.search(r"<style>(.*?)</style>", text, re.S)[1] for text in pages)
    stated = re.search(r'content="(default-src [^"]*)"', as_page(evil_trace()))
    assert stated and stated[1] == policy(style.removeprefix(plain)) != policy()


def test_text_json_and_page_print_the_same_sections_in_the_order_of_the_chain():
    trace = Trace("x", "pair 7", answers=["trained on it: align version 1"])
    facts = known(("branch", "run/x"), ("empty", ""), ("none", None))
    run = Section("run", "run 1", facts, asked=True)
    trace.add(run, Section("shards", "data ffff", missing=(GONE,)), run)
    lines = list(text_lines(trace))
    assert lines[:2] == ["pair 7: where it comes from, and where it went", "  trained on it: align version 1"]
    assert [line for line in lines if line.startswith(">")] == ["> training run          run 1"]
    assert lines[3:5] == ["  shards                data ffff", f"    not here, because   {GONE}"]
    assert lines[-1] == "    branch              run/x"
    assert not any("none" in line or "empty" in line for line in lines)
    values = json.loads(to_json(trace.as_json()))
    assert [(one["kind"], one["asked"]) for one in values["sections"]] == [("shards", False), ("run", True)]
    page = as_page(trace)
    for text in ("data ffff", GONE, "run 1", "run/x"):
        assert text.replace("`", "`") in page
    assert page.index("data ffff") < page.index("run 1")


def test_json_has_every_section_and_of_pictures_the_text():
    values = json.loads(to_json(evil_trace().as_json()))
    assert [one["kind"] for one in values["sections"]] == list(KINDS)
    assert values["schema_version"] == 3
    assert all(one["pictures"] == [EVIL] and one["facts"]["page"].count("; ") >= 1 for one in values["sections"])
