"""The paper's tables with our row beside published ones, as blocks of the report's page.

Every metric of a report is shown: those whose name is known under the heading of the paper's table, all sets in one,
the others in a table of the rest. Published figures are in `published.yaml`; they stand beside sets of that name.
Their source and protocol are the title of each cell, and a line below the table, which needs no mouse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ruamel.yaml import YAML

from align.display.html import escape, heading, note, paragraph, scroll, table
from align.display.shares import percent

RETRIEVAL = "Image-text retrieval"
#: Heading -> the metrics of a set that belong to it.
HEADINGS = {
    RETRIEVAL: r"((image_to_text|text_to_image)/)?(recall@\d+|mean_recall)",
    "Crisscrossed Captions": r"cxc/.+",
    "Multi30K": r"multi30k/.+",
    "Classification": r"(zero_shot|knn|frozen|fine_tuning)/.+",
}
REST = "Other measures"

#: For pages with these tables.
STYLE = """.scroll > table.paper { table-layout: fixed; width: 100%; min-width: 640px }
table.paper th, table.paper td { white-space: nowrap; text-align: right; padding-left: .4rem }
table.paper th { white-space: normal; min-width: 4.6rem; vertical-align: bottom }
table.paper th:first-child, table.paper td:first-child { text-align: left; min-width: 8.5rem; position: sticky;
  left: 0; background: var(--paper); white-space: normal; max-width: min(15rem, 40vw); overflow-wrap: anywhere }
table.paper tr.ours td { background: var(--wash); font-weight: 600 }
table.paper th[colspan] { color: var(--ink); max-width: none; padding-top: .9rem }
table.paper small { display: block; color: var(--soft); font-weight: 400 }
table.paper td + td small { white-space: normal; max-width: 7.5rem; margin-left: auto }
p.source { color: var(--soft); font-size: .82rem; margin: .1rem 0 }
p.source:target { color: var(--ink) }
sup { line-height: 0 }
sup a { color: inherit; padding: 0 .2rem }
"""

_CUT = re.compile(r"(\d+)")
_WORDS = {"image_to_text": "image → text", "text_to_image": "text → image", "text_to_text": "text → text",
          "image_to_image": "image → image"}  # fmt: skip
#: Names as the field writes them.
_NAMES = {"sts": "STS", "sis": "SIS", "sits": "SITS", "zero_shot": "zero-shot", "knn": "kNN",
          "frozen": "frozen features,", "fine_tuning": "fine-tuning"}  # fmt: skip
_PATH = Path(__file__).with_name("published.yaml")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PublishedRow(_Frozen):
    """A model's published figures on a set: metric -> per cent."""

    model: str
    source: str
    protocol: str
    figures: Annotated[dict[str, Annotated[float, Field(ge=0, le=100)]], Field(min_length=1)]


class PublishedSet(_Frozen):
    """A set that was published on, its other names, and how many pictures it has."""

    title: str
    also: list[str]
    num_images: int
    rows: list[PublishedRow]


class Published(_Frozen):
    """`published.yaml`."""

    sources: dict[str, str]
    sets: dict[str, PublishedSet]

    @model_validator(mode="after")
    def _has_its_sources(self) -> Published:
        for name, one in self.sets.items():
            for row in one.rows:
                if row.source not in self.sources:
                    raise ValueError(f"{name}: {row.model}: no source {row.source!r}")
        return self

    def of(self, name: str) -> PublishedSet | None:
        """The published set of this name."""
        plain = _plain(name)
        return next((one for key, one in self.sets.items() if plain in {key, *map(_plain, one.also)}), None)


@cache
def published() -> Published:
    """The published figures."""
    return Published.model_validate(YAML(typ="safe", pure=True).load(_PATH.read_text(encoding="utf-8")))


