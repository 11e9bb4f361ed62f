"""The report of `align filter`: its numbers, and the page that shows them with pictures.

What rule I1 drops is shown blurred.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from PIL import ImageFilter
from pydantic import BaseModel, ConfigDict

from align import html
from align.config.filter import FilterConfig
from align.pairs.picture import PictureError, decode
from align.pairs.rules import RULES
from align.stage import Report, write_bytes, write_text

_THUMBNAIL_PX = 144
_BLUR_PX = 9
_MAX_BAR_WORDS = 30
_INK, _DROP, _KEEP = "#1c2330", "#b3261e", "#11734b"
_MAX_CAPTION = 90


class FunnelRow(BaseModel):
    """One rule.

    Attributes:
        reason: its code.
        num_alone: pairs that it drops, whatever the others say.
        num_first: pairs of which it is the first in rule order to drop them.
        num_remaining: pairs left after it and all rules before.
    """

    model_config = ConfigDict(frozen=True)
    reason: str
    num_alone: int
    num_first: int
    num_remaining: int


class Vocabulary(BaseModel):
    """Rule T2's list.

    Attributes:
        num_ngrams: distinct unigrams and bigrams of the raw data.
        num_frequent: those on the list.
        last_count: how often the last ones on it occur; others that occur as often may be off it. 0: all are on it.
    """

    model_config = ConfigDict(frozen=True)
    num_ngrams: int
    num_frequent: int
    last_count: int


class FilterReport(Report):
    """What was kept and dropped.

    Attributes:
        num_pairs: rows of data/raw.
        num_kept: pairs that no rule drops.
        num_images: distinct images with bytes.
        num_nsfw_scored: those that rule I1 looked at: some pair would keep them under all other rules.
        num_evaluation_sets: sets that rule I5 ran against.
        evaluation_matches: distinct images that are near-duplicates of one in the set.
        vocabulary: rule T2's list.
        funnel: every rule, in rule order.
    """

    num_pairs: int
    num_kept: int
    num_images: int
    num_nsfw_scored: int
    num_evaluation_sets: int
    evaluation_matches: dict[str, int]
    vocabulary: Vocabulary
    funnel: list[FunnelRow]


@dataclass(frozen=True)
class Example:
    """A pair to show; fields as the columns of `rules.examples`.

    Attributes:
        twin: SET/KEY of the evaluation image that it resembles.
    """

    reason: str | None
    key: str
    image_key: str | None
    text: str
    num_words: int
    width_px: int | None
    height_px: int | None
    num_texts: int
    num_images: int
    rare_ngram: str | None
    nsfw_score: float | None
    twin: str | None
    url: str
    error_message: str | None


@dataclass(frozen=True)
class Gallery:
    """What the page shows.

    Attributes:
        examples: pairs, some for each reason.
        images: image_key -> bytes.
        twins: SET/KEY -> (bytes, text) of the evaluation images that examples resemble.
        max_pixels: larger pictures are not decoded.
    """

    examples: list[Example]
    images: dict[str, bytes]
    twins: dict[str, tuple[bytes, str]]
    max_pixels: int


def write_pages(
    report: FilterReport, config: FilterConfig, num_words: dict[int, int], gallery: Gallery, directory: Path
) -> None:
    """Writes report.html, funnel.png and text_lengths.png.

    Args:
        report: the numbers.
        config: the cuts they come from.
        num_words: words per text -> pairs.
        gallery: examples with their pictures.
        directory: where to.
    """
    funnel, lengths = html.png(_funnel_figure(report)), html.png(_lengths_figure(num_words, config))
    write_bytes(directory / "funnel.png", funnel)
    write_bytes(directory / "text_lengths.png", lengths)
    share = report.num_kept / report.num_pairs if report.num_pairs else 0.0
    vocabulary = report.vocabulary
    cuts = _cuts(config)
    blocks = [
        html.picture(funnel, alt="pairs left after each rule"),
        html.heading("Every rule"),
        html.table(
            ("rule", "drops alone", "drops first", "pairs left", "cut here", "the rule, with the paper's cut"),
            [
                (
                    row.reason,
                    row.num_alone,
                    row.num_first,
                    row.num_remaining,
                    cuts.get(row.reason, ""),
                    _what(row.reason),
                )
                for row in report.funnel
            ],
        ),
        html.paragraph(
            f"T2's list holds the {vocabulary.num_frequent:,} most frequent of {vocabulary.num_ngrams:,} distinct "
            f"unigrams and bigrams; the last ones on it occur {vocabulary.last_count:,} times. The NSFW classifier "
            f"looked at {report.num_nsfw_scored:,} of {report.num_images:,} distinct images: those that some pair "
            "would keep under all other rules."
        ),
        html.heading("Near-duplicates of evaluation images"),
        html.table(("evaluation set", "images like one of its"), sorted(report.evaluation_matches.items()))
        if report.evaluation_matches
        else html.paragraph("No evaluation set was there to compare with: rule I5 removed nothing."),
        html.heading("Words per text"),
        html.picture(lengths, alt="histogram of words per text"),
    ]
    for code in (None, *RULES):
        blocks += _section(code, gallery)
    lead = f"{report.num_kept:,} of {report.num_pairs:,} pairs kept ({share:.1%})."
    write_text(directory / "report.html", html.page("What the filter kept and dropped", lead, blocks))


def _cuts(config: FilterConfig) -> dict[str, str]:
    return {
        "image_nsfw": f"score {config.nsfw_threshold:g}",
        "image_too_small": f"{config.short_side_above_px:,} px",
        "image_aspect_ratio": f"{config.aspect_ratio_below:g}",
        "image_too_many_texts": f"{config.max_texts_per_image:,} texts",
        "image_near_duplicate_of_test": f"correlation {config.thumbnail_correlation_above:g}",
        "text_shared_by_many_images": f"{config.max_images_per_text:,} images",
        "text_rare_ngram": f"{config.num_frequent_ngrams:,} n-grams",
        "text_too_short": f"{config.min_words} words",
        "text_too_long": f"{config.max_words} words",
    }


def _what(code: str) -> str:
    """The first sentence of a rule's docstring."""
    return (RULES[code].__doc__ or "").strip().splitlines()[0]


