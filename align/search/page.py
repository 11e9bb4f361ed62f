"""Search results as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.display.html import escape, gallery, heading, page, paragraph, picture
from align.pairs.picture import thumbnail
from align.search.answers import AnsweredQuery

_THUMBNAIL_PX = 160
_CSS = {None: "", True: "good", False: "bad"}


def search_page(title: str, lead: str, sections: Mapping[str, Sequence[AnsweredQuery]]) -> str:
    """Returns the HTML of a page with pictures. `sections`: heading -> queries; an empty section is left out."""
    blocks = []
    for name, queries in sections.items():
        if queries:
            blocks.append(heading(name))
            blocks += [block for query in queries for block in _query(query)]
    return page(title, lead, blocks)


def _query(query: AnsweredQuery) -> list[str]:
    blocks = [f"<p><b class='{_CSS[query.right]}'>{escape(query.query)}</b></p>"]
    if query.image:
        blocks.append(picture(thumbnail(query.image, _THUMBNAIL_PX), mime="image/jpeg", alt="query image"))
    if not query.answers:
        blocks.append(paragraph("No image was found."))
    shown = (
        (thumbnail(answer.image, _THUMBNAIL_PX), f"{answer.score:.3f} {answer.text}", _CSS[answer.right])
        for answer in query.answers
    )
    return [*blocks, gallery(shown)]
