"""Draws pipeline.png (README) and layers.png (docs/architecture.md): `python docs/img/diagrams.py`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from align.display.figure import GOOD, INK, LINE, SOFT, WASH

HERE = Path(__file__).parent
#: Twice the width at which GitHub shows a page's figures, for dense screens.
WIDTH_PX, DPI = 1760, 160

#: Row -> its stages, each with what it writes. "" below a stage: the line above it says enough.
STAGES = {
    "data": [
        ("ingest", "data/raw"),
        ("filter", "data/filtered"),
        ("validate", "quality gate"),
        ("shard", "data/shards"),
        ("validate_shards", "quality gate"),
    ],
    "training": [
        ("fit_tokenizer", "data/tokenizer"),
        ("pretrain", "models/pretrained"),
        ("finetune", "models/finetuned"),
        ("evaluate", "reports/evaluation"),
    ],
    "release": [
        ("package", "models/packaged"),
        ("index", "data/index"),
    ],
}
GATES = {"validate", "validate_shards"}
#: Below: commands that are no stages.
COMMANDS = [("register", "MLflow: candidate"), ("promote", "MLflow: champion"), ("search", "text, image, both")]

#: From top to bottom; a module imports only from the layers below it. Each folder or file with what it holds.
LAYERS = [
    [("flows/", "Prefect: when and where a stage runs")],
    [("cli.py", "verb → module"), ("pipeline/", "align run, plan, runs")],
    [("lineage/", "trace, opt_out, diff: reads from all stages")],
    [
        ("ingest/", ""), ("filter/", ""), ("validate/", ""), ("shard/", ""),
        ("training/", ""), ("evaluate/", ""), ("release/", ""), ("search/", ""),
    ],
    [("model/", "the dual encoder, tokenizer, preprocessing"), ("services/", "one vendor a file or room")],
    [("formats/", "one artefact on disk per file"), ("pairs/", "text, picture, address")],
    [("project/", "which code decides what"), ("web/", "every request"), ("interfaces/", "what services offer")],
    [("durable/", "survives a kill"), ("display/", "pages, plots, lines"), ("statistics/", "intervals, randomness")],
    [("config/", "params.yaml → frozen sections"), ("errors.py", "the exceptions")],
]  # fmt: skip


def draw_pipeline() -> Figure:
    """The stages of dvc.yaml in three rows, what each writes, and the commands outside of the DAG."""
    figure, axes = _canvas(height=59)
    width, height, gap, left = 17.0, 9.4, 3.0, 9.5
    rows = {"data": 42.0, "training": 26.5, "release": 11.0}
    source = "web archive, folder of pictures, URL table, img2dataset or webdataset shards, COCO"
    _text(axes, left, 57.0, source, size=11, color=SOFT, ha="left")
    _arrow(axes, (left + width / 2, 55.6), (left + width / 2, rows["data"] + height))
    for name, stages in STAGES.items():
        y = rows[name]
        _text(axes, 0.3, y + height / 2, name, size=12, color=SOFT, ha="left", weight="bold")
        for column, (stage, out) in enumerate(stages):
            x = left + column * (width + gap)
            _box(axes, x, y, width, height, stage, out, color=GOOD if stage in GATES else INK)
            if column:
                _arrow(axes, (x - gap, y + height / 2), (x, y + height / 2))
    for name, following in pairwise(rows):  # from a row's end to the next one's start
        last = left + (len(STAGES[name]) - 1) * (width + gap) + width / 2
        y = rows[name] - (rows[name] - rows[following] - height) / 2
        axes.plot([last, last, left + width / 2], [rows[name], y, y], color=SOFT, linewidth=1.4)
        _arrow(axes, (left + width / 2, y), (left + width / 2, rows[following] + height))
    x, y = left + 2 * (width + gap), rows["release"]
    for column, (name, what) in enumerate(COMMANDS):
        at = x + column * (width + gap)
        _box(axes, at, y, width, height, name, what, color=SOFT, dashed=True)
        _arrow(axes, (at - gap, y + height / 2), (at, y + height / 2), dashed=True)
    legend = "Green: a gate; nothing is trained or packaged from data that it refused.   Dashed: commands, no stages."
    _text(axes, left, y - 3.6, legend, size=10.5, color=SOFT, ha="left")
    tools = "DVC: what is stale    Prefect: when and where    MLflow: runs and models    Great Expectations: the gates"
    _text(axes, left, y - 7.6, tools, size=10.5, color=SOFT, ha="left")
    return figure


def draw_layers() -> Figure:
    """The layers that import-linter checks, each a row of folders and files."""
    height, step, gap, left, right = 6.6, 8.0, 1.2, 1.0, 109.0
    figure, axes = _canvas(height=step * len(LAYERS) + 1)
    for number, row in enumerate(LAYERS):
        y = step * (len(LAYERS) - 1 - number) + 1.2
        share = (right - left - gap * (len(row) - 1)) / len(row)
        for column, (name, what) in enumerate(row):
            color = GOOD if ("ingest/", "") in row else INK  # the stages
            _box(axes, left + column * (share + gap), y, share, height, name, what, color=color)
    return figure


def _canvas(height: float) -> tuple[Figure, Axes]:
    """A figure of 110 by `height` units; its ground is white in a dark page, too."""
    figure = Figure(figsize=(WIDTH_PX / DPI, WIDTH_PX / DPI * height / 110), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 110), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, name: str, what: str, *, color: str,
    dashed: bool = False,
) -> None:  # fmt: skip
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=1.1", facecolor="white" if dashed else WASH,
            edgecolor=color if color != INK else LINE, linewidth=1.6, linestyle="--" if dashed else "-",
        )
    )  # fmt: skip
    middle = x + width / 2
    _text(axes, middle, y + height * (0.66 if what else 0.5), name, size=12.5, color=color, weight="bold")
    if what:
        _text(axes, middle, y + height * 0.28, what, size=10.5, color=SOFT)


def _text(
    axes: Axes, x: float, y: float, text: str, *, size: float, color: str, ha: str = "center", weight: str = "normal"
) -> None:
    axes.text(x, y, text, fontsize=size, color=color, ha=ha, va="center", fontweight=weight, parse_math=False)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], *, dashed: bool = False) -> None:
    style = {"arrowstyle": "-|>", "color": SOFT, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 1}
    axes.annotate("", end, start, arrowprops=style | {"linestyle": "--" if dashed else "-"})


if __name__ == "__main__":
    for file, drawn in {"pipeline.png": draw_pipeline(), "layers.png": draw_layers()}.items():
        drawn.savefig(HERE / file, dpi=DPI, metadata={"Software": None})
