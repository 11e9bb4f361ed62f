import base64
import hashlib
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from PIL import Image

from align.display import figure, html
from align.display.figure import legible, png, svg
from align.display.report import record_runtime


def test_text_is_escaped_everywhere():
    evil = '<script>"x"</script>'
    blocks = [
        html.heading(evil), html.table([evil], [[evil]]), html.gallery([(b"\x89PNG", evil, "")]),
        html.cards([(evil, evil, "good")]), html.note(evil), html.subheading(evil),
    ]  # fmt: skip
    assert "<script>" not in html.page(evil, evil, blocks)
    assert html.side_by_side(["<p>a</p>", "<p>b</p>"]).count("<p>") == 2


def test_a_page_refers_to_nothing_outside_itself():
    page = html.page("t", "l", [html.gallery([(b"\x89PNG", "a", "good")])])
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert all(link.startswith("data:") for link in links)


def test_numbers_are_right_aligned_and_verdicts_coloured():
    table = html.table(["what", "n", "ok"], [["a", 12345, True], ["b", 0.123456, False]], verdict=2)
    assert "<td class=number>12,345</td>" in table and "<th class=number>n</th><th>ok</th></tr>" in table
    assert "<th></th>" not in html.table(["", "b"], [])  # a head without words says nothing
    assert "<td class=number>0.1235</td>" in table
    assert "<td class=good>passed</td>" in table
    assert "<td class=bad>failed</td>" in table
    third = html.table(["what", "ok"], [["a", "accepted"], ["b", False]], verdict=1)  # a text of its own colour
    assert "<td class=warn>accepted</td>" in third and "<td class=bad>failed</td>" in third


def test_a_gallery_names_the_type_of_the_bytes():
    shown = html.gallery([(b"\x89PNG....", "p", ""), (b"RIFF0000WEBP", "w", ""), (b"\xff\xd8\xff", "j", "")])
    assert [shown.count(f"data:image/{kind};") for kind in ("png", "webp", "jpeg")] == [1, 1, 1]


def test_bars_stay_within_their_cell():
    table = html.table(["what", "share"], [["a", 0.25], ["b", 1.5], ["c", -1.0]], bar=1)
    assert [table.count(f"<hr width={width}%>") for width in ("25.0", "100.0", "0.0")] == [1, 1, 1]


def test_contents_of_a_long_page_lead_to_its_headings_below_what_comes_first():
    titles = ['Dropped: "x" & y', "b", "c", "d"]
    blocks = [html.cards([("pairs", "3", "")]), *map(html.heading, titles)]
    page = html.page("t", "l", blocks)
    nav = page.partition("<nav>")[2].partition("</nav>")[0]
    assert re.findall(r"href=#([\w-]+)>", nav) == re.findall(r"<h2 id=([\w-]+)>", page) != []
    assert page.index("class=cards") < page.index("<nav>") < page.index("<h2")
    assert "<nav>" not in html.page("t", "l", blocks[:-1])  # of three sections


def test_prose_draws_code_and_names_a_digest_by_its_first_letters():
    digest = "0123456789abcdef" * 4
    for shown in (html.paragraph, html.note, lambda text: html.table(["a"], [[text]])):
        made = shown(f"`align run <x>` of {digest}")
        assert "<code>align run &lt;x&gt;</code>" in made and "`" not in made
        assert f'<code title="{digest}">0123456789ab</code>' in made


def test_figures_in_words_are_aligned_as_numbers_are():
    table = html.table(["a", "b"], [["12.5%", "12 apples"], ["−1.0", "3–4"]])
    assert table.count("<td class=number>") == 2 and table.startswith("<div class=scroll")
    assert "<th class=number>a</th><th>b</th>" in table


def test_the_colours_of_a_page_are_those_of_the_figures():
    page = html.page("t", "l", [])
    palette = {*figure.LIGHT.values(), *figure.DARK.values()}
    assert figure.LIGHT.keys() == figure.DARK.keys()
    assert set(re.findall(r"#[0-9a-f]{6}", page)) == palette
    assert not re.findall(r"#[0-9a-f]{6}", Path(html.__file__).read_text())  # each is stated once, by figure


def test_text_that_turns_letters_around_or_has_no_encoding_is_shown():
    page = html.page("t", "l", [html.paragraph("txt.\u202egpj \ud83e\nline")])
    assert "txt.\\u202egpj \\ud83e\nline" in page
    page.encode("utf-8")


def test_a_page_allows_a_browser_nothing_but_its_own_style_and_pictures():
    page = html.page("t", "l", [html.table(["a"], [[0.5]], bar=0)])
    head = page.partition("</head>")[0]
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', head)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    own = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert dict(rule.split(" ", 1) for rule in policy.split("; ")) == {
        "default-src": "'none'", "img-src": "data:", "style-src": f"'sha256-{own}'", "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip
    assert head.index("Content-Security-Policy") < head.index("<style>")  # a policy holds for what comes after it
    assert '<meta name="referrer" content="no-referrer">' in head


