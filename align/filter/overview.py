"""The report's overview of the data: distributions, where pairs come from, and personal data in texts.

SQL over the filter's results `decisions`, `facts` and `images` (`align.formats.filtered`). Every result is small,
however long the tables are. Hosts and languages are counted in a few shards only, as work on strings is slow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from align.interfaces.sql import Rows
from align.pairs.languages import languages
from align.pairs.text import mask_personal_data

#: Lower ends of the buckets of shorter sides; the first begins at 0, the last is open.
SHORT_SIDES_PX = (50, 100, 150, 200, 225, 250, 275, 300, 350, 400, 500, 600, 800, 1000, 1500, 2000, 4000)
_NUM_SHOWN = 12
_NUM_PERSONAL = 8
_UNKNOWN = "unknown"
#: Image URL, source of the text, text, whether the pair is kept.
ShownPair = tuple[str, str | None, str, bool]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Counted(_Frozen):
    """A language, host or source of texts, with its pairs."""

    name: str
    num_pairs: int
    num_kept: int


class PersonalData(_Frozen):
    """Pairs whose text has an e-mail address or a phone number; in `examples` these are masked."""

    num_with_email: int
    num_with_phone: int
    num_pairs: int
    num_kept: int
    examples: tuple[str, ...]


class Overview(_Frozen):
    """Distributions, where pairs come from, and personal data.

    Attributes:
        words_per_text: words -> pairs.
        short_sides: lower end of the bucket, px -> distinct images.
        languages: by pairs, descending, in a few shards; `unknown` where it cannot be told.
        hosts: of image URLs, or the first folder of a file's path, by pairs, descending, in the same shards.
        text_sources: of the texts, such as alt, in the same way.
        num_looked_at: pairs of these shards.
        personal_data: in texts.
    """

    words_per_text: dict[int, int]
    short_sides: dict[int, int]
    languages: tuple[Counted, ...]
    hosts: tuple[Counted, ...]
    text_sources: tuple[Counted, ...]
    num_looked_at: int
    personal_data: PersonalData


def overview_of(rows: Rows, shown: Iterable[ShownPair]) -> Overview:
    """Counts everything.

    Args:
        rows: runs SQL over the views.
        shown: the pairs of a few shards.
    """
    hosts, spoken, sources = _Counts(), _Counts(), _Counts()
    for url, text_source, text, keep in shown:
        hosts.add(_host(url), keep)
        sources.add(text_source or _UNKNOWN, keep)
        spoken.add(languages([text])[0] or _UNKNOWN, keep)
    return Overview(
        words_per_text=dict(sorted(rows("SELECT num_words, count(*) FROM facts GROUP BY num_words"))),
        short_sides=_short_sides(rows),
        languages=spoken.descending(),
        hosts=hosts.descending()[:_NUM_SHOWN],
        text_sources=sources.descending()[:_NUM_SHOWN],
        num_looked_at=hosts.pairs.total(),
        personal_data=_personal_data(rows),
    )


class _Counts:
    """Pairs, and kept ones, by name."""

    def __init__(self) -> None:
        self.pairs: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()

    def add(self, name: str, keep: bool) -> None:
        self.pairs[name] += 1
        self.kept[name] += keep

    def descending(self) -> tuple[Counted, ...]:
        names = sorted(self.pairs, key=lambda name: (-self.pairs[name], name))
        return tuple(Counted(name=name, num_pairs=self.pairs[name], num_kept=self.kept[name]) for name in names)


def _short_sides(rows: Rows) -> dict[int, int]:
    side = "least(width_px, height_px)"
    lows = (0, *SHORT_SIDES_PX)
    cases = " ".join(f"WHEN {side} < {high} THEN {low}" for low, high in zip(lows, SHORT_SIDES_PX, strict=False))
    bucket = f"CASE {cases} ELSE {lows[-1]} END"
    query = f"SELECT {bucket}, count(*) FROM images WHERE {side} IS NOT NULL GROUP BY {bucket}"
    counts: dict[int, int] = dict(rows(query))
    return {low: counts.get(low, 0) for low in lows}


def _host(url: str) -> str:
    try:
        host = urlsplit(url).hostname
    except ValueError:  # such as half an IPv6 address
        return "(not a URL)"
    folder, slash, _ = url.partition("/")
    if host or not url or ":" in folder:
        return host or f"({url.partition(':')[0][:20] or 'no URL'}:)"
    return folder[:100] if slash else "."  # the path of a file


def _personal_data(rows: Rows) -> PersonalData:
    personal = "num_emails + num_phones > 0"
    emails, phones, num_pairs = rows(
        "SELECT count(*) FILTER (WHERE num_emails > 0), count(*) FILTER (WHERE num_phones > 0), "
        f"count(*) FILTER (WHERE {personal}) FROM facts"
    )[0]
    if not num_pairs:
        return PersonalData(num_with_email=0, num_with_phone=0, num_pairs=0, num_kept=0, examples=())
    joined = f"(SELECT key FROM facts WHERE {personal}) AS personal JOIN decisions ON decisions.key = personal.key"
    num_kept = rows(f"SELECT count(*) FROM {joined} WHERE keep")[0][0]
    drawn = f"ORDER BY md5(decisions.key), decisions.key LIMIT {_NUM_PERSONAL}"
    texts = rows(f"SELECT text FROM {joined} {drawn}")
    return PersonalData(
        num_with_email=emails,
        num_with_phone=phones,
        num_pairs=num_pairs,
        num_kept=num_kept,
        examples=tuple(mask_personal_data(text) for (text,) in texts),
    )


def overview_metrics(overview: Overview) -> dict[str, float | int]:
    """The overview's metrics, for DVC, MLflow and Prefect."""
    personal = overview.personal_data
    metrics: dict[str, float | int] = {
        "filter/words_per_text/median": _quantile(overview.words_per_text, 0.5),
        "filter/words_per_text/p95": _quantile(overview.words_per_text, 0.95),
        "filter/short_side_px/median": _quantile(overview.short_sides, 0.5),
        "filter/short_side_px/p95": _quantile(overview.short_sides, 0.95),
        "filter/personal_data/num_with_email": personal.num_with_email,
        "filter/personal_data/num_with_phone": personal.num_with_phone,
        "filter/personal_data/num_kept": personal.num_kept,
    }
    total = sum(one.num_pairs for one in overview.languages)
    for one in overview.languages[:_NUM_SHOWN]:
        metrics[f"filter/language/{one.name}"] = round(one.num_pairs / total, 6)
    if overview.hosts:
        metrics["filter/top_host_share"] = round(overview.hosts[0].num_pairs / overview.num_looked_at, 6)
    return metrics


def _quantile(histogram: Mapping[int, int], share: float) -> int:
    """The smallest value (of a bucket: its lower end) that covers this share; 0 for an empty histogram."""
    wanted, counted = share * sum(histogram.values()), 0
    for value, num in sorted(histogram.items()):
        counted += num
        if counted >= wanted and counted:
            return value
    return 0
