"""Draws pairs of pictures side by side: those that rule I5 matches, rightly and wrongly, and the closest others."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from align.pairs.picture import decode
from benchmarks.near_duplicates.labelled import LabelledPair
from benchmarks.near_duplicates.pictures import MAX_PIXELS

COLUMNS = 9
SIDE_PX = 200
GAP_PX = 14
INK, GREY = "#1b1f24", "#6a737d"


def draw(
    pairs: Sequence[LabelledPair],
    matches: Mapping[tuple[str, str], float],
    images: Mapping[str, bytes],
    tests: Mapping[str, bytes],
    path: Path,
) -> None:
    """Writes a PNG: in each pair the training image left, the evaluation image right, their cosine below."""

    def some(label: str, above: bool) -> list[LabelledPair]:
        return [pair for pair in pairs if pair.same == label and ((pair.image_id, pair.evaluation) in matches) == above]

    copies, mirrored, wrong, left = some("copy", True), some("mirrored", True), some("no", True), some("no", False)
    sections = [
        ("Copies: the least similar", f"all {len(copies)} are found", "#1a7f37", copies[-COLUMNS:]),
        ("Mirror images with another meaning", f"{len(mirrored)}, found as flips", "#9a6700", mirrored),
        ("False positives", f"all {len(wrong)}", "#cf222e", wrong),
        ("Not matched", f"the closest of {len(left)} labelled pairs", "#0969da", left[: 2 * COLUMNS]),
    ]
    heights = [height for *_, shown in sections for height in (0.55, *[1.0] * -(-len(shown) // COLUMNS))]
    figure = Figure(figsize=(COLUMNS * 1.75, sum(heights) * 1.12), dpi=100)
    axes = figure.subplots(len(heights), COLUMNS, height_ratios=heights)
    for axis in axes.flat:
        axis.axis("off")
    row = 0
    for title, count, colour, shown in sections:
        axes[row, 0].text(
            0, 0.25, title, color=colour, fontsize=15, fontweight="bold", transform=axes[row, 0].transAxes
        )
        axes[row, -1].text(
            1, 0.25, count, color=GREY, fontsize=11, horizontalalignment="right", transform=axes[row, -1].transAxes
        )
        for number, pair in enumerate(shown):
            axis = axes[row + 1 + number // COLUMNS, number % COLUMNS]
            axis.imshow(_side_by_side(images[pair.image_id], tests[pair.evaluation]))
            cosine = matches.get((pair.image_id, pair.evaluation), pair.cosine)
            axis.set_title(f"{cosine:.3f}", fontsize=9, color=INK, y=-0.2, pad=0)
        row += 1 + -(-len(shown) // COLUMNS)
    figure.subplots_adjust(left=0.015, right=0.985, top=0.995, bottom=0.02, wspace=0.08, hspace=0.22)
    drawing = io.BytesIO()
    figure.savefig(drawing, facecolor="white", metadata={"Software": None})
    path.parent.mkdir(exist_ok=True)
    Image.open(drawing).convert("RGB").quantize(256).save(path, optimize=True)  # a third of the bytes


def _side_by_side(first: bytes, second: bytes) -> Image.Image:
    both = Image.new("RGB", (2 * SIDE_PX + GAP_PX, SIDE_PX), "#d0d7de")
    for left_px, data in ((0, first), (SIDE_PX + GAP_PX, second)):
        image = decode(data, max_pixels=MAX_PIXELS)
        image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
        square = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
        square.paste(image, ((SIDE_PX - image.width) // 2, (SIDE_PX - image.height) // 2))
        both.paste(square, (left_px, 0))
    return both
