"""Foreign text made visible: characters that steer a terminal, a line or the order of letters become escapes.

Addresses, file names and texts come from strangers. If they were printed or drawn as they are, some of their characters
would give orders: move the cursor, fake a line of a log, reverse the letters, or end the program, since nothing can
encode them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

#: Control characters (C0, DEL, C1), line and paragraph separators, overrides and isolates of the writing direction,
#: unpaired surrogates, tags. The plain marks U+200E, U+200F and U+061C stay: Arabic and Hebrew texts need them.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]")
#: The same without the line feed and tab.
_STEERING_LINES = re.compile(_STEERING.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def visible(text: str, *, lines: bool = False) -> str:
    """The text with each such character as JSON writes it, `\\u001b`; so JSON stays JSON with the same meaning.

    Args:
        text: any text.
        lines: keep line feeds and tabs: the text has lines of its own.
    """
    return (_STEERING_LINES if lines else _STEERING).sub(lambda found: json.dumps(found[0])[1:-1], text)


def cut(text: str, width: int) -> str:
    """Text in one line of at most so many characters, cut with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def plain_markdown(text: str) -> str:
    """The text within a line of Markdown: no link, picture, tag, cell or emphasis of its own."""
    return re.sub(r"[\\`*<>\[\]|]", r"\\\g<0>", visible(" ".join(text.split())))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, in which no cell's signs count; the head is as it is."""
    lines = [head, ["---"] * len(head), *(map(plain_markdown, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fenced_markdown(lines: Iterable[str]) -> str:
    """The lines as a block of Markdown, which they cannot close."""
    return "\n".join(["~~~~", *(visible(line, lines=True).replace("~~~~", "~ ~") for line in lines), "~~~~"])