def grouped(metrics: Iterable[str], sets: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Heading -> set -> metrics of the set, in the order of the paper. Of a metric without a set, the set is ''."""
    found: dict[str, dict[str, list[str]]] = {name: {} for name in (*HEADINGS, REST)}
    by_length = sorted(sets, key=len, reverse=True)
    for key in metrics:
        name = next((one for one in by_length if key.startswith(f"{one}/")), "")
        metric = key[len(name) + 1 :] if name else key
        known = (title for title, pattern in HEADINGS.items() if name and re.fullmatch(pattern, metric))
        found[next(known, REST)].setdefault(name, []).append(metric)
    return {
        title: {name: sorted(of, key=_order) for name, of in by_set.items()}
        for title, by_set in found.items()
        if by_set
    }


def figures(metrics: Mapping[str, float | int]) -> list[str]:
    """The metrics themselves, without what belongs to one: its bounds, chance, and whatever else stands below it."""
    return [key for key in metrics if key.rpartition("/")[0] not in metrics]


def paper_tables(
    metrics: Mapping[str, float | int], sets: Mapping[str, Mapping[str, Any]], model: str
) -> Iterator[tuple[str, list[str]]]:
    """Heading -> blocks.

    Args:
        metrics: of a report.
        sets: of a report: name -> `num_images` and others.
        model: the name of our row.
    """
    numbers: dict[tuple[str, str], int] = {}
    for title, by_set in grouped(figures(metrics), sets).items():
        shown = [_rest(metrics, by_set)] if title == REST else _table(metrics, by_set, sets, model, numbers)
        yield title, [heading(title), *shown]


def _table(
    metrics: Mapping[str, float | int],
    by_set: Mapping[str, list[str]],
    sets: Mapping[str, Mapping[str, Any]],
    model: str,
    numbers: dict[tuple[str, str], int],
) -> Iterator[str]:
    """A table of all sets, and the sources of its published rows, whose numbers on the page are in `numbers`."""
    columns = list(dict.fromkeys(label(rest) for of in by_set.values() for _, rest in map(_split, of)))
    rows, below = [], [note(f"In bold {model}, with its 95 % intervals and what a random order gives.")]
    for name, of in by_set.items():
        known = published().of(name)
        words = name if known is None else f"{name}: {known.title}"
        rows.append(f"<tr><th colspan={len(columns) + 1}>{escape(words)}</th></tr>")
        ways: dict[str, dict[str, str]] = {}  # direction -> column -> metric
        for metric in of:
            way, rest = _split(metric)
            ways.setdefault(way, {})[label(rest)] = metric
        cited = []
        for way, by_column in ways.items():
            cells = "".join(_cell(metrics, f"{name}/{by_column.get(column, '')}") for column in columns)
            first = _WORDS.get(way, "both directions" if len(ways) > 1 else model)
            rows.append(f"<tr class=ours><td>{escape(first)}</td>{cells}</tr>")
            for row in known.rows if known else ():
                known_of = {column: row.figures[one] for column, one in by_column.items() if one in row.figures}
                if not known_of:
                    continue
                said = f"{row.model}: {published().sources[row.source]}; {row.protocol}"
                if (place := (said, row.source)) not in numbers:
                    numbers[place] = len(numbers) + 1
                    cited.append(f"<p class=source id=source-{numbers[place]}>{numbers[place]} {escape(said)}.</p>")
                title = f'title="{escape(said)}"'
                cells = "".join(
                    f"<td {title}>{percent(known_of[one] / 100)}</td>" if one in known_of else "<td>–</td>"
                    for one in columns
                )
                link = f"<sup><a href=#source-{numbers[place]} {title}>{numbers[place]}</a></sup>"
                rows.append(f"<tr><td>{escape(row.model)}{link}</td>{cells}</tr>")
        num_images = sets.get(name, {}).get("num_images")
        if known and cited and num_images not in (None, known.num_images):
            below.append(
                paragraph(
                    f"The set {name} has {num_images:,} pictures, the published one {known.num_images:,}: these rows "
                    "are of other items, and not comparable."
                )
            )
        below += cited
    heads = "".join(f"<th>{escape(column)}</th>" for column in columns)
    yield scroll(f"<table class=paper><tr><th>set</th>{heads}</tr>{''.join(rows)}</table>", "table: all sets")
    yield from below


def _split(metric: str) -> tuple[str, str]:
    """A metric's direction, which may be empty, and the rest of it."""
    way = next((part for part in metric.split("/") if part in _WORDS), "")
    return way, "/".join(part for part in metric.split("/") if part != way)


def _rest(metrics: Mapping[str, float | int], by_set: Mapping[str, list[str]]) -> str:
    rows = []
    for name, of in by_set.items():
        for metric in of:
            key = f"{name}/{metric}" if name else metric
            low, high, by_chance = (metrics.get(f"{key}/{part}") for part in ("low", "high", "chance"))
            interval = "" if low is None or high is None else f"{low:.4g} – {high:.4g}"
            rows.append(
                [name, metric, f"{metrics[key]:.4g}", interval, "" if by_chance is None else f"{by_chance:.4g}"]
            )
    return table(["set", "metric", "value", "95 % interval", "chance"], rows) + note("Values as they are, no per cent.")


def _cell(metrics: Mapping[str, float | int], key: str) -> str:
    if key not in metrics:
        return "<td></td>"
    low, high = metrics.get(f"{key}/low"), metrics.get(f"{key}/high")
    below = [] if low is None or high is None else [f"{percent(low)} – {percent(high)}"]
    for word, ending in (("by chance", "chance"), ("always the most frequent class", "majority")):
        value = metrics.get(f"{key}/{ending}")
        below += [] if value is None else [f"{word} {percent(value)}"]
    return f"<td>{percent(metrics[key])}{''.join(f'<small>{line}</small>' for line in below)}</td>"


def label(metric: str) -> str:
    """A metric as the head of a column; its first part is said by the heading."""
    parts = metric.split("/")
    if parts[0] in ("cxc", "multi30k") and parts[1:]:
        parts = parts[1:]
    together = _NAMES | {name: words.replace(" ", "\N{NO-BREAK SPACE}") for name, words in _WORDS.items()}
    return " ".join(together.get(part, part.replace("_", " ")) for part in parts)


def _order(metric: str) -> tuple[Any, ...]:
    """By direction, in the paper's order, recall@K first, then by name, numbers by their size."""
    first = next(
        (place for place, word in enumerate((*_WORDS, "zero_shot")) if word in metric.split("/")), len(_WORDS) + 1
    )
    return (first, "recall@" not in metric, [int(part) if part.isdigit() else part for part in _CUT.split(metric)])


def _plain(name: str) -> str:
    return re.sub(r"[-_.\s]", "", name.lower())
