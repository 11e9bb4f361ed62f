"""The numbers of the index report, and search results, queries with their answers, as a figure and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from align.display.figure import BAD, GOOD, INK, SOFT, legible
from align.display.html import escape, fold, gallery, heading, page, paragraph, picture
from align.display.report import Report
from align.pairs.picture import small, thumbnail
from align.search.surely import LEVELS


@dataclass(frozen=True)
class ImageAnswer:
    """An image that search returned.

    Attributes:
        image: encoded bytes.
        text: one of its texts.
        score: cosine with the query.
        right: whether it is what was meant; None if nobody said what was meant.
    """

    image: bytes
    text: str
    score: float
    right: bool | None


@dataclass(frozen=True)
class AnsweredQuery:
    """A query with its answers.

    Attributes:
        query: the text, or a description of the query.
        image: the query image's bytes, if there is one.
        answers: nearest first.
        right: whether the query counts as answered; None if nobody said what was meant.
    """

    query: str
    image: bytes | None
    answers: Sequence[ImageAnswer]
    right: bool | None


_CSS = {None: "", True: "good", False: "bad"}
_SAID = {None: "", True: ": right", False: ": wrong"}


def search_page(
    title: str, lead: str, sections: Mapping[str, Sequence[AnsweredQuery]], risk: bytes | None = None
) -> str:
    """Returns the HTML of a page with pictures. `sections`: heading -> queries; an empty section is left out. `risk`: a
    figure of how well the line keeps its promise.
    """
    blocks = []
    for name, queries in sections.items():
        if queries:
            blocks.append(heading(name))
            for number, query in enumerate(queries):
                asked, *answers = _query(query)
                if number < _NUM_OPEN:
                    blocks += [asked, *answers]
                else:
                    blocks.append(fold(query.query + _SAID[query.right], "".join(answers)))
    if risk:
        blocks += [heading("How sure the first picture is"), picture(risk, alt="loss against the share answered")]
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


_THUMBNAIL_PX = 160
#: Queries of a section whose answers are open; those of the others open at a click, so that a phone shows the list.
_NUM_OPEN = 3


def search_figure(queries: Sequence[AnsweredQuery]) -> Figure:
    """One line per query: its words, then its answers. A green frame: right; a red one: wrong."""
    columns = max((len(query.answers) for query in queries), default=0) + 1
    figure = Figure(figsize=(1.25 * (columns + 0.6), 1.5 * len(queries)))
    shape = {"width_ratios": [1.6] + [1] * (columns - 1), "wspace": 0.08, "hspace": 0.28}
    grid = figure.subplots(len(queries), columns, squeeze=False, gridspec_kw=shape)
    for line, query in zip(grid, queries, strict=True):
        for axes in line:
            axes.axis("off")
        color = {None: INK, True: GOOD, False: BAD}[query.right]
        words = legible(query.query, width=18, lines=4)
        line[0].text(0, 0.5, words, fontsize=9, va="center", color=color, fontweight="bold")
        for axes, answer in zip(line[1:], query.answers, strict=False):
            axes.axis("on")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.imshow(np.asarray(small(answer.image, _THUMBNAIL_PX)))
            axes.set_xlabel(legible(answer.text, width=20, lines=2), fontsize=6, labelpad=2)
            for spine in axes.spines.values():
                spine.set(color={None: SOFT, True: GOOD, False: BAD}[answer.right], linewidth=2)
    return figure


#: A labelled query counts as answered if a right image is among this many.
ANSWER_CUT = 5
#: An image - text query is judged by this many images.
SHARE_CUT = 10


class IndexReport(Report):
    """What the index holds, and the outcome of every labelled query.

    Attributes:
        model_digest: names the model that embedded the images.
        shards_digest: names the images.
        queries: query, expected, right (a right image in the top 5), chance (probability that five random images
            include a right one), surely (the levels whose line the first image is above), found (key, score, texts,
            right).
        composed: image_text, minus, image_key; share_before and share_after, of images that name the text taken away;
            expected, expected_before and expected_after. If no indexed image has such a text, image_key is null and
            the shares are missing.
    """

    model_digest: str
    shards_digest: str
    queries: list[dict[str, Any]]
    composed: list[dict[str, Any]]

    def summary(self) -> str:
        """One sentence with the main numbers."""
        metrics = self.metrics
        parts = [f"{metrics['index/num_images']:,} images"]
        if "index/queries/num_asked" in metrics:
            right, asked = metrics["index/queries/num_right_in_top_5"], metrics["index/queries/num_asked"]
            guess = metrics["index/queries/num_right_in_top_5/chance"]
            parts.append(
                f"{right} of {asked} labelled queries have a right image in the top {ANSWER_CUT}, by chance {guess:.1f}"
            )
        if "index/minus/share_ratio" in metrics:
            before, after = metrics["index/minus/share_before"], metrics["index/minus/share_after"]
            parts.append(
                f"with image - text, the images that name the text fall from {before:.0%} to {after:.0%} of the top "
                f"{SHARE_CUT} on average"
            )
        if "index/surely/num_concepts" in metrics:
            loss = metrics["index/surely/0.75/loss"]
            parts.append(f"{loss:.1%} of questions like the held-out texts get a wrong first image above the line")
        return "; ".join(parts) + "."


def index_metrics(
    num_images: int, queries: Sequence[dict[str, Any]], composed: Sequence[dict[str, Any]]
) -> dict[str, float | int]:
    """The metrics of the outcomes that the report lists."""
    metrics: dict[str, float | int] = {"index/num_images": num_images}
    if queries:
        metrics["index/queries/num_asked"] = len(queries)
        metrics["index/queries/num_right_in_top_5"] = sum(outcome["right"] for outcome in queries)
        for level in LEVELS:
            sure = [outcome for outcome in queries if level in outcome["surely"]]
            metrics[f"index/queries/num_sure/{level}"] = len(sure)
            metrics[f"index/queries/num_sure_and_wrong/{level}"] = sum(not one["found"][0]["right"] for one in sure)
        metrics["index/queries/num_right_in_top_5/chance"] = round(sum(outcome["chance"] for outcome in queries), 3)
    if asked := [outcome for outcome in composed if outcome["image_key"] is not None]:
        metrics["index/minus/num_asked"] = len(asked)
        metrics["index/minus/num_without_image"] = len(composed) - len(asked)
        before, after = (
            sum(outcome[f"share_{when}"] for outcome in asked) / len(asked) for when in ("before", "after")
        )
        metrics["index/minus/share_before"], metrics["index/minus/share_after"] = round(before, 6), round(after, 6)
        # 0.5 if the share halves; 1 if there was nothing to take away
        metrics["index/minus/share_ratio"] = round(after / before if before > 0 else 1.0, 6)
        for when in ("before", "after"):
            expected = [float(outcome[f"expected_{when}"]) for outcome in asked]
            metrics[f"index/minus/expected_{when}"] = round(sum(expected) / len(expected), 6)
    return metrics