def _section(code: str | None, gallery: Gallery) -> list[str]:
    examples = [example for example in gallery.examples if example.reason == code]
    if not examples:
        return []
    title = html.heading(f"Dropped: {code}" if code else "Kept")
    items: list[tuple[bytes, str, str]] = []
    for example in examples:
        data = gallery.images.get(example.image_key or "")
        picture = _thumbnail(data, gallery.max_pixels, blur=code == "image_nsfw") if data is not None else None
        if picture is None:
            continue
        items.append((picture, f"{_detail(example)}{_short(example.text)}", "bad" if code else "good"))
        twin = gallery.twins.get(example.twin or "")
        twin_picture = (
            _thumbnail(twin[0], gallery.max_pixels) if twin and code == "image_near_duplicate_of_test" else None
        )
        if twin and twin_picture:
            items.append((twin_picture, f"test image {example.twin}: {_short(twin[1])}", ""))
    if items:
        return [title, html.gallery(items)]
    rows = [(one.key, one.error_message or "does not decode", _short(one.url), _short(one.text)) for one in examples]
    return [title, html.table(("key", "why", "image URL", "text"), rows)]


def _detail(example: Example) -> str:
    match example.reason:
        case "image_nsfw":
            return f"score {example.nsfw_score:.2f} · "
        case "image_too_small" | "image_aspect_ratio":
            return f"{example.width_px} x {example.height_px} · "
        case "image_too_many_texts":
            return f"{example.num_texts:,} texts · "
        case "text_shared_by_many_images":
            return f"{example.num_images:,} images · "
        case "text_rare_ngram":
            return f"rare: {_short(example.rare_ngram or '')} · "
        case "text_too_short" | "text_too_long":
            return f"{example.num_words:,} words · "
        case _:
            return ""


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CAPTION else f"{text[: _MAX_CAPTION - 1]}…"


def _thumbnail(data: bytes, max_pixels: int, *, blur: bool = False) -> bytes | None:
    try:
        image = decode(data, max_pixels=max_pixels, hint_px=2 * _THUMBNAIL_PX)
    except PictureError:
        return None
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(_BLUR_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


def _funnel_figure(report: FilterReport) -> Figure:
    rows = [row for row in report.funnel if row.num_first]
    labels = ["raw pairs", *(row.reason for row in rows)]
    left = [report.num_pairs, *(row.num_remaining for row in rows)]
    dropped = [0, *(row.num_first for row in rows)]
    figure = Figure(figsize=(9.2, 0.42 * len(labels) + 0.9))
    axes = figure.subplots()
    places = range(len(labels))
    axes.barh(places, left, color=_KEEP, height=0.72)
    axes.barh(places, dropped, left=left, color=_DROP, alpha=0.75, height=0.72)
    for place, (remaining, gone) in enumerate(zip(left, dropped, strict=True)):
        text = f"{remaining:,}" if not gone else f"{remaining:,}  (−{gone:,})"
        axes.text(remaining + gone + 0.01 * report.num_pairs, place, text, va="center", fontsize=8.5, color=_INK)
    axes.set_yticks(places, labels, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, 1.16 * report.num_pairs))
    axes.set_xlabel("pairs left after each rule, in rule order (red: dropped by it)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _lengths_figure(num_words: dict[int, int], config: FilterConfig) -> Figure:
    counts = [0] * (_MAX_BAR_WORDS + 1)
    for words, pairs in num_words.items():
        counts[min(words, _MAX_BAR_WORDS)] += pairs
    figure = Figure(figsize=(9.2, 2.6))
    axes = figure.subplots()
    inside = [config.min_words <= words <= config.max_words for words in range(len(counts))]
    axes.bar(range(len(counts)), counts, color=[_KEEP if kept else _DROP for kept in inside], width=0.8)
    ticks = range(0, _MAX_BAR_WORDS + 1, 5)
    axes.set_xticks(ticks, [f"{tick}+" if tick == _MAX_BAR_WORDS else str(tick) for tick in ticks])
    axes.set_xlabel(f"words per text (green: {config.min_words} to {config.max_words}, rule T3)", fontsize=9)
    axes.set_ylabel("pairs", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
