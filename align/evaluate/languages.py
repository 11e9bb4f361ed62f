"""The languages of a retrieval set's queries, by which `align promote` finds a model that got worse in one of them.

This is no part of `align.evaluate.measure`, whose code is in every set's digest: another way to tell languages changes
no rank, so no model has to be measured again for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from align.evaluate.protocols.recall import Gallery
from align.formats.query_ranks import IMAGE_TO_TEXT, TEXT_TO_IMAGE, Ranked
from align.pairs.text import languages, normalise

#: Bytes of a text in UTF-8. Of shorter ones, which are names and tags, a guess would make a slice of a language that
#: nobody wrote: 26 concepts of the demo's emoji, such as "keycap: 6", would be Danish; from here on four are.
MIN_BYTES = 20


def with_languages(ranked: dict[str, Ranked], items: Gallery) -> dict[str, Ranked]:
    """The ranks of both directions as published, each query with its language; those by any owner are left as they are.

    A language is told as `align filter` does, where the text is long enough.

    An image has the language of its right texts, if those whose language can be told agree: its query is answered well
    only if the model knows that language. Images with texts in several languages have none.

    Args:
        ranked: protocol -> the queries that have a right item, in the gallery's order.
        items: the gallery.
    """
    texts = [normalise(text) for text in items.texts]
    long = [len(text.encode()) >= MIN_BYTES for text in texts]
    of_text = [code if is_long else None for code, is_long in zip(languages(texts), long, strict=True)]
    asked = {
        IMAGE_TO_TEXT: [_common([of_text[text] for text in right]) for right in items.texts_of_image if len(right)],
        TEXT_TO_IMAGE: [of_text[text] for text, right in enumerate(items.images_of_text) if len(right)],
    }
    return {
        name: replace(part, languages=tuple(asked[name])) if name in asked else part for name, part in ranked.items()
    }


def _common(codes: Sequence[str | None]) -> str | None:
    told = {code for code in codes if code is not None}
    return told.pop() if len(told) == 1 else None
