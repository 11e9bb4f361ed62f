"""The filter's page: what was kept and dropped, with pictures.

Pictures that rule I1 drops are blurred. Pictures that people opted out are counted but not shown. E-mail addresses and
phone numbers are masked in every text.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import ImageFilter

from align.config.filter import FilterConfig
from align.display import html
from align.display.figure import BAD, GOOD, INK, SOFT, histogram, png, tidy
from align.display.shares import percent
from align.durable.files import write_bytes, write_text
from align.filter.examples import ExamplePair, PairExamples
from align.filter.overview import Counted, Overview
from align.filter.report import FilterReport
from align.filter.rules import RULES, active
from align.pairs.picture import PictureError, decode
from align.pairs.text import mask_personal_data

_MAX_BAR_WORDS = 30
_MAX_LANGUAGES = 12


def funnel_figure(num_pairs: int, steps: Sequence[tuple[str, int, int]]) -> Figure:
    """Pairs left after each rule.

    Args:
        num_pairs: raw pairs.
        steps: (rule, pairs that it is the first to drop, pairs left after it), in rule order.
    """
    labels = ["raw pairs", *(name for name, _, _ in steps)]
    left, dropped = [num_pairs, *(left for _, _, left in steps)], [0, *(gone for _, gone, _ in steps)]
    figure = Figure(figsize=(3.3, 0.3 * len(labels) + 0.8))
    axes = figure.subplots()
    bars = range(len(labels))
    axes.barh(bars, left, color=GOOD, height=0.74)
    axes.barh(bars, dropped, left=left, color=BAD, alpha=0.75, height=0.74)
    for bar, remaining, gone in zip(bars, left, dropped, strict=True):
        share = f", {percent(gone / num_pairs)}" if gone > 0.0005 * num_pairs else ""
        text = f"{remaining:,}  (−{gone:,}{share})" if gone else f"{remaining:,}"
        axes.text(remaining + gone + 0.01 * num_pairs, bar, text, va="center", fontsize=8.5, color=INK)
    axes.set_yticks(bars, labels, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, num_pairs))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("pairs left after each rule (red: dropped by it)", fontsize=9, color=SOFT)
    tidy(axes)
    return figure


def words_figure(num_words: Mapping[int, int], config: FilterConfig) -> Figure:
    """Words per text -> pairs; bars that rule T3 drops are red."""
    counts = [0] * (_MAX_BAR_WORDS + 1)
    for words, pairs in num_words.items():
        counts[min(words, _MAX_BAR_WORDS)] += pairs
    kept = [pairs * (config.min_words <= words <= config.max_words) for words, pairs in enumerate(counts)]
    labels = ["" if words % 5 else f"{words}{'+' * (words == _MAX_BAR_WORDS)}" for words in range(len(counts))]
    return histogram(labels, counts, kept, f"words per text (kept: {config.min_words} to {config.max_words})", "pairs")


def sizes_figure(short_sides: Mapping[int, int], config: FilterConfig) -> Figure:
    """Shorter side in pixels -> distinct images; buckets that rule I2 drops as a whole are red."""
    lows, least = sorted(short_sides), config.short_side_above_px
    counts, ends = [short_sides[low] for low in lows], [*lows[1:], float("inf")]
    kept = [number * (end - 1 > least) for number, end in zip(counts, ends, strict=True)]
    labels = [f"{low:,}{'+' * (low == lows[-1])}" for low in lows]
    return histogram(labels, counts, kept, f"shorter side from ... px (kept: above {least:,})", "distinct images")


def languages_figure(languages: Sequence[Counted], num_looked_at: int) -> Figure:
    """Languages of texts -> pairs, the kept ones green, the dropped ones red."""
    shown = list(languages[:_MAX_LANGUAGES])
    if rest := languages[_MAX_LANGUAGES:]:
        others = (sum(one.num_pairs for one in rest), sum(one.num_kept for one in rest))
        shown.append(Counted(name=f"{len(rest)} others", num_pairs=others[0], num_kept=others[1]))
    names, counts, kept = ([getattr(one, name) for one in shown] for name in ("name", "num_pairs", "num_kept"))
    return histogram(names, counts, kept, f"language, guessed, {num_looked_at:,} texts (green: kept)", "pairs")


_THUMBNAIL_PX = 144
_BLUR_PX = 9
_MAX_CAPTION = 90


def write_page(report: FilterReport, config: FilterConfig, examples: PairExamples, directory: Path) -> None:
    """Writes report.html, and the funnel as PNG.

    Args:
        report: the numbers.
        config: the cuts behind them.
        examples: pairs with their pictures.
        directory: the folder to write to.
    """
    overview = report.overview
    steps = [(row.reason, row.num_first, row.num_remaining) for row in report.funnel if row.num_first]
    funnel, words, sides = funnel_figure(report.num_pairs, steps), overview.words_per_text, overview.short_sides
    panels = {
        "text lengths": (words_figure(words, config), sum(words.values())),
        "image sizes": (sizes_figure(sides, config), sum(sides.values())),
        "languages": (languages_figure(overview.languages, overview.num_looked_at), len(overview.languages)),
    }
    write_bytes(directory / "funnel.png", png(funnel))
    share = report.num_kept / report.num_pairs if report.num_pairs else 0.0
    sections = {
        "The funnel": [_bars(report.num_pairs, steps)],
        "Every rule": _rules(report, config),
        "Texts and images": [
            html.side_by_side(html.plot(figure, alt=name) for name, (figure, number) in panels.items() if number)
        ],
        "Where they come from": _origins(overview),
        "Personal data in texts": _personal_data(overview, config),
        "Near-duplicates of evaluation images": _evaluation(report),
    }
    for code in (None, *RULES):
        sections[f"Dropped: {code}" if code else "Kept"] = _examples(code, examples, config.max_image_pixels)
    blocks = [_cards(report)]
    for title, body in sections.items():
        blocks += [html.heading(title), *body] if body else []
    lead = f"{report.num_kept:,} of {report.num_pairs:,} pairs kept ({percent(share)})."
    if report.num_not_fetched:
        lead += (
            f" {report.num_not_fetched:,} more pass every rule on texts, but align ingest did not fetch their "
            "pictures: run align ingest again."
        )
    write_text(directory / "report.html", html.page("What the filter kept and dropped", lead, blocks))


def _cards(report: FilterReport) -> str:
    share = report.num_kept / report.num_pairs if report.num_pairs else 0.0
    alike = sum(row.num_alone for row in report.funnel if row.reason == "image_near_duplicate_of_test")
    personal = report.overview.personal_data.num_pairs
    not_fetched = report.num_not_fetched
    return html.cards(
        [
            ("raw pairs", f"{report.num_pairs:,}", ""),
            ("kept", f"{report.num_kept:,}", "good"),
            ("keep rate", percent(share), "good"),
            ("distinct images", f"{report.num_images:,}", ""),
            ("pairs like evaluation images", f"{alike:,}", "bad" if alike else ""),
            ("texts with personal data", f"{personal:,}", "warn" if personal else ""),
            *([("pictures to fetch: align ingest again", f"{not_fetched:,}", "bad")] if not_fetched else []),
        ]
    )


def _bars(num_pairs: int, steps: Sequence[tuple[str, int, int]]) -> str:
    """The funnel of `funnel_figure`, for windows of any width."""
    of = max(num_pairs, 1)
    rows = [("raw pairs", f"{num_pairs:,}", 1.0, 0.0)]
    rows += [(name, f"{left:,} (−{gone:,}, {percent(gone / of)})", left / of, gone / of) for name, gone, left in steps]
    return html.bars(rows) + html.note("Pairs left after each rule. Red: what it drops first.")


def _rules(report: FilterReport, config: FilterConfig) -> list[str]:
    cuts, vocabulary, switched_on, rows = _cuts(config), report.vocabulary, active(config), []
    off = [row.reason for row in report.funnel if row.reason not in switched_on]
    for row in report.funnel:
        if row.reason not in switched_on:
            continue
        alone = row.num_alone / report.num_pairs if report.num_pairs else 0.0
        what, cut = (RULES[row.reason].__doc__ or "").strip().splitlines()[0], cuts.get(row.reason, "")
        rows.append((row.reason, row.num_alone, alone, row.num_first, row.num_remaining, cut, what))
    columns = ("rule", "drops alone", "share", "drops first", "pairs left", "cut here", "rule, with the paper's cut")
    return [
        html.table(columns, rows, bar=2),
        html.note(
            "Drops alone: pairs that the rule drops, whether or not other rules drop them too. Drops first: pairs of "
            "which it is the first, in rule order, to drop them. "
            + (f"Off here: {', '.join(off)}. " if off else "")
            + f"T2's list holds the {vocabulary.num_frequent:,} most frequent of {vocabulary.num_ngrams:,} distinct "
            f"unigrams and bigrams: all that occur at least {vocabulary.last_count:,} time(s). The NSFW classifier "
            f"scored {report.num_nsfw_scored:,} of {report.num_images:,} distinct images: those that some pair "
            "would keep under all other rules."
        ),
    ]


def _cuts(config: FilterConfig) -> dict[str, str]:
    share = config.keep_similarity_share
    best = "" if share is None else f", best {percent(share)}"
    return {
        "image_nsfw": f"score {config.nsfw_threshold:g}",
        "image_too_small": f"{config.short_side_above_px:,} px",
        "image_aspect_ratio": f"{config.aspect_ratio_below:g}",
        "image_too_many_texts": f"{config.max_texts_per_image:,} texts",
        "image_near_duplicate_of_test": f"cosine {config.near_duplicate_cosine_above:g}",
        "text_shared_by_many_images": f"{config.max_images_per_text:,} images",
        "text_rare_ngram": f"{config.num_frequent_ngrams:,} n-grams",
        "text_too_short": f"{config.min_words} words",
        "text_too_long": f"{config.max_words} words, {config.max_characters:,} characters",
        "pair_low_similarity": f"cosine {config.min_similarity:g}{best}",
        "text_other_language": ", ".join(config.languages or ()),
        "pair_licence": ", ".join(config.licences),
    }


def _origins(overview: Overview) -> list[str]:
    sources = overview.text_sources if len(overview.text_sources) > 1 else ()
    tables = [
        html.subheading(title) + html.table((column, "pairs", "kept"), rows)
        for title, column, counted in (
            (f"Hosts of most images, in {overview.num_looked_at:,} pairs", "host", overview.hosts),
            ("Sources of texts, in the same", "source", sources),
        )
        if (rows := [(one.name, one.num_pairs, f"{one.num_kept / one.num_pairs:.0%}") for one in counted])
    ]
    return [html.side_by_side(tables)] if tables else []


def _personal_data(overview: Overview, config: FilterConfig) -> list[str]:
    personal = overview.personal_data
    rule = "on" if config.drop_personal_data else "off (filter.drop_personal_data)"
    blocks = [
        html.paragraph(
            f"{personal.num_with_email:,} texts have an e-mail address and {personal.num_with_phone:,} a phone number. "
            f"{personal.num_kept:,} of these {personal.num_pairs:,} pairs are kept. The rule that drops them is {rule}."
        )
    ]
    if personal.examples:
        blocks.append(html.table(("examples, masked",), [(_short(text),) for text in personal.examples]))
    return blocks


def _evaluation(report: FilterReport) -> list[str]:
    if not report.evaluation_matches:
        return [html.paragraph("There was no evaluation set to compare with, so rule I5 dropped nothing.")]
    columns = ("evaluation set", "images that resemble one of the set")
    return [html.table(columns, sorted(report.evaluation_matches.items()))]


def _examples(code: str | None, examples: PairExamples, max_pixels: int) -> list[str]:
    pairs = [pair for pair in examples.pairs if pair.reason == code]
    if not pairs or code == "opted_out":
        return []
    items: list[tuple[bytes, str, str]] = []
    for pair in pairs:
        data = examples.images.get(pair.image_key or "")
        picture = _thumbnail(data, max_pixels, blur=code == "image_nsfw") if data is not None else None
        if picture is None:
            continue
        items.append((picture, f"{_detail(pair)}{_short(pair.text)}", "bad" if code else "good"))
        twin = examples.twins.get(pair.twin or "")
        twin_picture = _thumbnail(twin[0], max_pixels) if twin and code == "image_near_duplicate_of_test" else None
        if twin and twin_picture:
            items.append((twin_picture, f"test image {pair.twin}: {_short(twin[1])}", ""))
    if items:
        return [html.gallery(items)]
    rows = [(one.key, one.error_message or "does not decode", _short(one.url), _short(one.text)) for one in pairs]
    return [html.table(("key", "why", "image URL", "text"), rows)]


def _detail(pair: ExamplePair) -> str:
    match pair.reason:
        case "image_nsfw":
            return f"score {pair.nsfw_score:.2f} · "
        case "image_too_small" | "image_aspect_ratio":
            return f"{pair.width_px} x {pair.height_px} · "
        case "image_too_many_texts":
            return f"{pair.num_texts:,} texts · "
        case "image_near_duplicate_of_test" if pair.twin_cosine is not None:
            return f"cosine {pair.twin_cosine:.3f} · "
        case "text_shared_by_many_images":
            return f"{pair.num_images:,} images · "
        case "text_rare_ngram" if pair.rare_ngram:
            return f"rare: {_short(pair.rare_ngram)} · "
        case "text_too_long":
            return f"{pair.num_words:,} words, {pair.num_characters:,} characters · "
        case "text_too_short":
            return f"{pair.num_words:,} words · "
        case "pair_low_similarity" if pair.similarity is not None:
            return f"cosine {pair.similarity:.2f} · "
        case "text_other_language":
            return f"{pair.language} · "
        case _:
            return ""


def _short(text: str) -> str:
    text = mask_personal_data(text)
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
