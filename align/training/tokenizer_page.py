"""The page of `align fit_tokenizer`: how the vocabulary fits the texts, and what their lengths are against the cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from align.display import html
from align.display.figure import histogram, png
from align.durable.files import write_bytes, write_text

_MOST_BARS, _MOST_PIECES = 40, 25


def write_page(
    metrics: Mapping[str, float], pieces: Mapping[str, int], lengths: Mapping[int, int], max_tokens: int, *, to: Path
) -> None:
    """Writes report.html, and its figure as lengths.png.

    `pieces` says how often each of the vocabulary occurs in the texts, `lengths` how many texts have so many tokens.
    """
    width = -(-max(lengths) // _MOST_BARS)
    counts, kept = ([0] * (max(lengths) // width + 1) for _ in range(2))
    for length, number in lengths.items():
        counts[length // width] += number
        kept[length // width] += number * (length <= max_tokens)
    labels = [f"{bar * width}" if bar % 5 == 0 else "" for bar in range(len(counts))]
    figure = histogram(labels, counts, kept, f"tokens per text (red: cut at {max_tokens})", "texts")
    value = {name.removeprefix("fit_tokenizer/"): number for name, number in metrics.items()}
    cut, unknown = value["num_truncated"], value["num_unknown_tokens"]
    used = sorted((-number, piece) for piece, number in pieces.items() if number)
    tables = {"Most frequent": used[:_MOST_PIECES], "Least frequent of those that occur": used[::-1][:_MOST_PIECES]}
    blocks = [
        html.cards([
            ("tokens in the vocabulary", f"{len(pieces):,}", ""),
            ("of them occur", f"{len(used):,}", ""),
            ("tokens per text, in the mean", f"{value['tokens_per_text']:.1f}", ""),
            (f"texts are cut at {max_tokens}", f"{cut / value['num_texts']:.2%}", "warn" if cut else ""),
            ("unknown tokens", f"{unknown:,}", "warn" if unknown else ""),
        ]),
        html.heading("Lengths"),
        html.plot(figure, alt="tokens per text"),
        html.note("With [CLS] and [SEP], which each text has."),
        html.heading("Tokens"),
        html.side_by_side(
            html.subheading(title) + html.table(("token", "occurs"), [(piece, -number) for number, piece in some])
            for title, some in tables.items()
        ),
    ]  # fmt: skip
    lead = f"{value['vocab_size']:,} tokens for {value['num_texts']:,} training texts."
    write_bytes(to / "lengths.png", png(figure))
    write_text(to / "report.html", html.page("The vocabulary", lead, blocks))
