"""Asks a finished index the labelled queries, and judges the answers by the texts of the images returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.display.console import say
from align.formats.image_index import Hit, ImageIndex
from align.formats.labelled_queries import ComposedQuery, LabelledQuery, names
from align.model.embedder import Encoder
from align.search.answers import AnsweredQuery, ImageAnswer
from align.search.queries import compose, share_named
from align.search.report import ANSWER_CUT, SHARE_CUT
from align.statistics.chance import chance


@dataclass(frozen=True)
class LabelledOutcome:
    """What a labelled query returned: an entry of the report, and the queries to show (none if nothing was asked)."""

    entry: dict[str, Any]
    shown: list[AnsweredQuery]


@dataclass(frozen=True)
class LabelledSearch:
    """Asks an index the labelled queries.

    Attributes:
        images: the index.
        encoder: the model that the index was made with.
        shards: the folder of the images' bytes.
        text_weight: weight of the text that is taken away from an image.
    """

    images: ImageIndex
    encoder: Encoder
    shards: Path
    text_weight: float

    def ask(self, query: LabelledQuery) -> LabelledOutcome:
        """Asks with a text. The answer is right if a text of one of the first images names an expected word."""
        hits = self.images.search(self.encoder.embed_texts([query.query])[0], ANSWER_CUT)
        answers = [
            {
                "key": hit.item.key,
                "score": round(hit.score, 4),
                "texts": list(hit.item.texts),
                "right": names(hit.item.texts, query.expected),
            }
            for hit in hits
        ]
        right = any(answer["right"] for answer in answers)
        num_right = sum(names(texts, query.expected) for texts in self.images.items.texts())
        entry = {
            "query": query.query,
            "expected": query.expected,
            "right": right,
            "chance": round(chance([num_right], len(self.images.items), ANSWER_CUT), 6),
            "found": answers,
        }
        shown = self._answers(hits, lambda texts: names(texts, query.expected))
        return LabelledOutcome(entry, [AnsweredQuery(query.query, None, shown, right)])

    def subtract(self, query: ComposedQuery) -> LabelledOutcome:
        """Asks with an image alone and with image - text. The image itself is excluded from both answers."""
        items = self.images.items
        named = (items[row] for row, texts in enumerate(items.texts()) if names(texts, [query.image_text]))
        image = min(named, key=lambda item: item.key, default=None)
        if image is None:
            say(f"index: no image has a text with {query.image_text!r}, so - {query.minus!r} is not asked")
            return LabelledOutcome({"image_text": query.image_text, "image_key": None, "minus": query.minus}, [])
        vector = self.images.vector(image.key)
        minus = compose(vector, minus=self.encoder.embed_texts([query.minus])[0], text_weight=self.text_weight)
        before = self.images.search(vector, SHARE_CUT, exclude=[image.key])
        after = self.images.search(minus, SHARE_CUT, exclude=[image.key])
        texts_before, texts_after = ([hit.item.texts for hit in hits] for hits in (before, after))
        entry = {
            "image_text": query.image_text,
            "image_key": image.key,
            "minus": query.minus,
            "share_before": share_named(texts_before, [query.minus]),
            "share_after": share_named(texts_after, [query.minus]),
            "expected": query.expected,
            "expected_before": share_named(texts_before, query.expected),
            "expected_after": share_named(texts_after, query.expected),
        }
        picture = image.image(self.shards)

        def judge(texts: Sequence[str]) -> bool | None:
            return False if names(texts, [query.minus]) else names(texts, query.expected) or None

        shown = [
            AnsweredQuery(f"image “{query.image_text}”", picture, self._answers(before, judge), None),
            AnsweredQuery(f"the same - “{query.minus}”", picture, self._answers(after, judge), None),
        ]
        return LabelledOutcome(entry, shown)

    def _answers(self, hits: Sequence[Hit], judge: Callable[[Sequence[str]], bool | None]) -> list[ImageAnswer]:
        """Prefers a text in ASCII, since the figure's font has no Asian scripts."""
        return [
            ImageAnswer(
                image=hit.item.image(self.shards),
                text=next((text for text in hit.item.texts if text.isascii()), hit.item.texts[0]),
                score=hit.score,
                right=judge(hit.item.texts),
            )
            for hit in hits
        ]
