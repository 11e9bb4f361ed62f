"""The numbers of the filter's report, from its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from align.filter.queries import figures, overview
from align.filter.report import FilterReport, FunnelRow, Vocabulary
from align.filter.rules import RULES, codes_of
from align.filter.tables import MASKS
from align.protocols.sql import Rows


def summarise(
    rows: Rows,
    unnest: Callable[[str], str],
    sets: Mapping[str, str],
    vocabulary: Vocabulary,
    shown: Iterable[tuple[str, str, bool]],
) -> FilterReport:
    """Counts.

    Args:
        rows: runs SQL over `verdicts`, `decided` and `scored`, and what `align.filter.queries` names.
        unnest: see `align.services.engine.Engine`.
        sets: name -> sha256 of the evaluation sets.
        vocabulary: rule T2's list.
        shown: (image URL, normalised text, whether it is kept) of the pairs of some shards.
    """
    alone: Counter[str] = Counter()
    first: Counter[str] = Counter()
    for mask, num in rows(MASKS):
        codes = codes_of(mask)
        alone.update(dict.fromkeys(codes, num))
        first[codes[0] if codes else ""] += num
    num_pairs = first.total()
    num_kept, remaining, funnel = first[""], num_pairs, []
    for code in RULES:
        remaining -= first[code]
        funnel.append(FunnelRow(reason=code, num_alone=alone[code], num_first=first[code], num_remaining=remaining))
    names = f"SELECT {unnest('evaluation_sets')} AS name FROM images"
    found: dict[str, int] = dict(rows(f"SELECT name, count(*) FROM ({names}) AS named GROUP BY name"))
    matches = {name: found.get(name, 0) for name in sets}
    seen = overview(rows, shown)
    metrics: dict[str, float | int] = {
        "filter/num_pairs": num_pairs,
        "filter/num_kept": num_kept,
        "filter/keep_rate": round(num_kept / num_pairs, 6) if num_pairs else 0.0,
        **{f"filter/dropped/{row.reason}": row.num_first for row in funnel},
        **{f"filter/dropped_alone/{row.reason}": row.num_alone for row in funnel},
        **{f"filter/evaluation_matches/{name}": num for name, num in matches.items()},
        **figures(seen),
    }
    return FilterReport(
        metrics=metrics,
        num_pairs=num_pairs,
        num_kept=num_kept,
        num_images=rows("SELECT count(*) FROM images")[0][0],
        num_nsfw_scored=rows("SELECT count(*) FROM scored")[0][0],
        num_evaluation_sets=len(sets),
        evaluation_sets=dict(sets),
        evaluation_matches=matches,
        vocabulary=vocabulary,
        funnel=funnel,
        overview=seen,
    )