def test_every_page_of_the_project_is_made_by_that_function_and_has_no_styles_of_its_own():
    package = Path(html.__file__).parent
    for path in package.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if path.parent.name == "service":  # a server's pages have a style sheet, scripts and links
            continue
        assert path.name == "html.py" or "<!doctype" not in source, path
        assert not re.search(r"<[a-z]+[^>\n]* style=|<script", source), path


HOSTILE = [
    "was $50% now $40% today", r"$\frac$ and $x_$", "a \x1b[31m red\x00", "txt.\u202egpj\u2066", "half \ud83e of a fox",
    "a\nb\u2028c", "赤い狐 红狐狸 लाल लोमड़ी จิ้งจอก", "fox 🦊\U000e0067", "x" * 100_000,
    "a" + "\u0301" * 100_000, "", "\u202e" * 99,
]  # fmt: skip


def drawn(text):
    """A figure with the text wherever a figure can have one."""
    made = Figure(layout="constrained")
    made.suptitle(text)
    axes = made.subplots()
    axes.bar([0, 1], [1, 2], label=text or "none")
    axes.set_xticks([0, 1], [text, "b"])
    axes.set_xlabel(text)
    axes.set_title(text, loc="left")
    axes.text(0.5, 0.5, text)
    axes.legend()
    return made


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_can_be_drawn(text):
    with Image.open(io.BytesIO(png(drawn(legible(text, width=20, lines=2))))) as image:
        assert max(image.size) < 2_000


@pytest.mark.parametrize("text", [*HOSTILE, '<b style="x" id="a_1">'])
def test_any_text_can_stand_in_a_page_as_svg(text):
    shown = legible(text, width=22, lines=2)
    drawing = svg(drawn(shown))
    assert text is not HOSTILE[0] or drawing == svg(drawn(shown))
    tree = ElementTree.fromstring(drawing.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
    assert not [one for one in tree.iter() if one.tag not in TAGS or "style" in one.attrib]
    assert not shown or shown.splitlines()[0] in [one.text for one in tree.iter() if one.text]


#: Nothing of them runs or loads anything.
TAGS = {"svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "rect"}


def test_a_drawing_has_the_colours_of_its_page():
    made = Figure(figsize=(3, 2))
    axes = made.subplots()
    axes.bar([0], [1], color=figure.GOOD)
    axes.plot([0], [1], "o", color=figure.BAD)
    drawing = svg(made)
    assert not re.findall("#[0-9a-f]{6}", drawing)
    used = set(re.findall(r"var\(--(\w+)\)", drawing))
    assert {"ink", "paper", "good", "bad"} == used <= figure.LIGHT.keys()
    assert 'class="plot wide"' in svg(Figure(figsize=(9, 2))) and 'class="plot"' in drawing
    page = html.plot(made, alt='<i>"x"')
    assert "<i>" not in page and 'aria-label="&lt;i&gt;' in page and " style=" not in page


def test_a_forest_shows_every_difference_by_group_and_its_side_of_zero():
    lines = [figure.Interval("a", 0.02, 0.01, 0.03, figure.GOOD), figure.Interval("b", -0.01, -1, 1, figure.SOFT)]
    (axes,) = figure.forest([("one", lines[:1]), ("two", lines[1:]), ("three", lines[:1] * 3)], about="x").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "a", "two", "b", "three", "a", "a", "a"]
    assert [round(value) for value in axes.get_xlim()] == [-3, 3]  # the interval of b goes on at both edges
    bounds, dot, *_ = axes.lines
    assert list(bounds.get_xdata()) == [1, 3] and list(dot.get_xdata()) == [2] and list(dot.get_ydata()) == [1]


def test_money_is_no_mathematics_whoever_places_it():
    assert png(drawn("was $50% now $40% today")) != png(drawn("was 50% now 40% today"))


def test_what_turns_letters_around_is_shown():
    assert legible("txt.\u202egpj \x1b", width=40) == r"txt.\u202egpj \u001b"


def test_texts_are_wrapped_and_cut():
    assert legible("red fox", width=20) == "red fox"
    assert legible("a red fox in deep snow", width=8, lines=2) == "a red\nfox in …"
    assert legible("x" * 1000, width=8) == "xxxxxxx…"
    assert legible("赤" * 9, width=8, lines=2) == "赤赤赤赤\n赤赤赤…"  # they are twice as wide


def test_fonts_that_are_not_installed_are_passed_over(monkeypatch):
    monkeypatch.setattr(figure, "_FAMILIES", ("DejaVu Sans", "No Such Font", "STIXGeneral"))
    figure._families.cache_clear()
    try:
        assert figure._families() == ["DejaVu Sans", "STIXGeneral"]
        letter = "\U0001d49c"  # script A: DejaVu Sans lacks it, STIX has it
        with_stix = png(drawn(letter))
    finally:
        monkeypatch.undo()
        figure._families.cache_clear()
    assert png(drawn(letter)) != with_stix


def test_runtime_is_recorded_when_the_stage_fails(tmp_path):
    def fail():
        with record_runtime("filter", tmp_path) as record:
            record["pairs_per_s"] = 3
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    record = json.loads((tmp_path / "filter.json").read_text())
    assert record["outcome"] == "failed: KeyError"
    assert record["pairs_per_s"] == 3
