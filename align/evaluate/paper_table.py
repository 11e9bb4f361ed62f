"""The paper's tables with our row beside published ones, as blocks of the report's page.

Every metric of a report is shown: those whose name is known under the heading of the paper's table, one table for each
set, the others in a table of the rest. Published figures are in `published.yaml`; they stand beside sets of that name.
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

from align.display.html import escape, heading, note, paragraph, scroll, subheading, table

RETRIEVAL = "Image-text retrieval"
#: Heading -> the metrics of a set that belong to it.
HEADINGS = {
    RETRIEVAL: r"((image_to_text|text_to_image)/)?(recall@\d+|mean_recall)",
    "Crisscrossed Captions": r"cxc/.+",
    "Multi30K": r"multi30k/.+",
    "Zero-shot classification": r"zero_shot/.+",
    "Classification with frozen features": r"(knn|frozen)/.+",
    "Fine-tuning for classification": r"fine_tuning/.+",
}
REST = "Other measures"

#: For pages with these tables.
STYLE = """.scroll > table.paper { table-layout: fixed; width: 100%; min-width: 640px }
table.paper th, table.paper td { white-space: nowrap; text-align: right; padding-left: .4rem }
table.paper th { white-space: normal; min-width: 4.6rem; vertical-align: bottom }
table.paper th:first-child, table.paper td:first-child { text-align: left; min-width: 8.5rem; position: sticky;
  left: 0; background: var(--paper); white-space: normal; max-width: min(15rem, 40vw); overflow-wrap: anywhere }
table.paper tr.ours td { background: var(--wash); font-weight: 600 }
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
_NAMES = {"sts": "STS", "sis": "SIS", "sits": "SITS"}
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
        if title == REST:
            yield title, [heading(title), _rest(metrics, by_set)]
            continue
        blocks = [heading(title)]
        for name, of in by_set.items():
            known = published().of(name)
            blocks += [subheading(name if known is None else f"{name}: {known.title}")]
            blocks += _set_table(metrics, name, of, (known, sets[name].get("num_images")), model, numbers)
        yield title, blocks


def _set_table(
    metrics: Mapping[str, float | int],
    name: str,
    of: list[str],
    known: tuple[PublishedSet | None, int | None],
    model: str,
    numbers: dict[tuple[str, str], int],
) -> Iterator[str]:
    """A table of one set, and the sources of its published rows, whose numbers on the page are in `numbers`."""
    ways: dict[str, dict[str, str]] = {}  # direction -> column -> metric
    for metric in of:
        way = next((part for part in metric.split("/") if part in _WORDS), "")
        ways.setdefault(way, {})[label(metric.replace(way, "").replace("//", "/").strip("/"))] = metric
    columns = list(dict.fromkeys(column for by_column in ways.values() for column in by_column))
    rows, cited = [], []
    published_set, num_images = known
    for way, by_column in ways.items():
        cells = "".join(_cell(metrics, f"{name}/{by_column.get(column, '')}") for column in columns)
        first = _WORDS.get(way, "both directions" if len(ways) > 1 else model)
        second = "95 % interval" if first == model else f"{model}, 95 % interval"
        rows.append(f"<tr class=ours><td>{escape(first)}<small>{escape(second)}</small></td>{cells}</tr>")
        for row in published_set.rows if published_set else ():
            known_of = {column: row.figures[one] for column, one in by_column.items() if one in row.figures}
            if not known_of:
                continue
            said = f"{row.model}: {published().sources[row.source]}; {row.protocol}"
            if (place := (said, row.source)) not in numbers:
                numbers[place] = len(numbers) + 1
                cited.append(f"<p class=source id=source-{numbers[place]}>{numbers[place]} {escape(said)}.</p>")
            title = f'title="{escape(said)}"'
            cells = "".join(
                f"<td {title}>{known_of[one]:.1f}</td>" if one in known_of else "<td>–</td>" for one in columns
            )
            link = f"<sup><a href=#source-{numbers[place]} {title}>{numbers[place]}</a></sup>"
            rows.append(f"<tr><td>{escape(row.model)}{link}</td>{cells}</tr>")
    heads = "".join(f"<th>{escape(column)}</th>" for column in columns)
    yield scroll(f"<table class=paper><tr><th>per cent</th>{heads}</tr>{''.join(rows)}</table>", f"table: {name}")
    size = published_set.num_images if published_set else None
    if cited and size is not None and num_images is not None and num_images != size:
        yield paragraph(
            f"This set has {num_images:,} pictures, the published one {size:,}: the published rows are of other items, "
            "and not comparable."
        )
    yield from cited


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
    below = [] if low is None or high is None else [f"{_percent(low)} – {_percent(high)}"]
    for word, ending in (("by chance", "chance"), ("always the most frequent class", "majority")):
        value = metrics.get(f"{key}/{ending}")
        below += [] if value is None else [f"{word} {_percent(value)}"]
    return f"<td>{_percent(metrics[key])}{''.join(f'<small>{line}</small>' for line in below)}</td>"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def label(metric: str) -> str:
    """A metric as the head of a column; its first part is said by the heading."""
    parts = metric.split("/")
    if parts[0] in ("cxc", "multi30k", "zero_shot") and parts[1:]:
        parts = parts[1:]
    together = _NAMES | {name: words.replace(" ", "\N{NO-BREAK SPACE}") for name, words in _WORDS.items()}
    return " ".join(together.get(part, part.replace("_", " ")) for part in parts)


def _order(metric: str) -> tuple[Any, ...]:
    """By direction, in the paper's order, recall@K first, then by name, numbers by their size."""
    first = next((place for place, word in enumerate(_WORDS) if word in metric.split("/")), len(_WORDS))
    return (first, "recall@" not in metric, [int(part) if part.isdigit() else part for part in _CUT.split(metric)])


def _plain(name: str) -> str:
    return re.sub(r"[-_.\s]", "", name.lower())
