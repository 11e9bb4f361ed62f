import json

import pytest

from align.display.visible import fenced_markdown, plain_markdown, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red fox", "a red fox"),
        ("\x1b]0;pwned\x07", r"\u001b]0;pwned\u0007"),
        ("kept\nalign: error: all is lost\r", r"kept\nalign: error: all is lost\r"),
        ("\x9b31m", r"\u009b31m"),  # one byte's worth of ESC [
        ("txt.\u202egpj\u2066", r"txt.\u202egpj\u2066"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("half \ud83e of a fox", r"half \ud83e of a fox"),
        ("fox\U000e0041", r"fox\udb40\udc41"),
        ("שועל \u200f!", "שועל \u200f!"),
        ("الثعلب, 赤い狐, 🦊", "الثعلب, 赤い狐, 🦊"),
    ],
)
def test_what_steers_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


def test_a_text_may_keep_lines_of_its_own() -> None:
    assert visible("a\tb\n\x1bc\x0b", lines=True) == "a\tb\n" + r"\u001bc\u000b"


def test_json_keeps_its_meaning() -> None:
    texts = ["\x7f\x9b \u202e", "\U000e0041", '"\n"']
    assert json.loads(visible(json.dumps(texts, ensure_ascii=False))) == texts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("![a](http://x/b.png)", r"!\[a\](http://x/b.png)"),
        (r"\[a\](http://x)", r"\\\[a\\\](http://x)"),  # a backslash of its own frees no bracket
        ("<img src=x>\n# a | b", r"\<img src=x\> # a \| b"),
        ("`code` *a*\x1b", r"\`code\` \*a\*\\u001b"),
    ],
)
def test_foreign_text_is_no_markdown(text: str, shown: str) -> None:
    assert plain_markdown(text) == shown
    assert fenced_markdown(["~~~~", text]).count("~~~~") == 2
