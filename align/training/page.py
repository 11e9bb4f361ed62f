"""The page of a training run: its curves, and what the model found for the same texts while it learned.

Speed is not on it: it varies from run to run, and equal runs have equal pages.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from align.display import html
from align.display.figure import BAD, INK, WARN, legible, png, tidy
from align.display.shares import percent
from align.durable.files import write_bytes, write_text
from align.pairs.text import mask_personal_data
from align.statistics.chance import chance
from align.training.batches.samples import SplitSamples
from align.training.state import Found, MetricRow
from align.training.train import Trained
from align.training.validation import MAX_IMAGES, RECALL_AT

_WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}
#: Title of a panel -> what its curves mean, and metric -> name of its line.
PANELS: dict[str, tuple[str, dict[str, str]]] = {
    "training loss (sum of both directions)": (
        "How well each image of a batch finds its text, and each text its image. Lower is better.",
        {"train/loss": "loss"}),
    "validation recall@10": (
        "Share of queries with a right answer among the ten nearest. Higher is better.",
        {f"val/{way}/recall@10": words for way, words in _WAYS.items()}),
    "validation recall@1": (
        "Share of queries whose nearest answer is right. Higher is better.",
        {f"val/{way}/recall@1": words for way, words in _WAYS.items()}),
    "temperature": (
        "Divides the cosines in the loss, and is learned. Low: the nearest wrong pairs count most.",
        {"train/temperature": "temperature"}),
    "learning rate": ("The size of the optimiser's steps.", {"train/learning_rate": "learning rate"}),
    "norm of the gradients": (
        "Length of the gradient of a step. If it grows and stays large, training may diverge.",
        {"train/gradient_norm": "norm"}),
    "batch-norm gap": (
        "Mean of 1 - cosine between embeddings of the same images by the batch's and by the running statistics. Near "
        "0, the model in use is the one that was trained.", {"val/batch_norm_gap": "gap"}),
    "directions that the embeddings spread over": (
        "Effective rank of the image embeddings. Near 1, all images look the same to the model.",
        {"val/effective_rank": "effective rank"}),
    "loss scale": (
        "What the loss is multiplied by, so that small gradients of 16 bits are not lost.",
        {"train/loss_scale": "scale"}),
}  # fmt: skip
#: The panels of the run's picture.
MAIN = tuple(PANELS)[:2]
_THUMBNAIL_PX, _MAX_CAPTION = 112, 60


def curves(rows: Sequence[MetricRow], titles: Sequence[str], chances: Mapping[str, float]) -> Figure | None:
    """Panels side by side, those of which something was measured, with chance in red; None if nothing was."""
    measured = {name for row in rows for name in row}
    shown = [title for title in titles if measured & PANELS[title][1].keys()]
    if not shown:
        return None
    figure = Figure(figsize=(4.4 * len(shown), 3.0), layout="constrained")
    for axes, title in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        lines = PANELS[title][1]
        for (name, label), colour in zip(lines.items(), (INK, WARN), strict=False):
            points = [(row["step"], row[name]) for row in rows if name in row]
            mark = "o" if len(points) == 1 else "-"  # a line of one point is not seen
            axes.plot([step for step, _ in points], [value for _, value in points], mark, label=label, color=colour)
            if name in chances:
                axes.axhline(chances[name], color=BAD, lw=1, ls="--", label="by chance" if colour == WARN else None)
        if len(lines) > 1:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        tidy(axes)
    return figure


def write_page(
    stage: str, lead: str, metrics: Mapping[str, float], trained: Trained, samples: SplitSamples | None, directory: Path
) -> None:
    """Writes report.html, and the first curves as loss.png if something was trained.

    `lead` says in a sentence what was trained on what, `metrics` are the report's, `samples` those of validation.
    """
    rows, chances = trained.rows, _chances(samples) if samples and trained.found else {}
    value = {name.removeprefix(f"{stage}/"): number for name, number in metrics.items()}
    cards = [("steps", f"{value['num_steps']:,}", "")]
    last = [name for name in ("loss", "temperature") if f"train/{name}" in value]
    cards += [(name, f"{value[f'train/{name}']:.3g}", "") for name in last]
    for way, words in _WAYS.items():
        if (name := f"val/{way}/recall@10") in chances:
            cards.append((f"{words}, recall@10 (by chance {percent(chances[name])})", percent(value[name]), ""))
    blocks = [html.cards(cards)]
    if (figure := curves(rows, MAIN, chances)) is not None:
        write_bytes(directory / "loss.png", png(figure))
        drawn = [(title, curves(rows, [title], chances)) for title in PANELS]
        plots = [html.plot(figure, alt=title) + html.note(PANELS[title][0]) for title, figure in drawn if figure]
        blocks += [html.heading("Curves"), html.side_by_side(plots)]
    if samples and trained.found:
        blocks += _gallery(samples, trained.found)
    blocks += [html.heading("What is next"), _next(stage)]
    write_text(directory / "report.html", html.page(f"Training: {stage}", lead, blocks))


def _next(stage: str) -> str:
    """Where the rest is: this page is the same in every run that has its result, and so names no run."""
    evaluation = html.link("the evaluation", "../evaluation/report.html")
    run = html.link("all pages of the run", "../index.html")
    return f"<p>On sets that it never saw: {evaluation}. What other stages made, and MLflow: {run}.</p>" + html.note(
        f"Figures of each step: metrics.jsonl beside this page, and MLflow. Pairs per second: runtime/{stage}.json "
        "and MLflow (train/pairs_per_s). `align evaluate --checkpoint STEP --reports DIR` measures a checkpoint."
    )


def _chances(samples: SplitSamples) -> dict[str, float]:
    """Metric -> recall of a random order."""
    counts = [len(texts) for texts in samples.texts_of(np.arange(min(samples.num_images, MAX_IMAGES)))]
    of = {"image_to_text": (counts, sum(counts)), "text_to_image": ([1], len(counts))}
    return {f"val/{way}/recall@{k}": chance(*of[way], k) for way in _WAYS for k in RECALL_AT}


def _gallery(samples: SplitSamples, found: Found) -> Iterator[str]:
    """The answers of the first, the middle and the last validation."""
    steps = sorted(found)
    chosen = sorted({steps[0], steps[(len(steps) - 1) // 2], steps[-1]})
    yield html.heading("What the model found while it learned")
    yield html.paragraph("The validation images nearest to a text. Green: the image that it was written for.")
    for answers in zip(*(found[step] for step in chosen), strict=True):
        asked = answers[0][0]
        walls = [html.gallery((*_shown(samples, row), "good" * (row == asked)) for row in rows) for _, *rows in answers]
        yield html.subheading(_shown(samples, asked)[1])
        yield html.table(("step", "nearest first"), list(zip(chosen, walls, strict=True)), drawn=1)


def _shown(samples: SplitSamples, row: int) -> tuple[bytes, str]:
    """A picture, small, as a JPEG, and its first text."""
    pixels, texts = samples.load(row)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue(), legible(mask_personal_data(texts[0]), width=_MAX_CAPTION)
