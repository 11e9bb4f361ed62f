import base64
import hashlib
import re
from pathlib import Path

from align.display import figure, html


def test_text_is_escaped_everywhere() -> None:
    evil = '<script>"x"</script>'
    page = html.page(
        evil, evil, [html.heading(evil), html.table([evil], [[evil]]), html.gallery([(b"\x89PNG", evil, "")])]
    )
    assert "<script>" not in page


def test_a_page_refers_to_nothing_outside_itself() -> None:
    page = html.page("t", "l", [html.gallery([(b"\x89PNG", "a", "good")])])
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert all(link.startswith("data:") for link in links)


def test_numbers_are_right_aligned_and_verdicts_coloured() -> None:
    table = html.table(["what", "n", "ok"], [["a", 12345, True], ["b", 0.123456, False]], verdict=2)
    assert "<td class=number>12,345</td>" in table
    assert "<td class=number>0.1235</td>" in table
    assert "<td class=good>passed</td>" in table
    assert "<td class=bad>failed</td>" in table


def test_a_gallery_names_the_type_of_the_bytes() -> None:
    shown = html.gallery([(b"\x89PNG....", "p", ""), (b"RIFF0000WEBP", "w", ""), (b"\xff\xd8\xff", "j", "")])
    assert [shown.count(f"data:image/{kind};") for kind in ("png", "webp", "jpeg")] == [1, 1, 1]


def test_a_third_verdict_is_a_text_of_its_own_colour() -> None:
    table = html.table(["what", "ok"], [["a", "accepted"], ["b", False]], verdict=1)
    assert "<td class=warn>accepted</td>" in table
    assert "<td class=bad>failed</td>" in table


def test_bars_stay_within_their_cell() -> None:
    table = html.table(["what", "share"], [["a", 0.25], ["b", 1.5], ["c", -1.0]], bar=1)
    assert [table.count(f"<hr width={width}%>") for width in ("25.0", "100.0", "0.0")] == [1, 1, 1]


def test_contents_lead_to_headings() -> None:
    title = 'Dropped: "x" & y'
    anchor = re.search(r"href=#([\w-]+)>", html.contents([title]))
    assert anchor and f"<h2 id={anchor[1]}>" in html.heading(title)


def test_cards_side_notes_and_subheadings_are_escaped() -> None:
    evil = "<script>"
    blocks = [html.cards([(evil, evil, "good")]), html.note(evil), html.subheading(evil), html.contents([evil])]
    assert "<script>" not in html.page("t", "l", blocks)
    assert html.side_by_side(["<p>a</p>", "<p>b</p>"]).count("<p>") == 2


def test_the_colours_of_a_page_are_those_of_the_figures() -> None:
    page = html.page("t", "l", [])
    palette = {figure.INK, figure.SOFT, figure.LINE, figure.WASH, figure.GOOD, figure.BAD, figure.WARN}
    assert set(re.findall(r"#[0-9a-f]{6}", page)) == palette
    assert not re.findall(r"#[0-9a-f]{6}", Path(html.__file__).read_text())  # each is stated once, by figure


def test_text_that_turns_letters_around_or_has_no_encoding_is_shown() -> None:
    page = html.page("t", "l", [html.paragraph("txt.\u202egpj \ud83e\nline")])
    assert "txt.\\u202egpj \\ud83e\nline" in page
    page.encode("utf-8")


def test_a_page_allows_a_browser_nothing_but_its_own_style_and_pictures() -> None:
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


def test_every_page_of_the_project_is_made_by_that_function_and_has_no_styles_of_its_own() -> None:
    package = Path(html.__file__).parent
    for path in package.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if path.parent.name == "service":  # a server's pages have a style sheet, scripts and links
            continue
        assert path.name == "html.py" or "<!doctype" not in source, path
        assert not re.search(r"<[a-z]+[^>\n]* style=|<script|<a href=[^#]", source), path
