"""Rule T2 in SQL: the joint list of frequent unigrams and bigrams, and the pairs with an n-gram that is not on it.

N-grams are numbers of 64 bits (`align.pairs.filter.words`), places those of `align.pairs.filter.tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

#: `Engine.unnest`: the one word that DuckDB and Spark do not share.
Unnest = Callable[[str], str]


def ngram_counts(unnest: Unnest, column: str) -> str:
    """How often each n-gram of a column (`unigrams`, `bigrams`) occurs in the raw pairs."""
    return f"SELECT ngram, count(*) AS num FROM (SELECT {unnest(column)} AS ngram FROM pairs) AS used GROUP BY ngram"


#: count -> number of n-grams that occur so often, from `unigrams_counts` and `bigrams_counts`.
COUNTS_OF_COUNTS = """
    SELECT num, count(*) FROM (SELECT num FROM unigrams_counts UNION ALL SELECT num FROM bigrams_counts) AS counts
    GROUP BY num
"""


def vocabulary_cut(counts: dict[int, int], num_frequent: int) -> tuple[int, int]:
    """Where the joint list of frequent unigrams and bigrams is cut.

    Args:
        counts: how many n-grams occur how often (count -> number of n-grams).
        num_frequent: N, how many may be on the list.

    Returns:
        (the smallest count c of which at most N n-grams occur at least c times, how many these are). Where not even the
        most frequent ones fit, c is above every count and the list is empty.
    """
    cut, listed = max(counts, default=0) + 1, 0
    for count in sorted(counts, reverse=True):
        if listed + counts[count] > num_frequent:
            return cut, listed
        cut, listed = count, listed + counts[count]
    return 1, listed


def block_of(place: str) -> str:
    """SQL: the row of `rare_blocks` that speaks of a place."""
    return f"({place} >> 5)"


def is_rare(place: str) -> str:
    """SQL: whether `rare_blocks`, joined by `block_of`, names a place."""
    return f"(((coalesce(rare_blocks.bits, 0) >> CAST({place} & 31 AS INT)) & 1) = 1)"


def rare_pairs(unnest: Unnest, num_parts: int) -> dict[str, str]:
    """Pairs with an n-gram that is not on the list, from `frequent_unigrams` and `frequent_bigrams`.

    A bigram occurs no more often than either of its words: where all bigrams are frequent, so are all words. Words are
    looked at only in texts that have no bigram.

    Args:
        unnest: the engine's.
        num_parts: in how many ranges bigrams are looked up. As many as make the hash table of each join fit in memory:
            reading the pairs again costs less than what a join spills, which is every bigram of every pair.

    Returns:
        Tables to make (name -> query), for `rare_blocks` to join.
    """
    used = """
        SELECT used.place FROM (
            SELECT place, ngram FROM (SELECT place, {ngram} AS ngram FROM pairs{texts}) AS every{part}
        ) AS used
        LEFT JOIN (SELECT ngram FROM frequent_{kind}{part}) AS listed ON listed.ngram = used.ngram
        WHERE listed.ngram IS NULL
    """
    cuts = [-(1 << 63) + (number << 64) // num_parts for number in range(1, num_parts)]
    ranges = zip([None, *cuts], [*cuts, None], strict=True)
    parts = [used.format(ngram=unnest("bigrams"), kind="bigrams", texts="", part=_between(*ends)) for ends in ranges]
    parts.append(used.format(ngram=unnest("unigrams"), kind="unigrams", texts=" WHERE num_words = 1", part=""))
    return {
        f"rare_{number}": f"""
            SELECT {block_of("place")} AS block, bit_or(CAST(1 AS BIGINT) << CAST(place & 31 AS INT)) AS bits
            FROM ({part}) AS rare GROUP BY {block_of("place")}
        """
        for number, part in enumerate(parts)
    }


def _between(low: int | None, high: int | None) -> str:
    """SQL: a range of n-grams, `high` not in it; None is no bound, which BIGINT has no number for."""
    conditions = [f"ngram >= {low}"] * (low is not None) + [f"ngram < {high}"] * (high is not None)
    return " WHERE " * bool(conditions) + " AND ".join(conditions)


def rare_blocks(names: Iterable[str]) -> str:
    """The rare pairs of all parts: 32 places a row, (block, bits), bit b of a block standing for place 32 * block + b.

    A table of places would have more rows than the list, where most pairs are rare; joining it would spill the pairs.
    """
    parts = [f"SELECT block, bits FROM {name}" for name in names]
    none = "SELECT place AS block, place AS bits FROM pairs WHERE 1 = 0"
    return f"SELECT block, bit_or(bits) AS bits FROM ({' UNION ALL '.join(parts) or none}) AS parts GROUP BY block"


def rare_ngrams(unnest: Unnest, kind: str, places: list[tuple[int, int]]) -> str:
    """Which n-grams of a kind (`unigrams`, `bigrams`) make pairs rare, for pairs in some ranges of places."""
    where = " OR ".join(f"place BETWEEN {low} AND {high}" for low, high in places)
    return f"""
        SELECT used.place, min(used.ngram) AS ngram
        FROM (SELECT place, {unnest(kind)} AS ngram FROM pairs WHERE {where}) AS used
        LEFT JOIN frequent_{kind} ON frequent_{kind}.ngram = used.ngram
        WHERE frequent_{kind}.ngram IS NULL GROUP BY used.place ORDER BY used.place
    """
