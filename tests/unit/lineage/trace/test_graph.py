"""The graph of a trace, its text, its JSON and its page; texts, addresses and names are hostile."""

import json
import re
from html.parser import HTMLParser

import pytest

from align.display.html import policy
from align.durable.files import to_json
from align.lineage.trace.graph import KINDS, Graph, Node, Picture, Table, known, missing
from align.lineage.trace.page import MAX_BOXES, as_page
from align.lineage.trace.text import text_lines

EVIL = """</title></svg><script>alert(1)</script><img src=x onerror="alert('2')">\u202e" onmouseover='x' \x00 ]]>"""
GONE = "data ffff is not here; `git fetch --all`"


def evil_graph():
    """Every field that can hold foreign text holds it."""
    graph = Graph(EVIL, EVIL, answers=[EVIL], notes=[EVIL])
    before = []
    for kind in KINDS:
        node = Node(
            f"{kind} {EVIL}", kind, EVIL, EVIL, ((EVIL, EVIL), ("page", f"https://host/{EVIL}")), missing=(EVIL,),
            tables=(Table(EVIL, (EVIL,), ((EVIL,),)),), pictures=(Picture(b"\xff\xd8\xff", EVIL),),
        )  # fmt: skip
        before = [graph.add(node, *before)]
    graph.subjects = before
    return graph


class _Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text):
        super().__init__()
        self.tags = set()
        self.attributes = []
        self.ids = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [value or "" for name, value in attrs if name == "id"]


def test_nothing_hostile_is_markup():
    page = _Page(as_page(evil_graph()))
    assert not page.tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    links = [value or "" for name, value in page.attributes if name in ("href", "src")]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_no_link_leads_out_of_the_page():
    addresses = ("https://example.org/a?b=\"c'", "http://example.org/", "javascript:alert(1)", "data:text/html,x",
                 "HTTPS://x/", "file:///etc/passwd")  # fmt: skip
    graph = Graph("x", "x")
    graph.add(Node("p", "page", "page", facts=tuple(("page", address) for address in addresses)))
    page = _Page(as_page(graph))
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert links and all(link and link.startswith(("#", "data:,")) for link in links)


def test_every_link_within_the_page_leads_somewhere():
    page = _Page(as_page(evil_graph()))
    inside = {value[1:] for name, value in page.attributes if name == "href" and value and value.startswith("#")}
    assert len(inside) > len(KINDS)
    assert inside <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_the_policy_allows_the_style_of_this_page_and_nothing_else():
    page = as_page(evil_graph())
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    stated = re.search(r'content="(default-src [^"]*)"', page)
    assert style and stated
    extra = style[1].removeprefix(re.search(r"<style>(.*?)</style>", _plain(), re.S)[1])  # type: ignore[index]
    assert stated[1] == policy(extra) != policy()
    assert "prefers-color-scheme: dark" in style[1] and not re.findall("#[0-9a-f]{3}", extra)


def _plain():
    from align.display.html import page

    return page("t", "l", [])


@pytest.mark.parametrize("number", [1, 3, MAX_BOXES, MAX_BOXES + 1, 40])
def test_each_kind_has_a_row_of_boxes_and_the_rest_is_counted(number):
    graph = Graph("x", "x")
    for one in range(number):
        graph.add(Node(f"pair {one}", "pair", "漢字の長い題名がここにあります" * 40, "brief " * 400))
    graph.add(Node("d", "shard", "", state="gone"))
    chain = re.search("<dl class=chain>(.*?)</dl>", as_page(graph), re.S)[1]
    rows = re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", chain, re.S)
    assert [name for name, _ in rows] == ["Pair", "Shards"]
    boxes = re.findall("<a href=#(.*?) class=", rows[0][1])
    assert len(boxes) == min(number, MAX_BOXES) and len(rows[0][1]) < 300 * MAX_BOXES
    assert (f">and {number - MAX_BOXES} more</a>" in rows[0][1]) == (number > MAX_BOXES)
    assert f'<a href=#n{number + 1} class="gone">(no name)<small>not on this machine</small></a>' == rows[1][1]


def test_edges_lead_from_what_was_made_first_and_are_there_once():
    graph = Graph("x", "x")
    page, pair = graph.add(Node("a", "page", "a")), graph.add(Node("b", "pair", "b"), "a", "nothing")
    graph.add(Node("b", "pair", "another"), "a")
    assert graph.edges == [(page, pair)]
    assert graph.nodes["b"].title == "b"
    assert [node.id for node in graph.before(graph.nodes["b"])] == ["a"]
    assert [node.id for node in graph.after(graph.nodes["a"])] == ["b"]


def test_the_text_marks_what_was_asked_and_says_what_is_missing():
    graph = Graph("x", "pair 7", answers=["trained on it: align version 1"])
    graph.add(Node("r", "run", "run 1", "20 steps", known((("branch", "run/x"), ("empty", ""), ("none", None)))))
    graph.add(Node("d", "shard", "data ffff", state="gone", missing=(GONE,)))
    graph.subjects = ["r"]
    lines = list(text_lines(graph))
    assert lines[:2] == ["pair 7: where it comes from, and where it went", "  trained on it: align version 1"]
    assert [line for line in lines if line.startswith(">")] == ["> training run          run 1 (20 steps)"]
    assert lines.index("  shards                data ffff") < lines.index("> training run          run 1 (20 steps)")
    assert lines[-1] == f"  {GONE}"
    assert not any("none" in line or "empty" in line for line in lines)
    assert missing(graph) == [GONE]


def test_json_has_every_node_and_no_picture():
    values = json.loads(to_json(evil_graph().as_json()))
    assert [node["kind"] for node in values["nodes"]] == list(KINDS)
    assert values["schema_version"] == 1
    assert len(values["edges"]) == len(KINDS) - 1
    assert all("pictures" not in node for node in values["nodes"])
    assert [node["is_subject"] for node in values["nodes"]] == [False] * (len(KINDS) - 1) + [True]
