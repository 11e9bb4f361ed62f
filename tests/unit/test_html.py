import re

from align import html


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
