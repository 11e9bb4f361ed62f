"""Rule T2 in SQL: the joint list of frequent unigrams and bigrams, and the pairs with an n-gram that is not on it.

N-grams are numbers of 64 bits (`align.filter.words`), places those of `align.filter.tables`.
"""

from __future__ import annotations

from collections.abc import Iterable


def ngram_counts(num_parts: int) -> dict[str, str]:
    """How often each n-gram occurs in the raw pairs, from `unigrams` and `bigrams`.

    Args:
        num_parts: in how many ranges bigrams are counted. As many as make each hash table fit in memory.

    Returns:
        Tables to make (name -> query), of columns ngram and num.
    """
    found = {"unigram_counts": "SELECT ngram, CAST(sum(num) AS BIGINT) AS num FROM unigrams GROUP BY ngram"}
    return found | {
        f"bigram_counts_{number}": f"SELECT ngram, count(*) AS num FROM bigrams{part} GROUP BY ngram"
        for number, part in enumerate(_parts(num_parts))
    }


def counts_of_counts(counts: Iterable[str]) -> str:
    """count -> number of n-grams that occur so often, from the tables of `ngram_counts`."""
    tables = " UNION ALL ".join(f"SELECT num FROM {name}" for name in counts)
    return f"SELECT num, count(*) FROM ({tables}) AS counts GROUP BY num"


def frequent(counts: Iterable[str], cut: int) -> dict[str, str]:
    """Tables to make (name -> query) of the n-grams on the list, from the tables of `ngram_counts`."""
    listed = [f"SELECT ngram FROM {name} WHERE num >= {cut}" for name in counts]
    return {"frequent_unigrams": listed[0], "frequent_bigrams": " UNION ALL ".join(listed[1:])}


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


def rare_pairs(num_parts: int) -> dict[str, str]:
    """Pairs with an n-gram that is not on the list, from `frequent_unigrams` and `frequent_bigrams`.

    A bigram occurs no more often than either of its words: where all bigrams are frequent, so are all words. Words are
    looked at only in texts that have no bigram.

    Args:
        num_parts: in how many ranges bigrams are looked up. As many as make the hash table of each join fit in memory:
            reading them again costs less than what a join spills, which is every bigram of every pair.

    Returns:
        Tables to make (name -> query), for `rare_blocks` to join.
    """
    parts = [_unlisted("bigrams", "bigrams", part) for part in _parts(num_parts)]
    only_words = "(SELECT place, only_word AS ngram FROM pairs WHERE only_word IS NOT NULL) AS only_words"
    parts.append(_unlisted(only_words, "unigrams"))
    return {
        f"rare_{number}": f"""
            SELECT {block_of("place")} AS block, bit_or(CAST(1 AS BIGINT) << CAST(place & 31 AS INT)) AS bits
            FROM ({part}) AS rare GROUP BY {block_of("place")}
        """
        for number, part in enumerate(parts)
    }


def _unlisted(ngrams: str, kind: str, part: str = "") -> str:
    """SQL: what of `ngrams` (place, ngram) is not on the list of its kind."""
    return f"""
        SELECT used.place, used.ngram FROM (SELECT place, ngram FROM {ngrams}{part}) AS used
        LEFT JOIN (SELECT ngram FROM frequent_{kind}{part}) AS listed ON listed.ngram = used.ngram
        WHERE listed.ngram IS NULL
    """


def _parts(num_parts: int) -> list[str]:
    """SQL: conditions that share out all n-grams evenly; no bound at both ends, which BIGINT has no number for."""
    cuts = [-(1 << 63) + (number << 64) // num_parts for number in range(1, num_parts)]
    low, high = ["", *(f"ngram >= {cut}" for cut in cuts)], [*(f"ngram < {cut}" for cut in cuts), ""]
    return [" WHERE " * bool(a or b) + " AND ".join(filter(None, (a, b))) for a, b in zip(low, high, strict=True)]


def rare_blocks(names: Iterable[str]) -> str:
    """The rare pairs of all parts: 32 places a row, (block, bits), bit b of a block standing for place 32 * block + b.

    A table of places would have more rows than the list, where most pairs are rare; joining it would spill the pairs.
    """
    parts = [f"SELECT block, bits FROM {name}" for name in names]
    none = "SELECT place AS block, place AS bits FROM pairs WHERE 1 = 0"
    return f"SELECT block, bit_or(bits) AS bits FROM ({' UNION ALL '.join(parts) or none}) AS parts GROUP BY block"


def rare_ngrams(ngrams: str, kind: str, places: list[tuple[int, int]]) -> str:
    """Which n-grams of a table `ngrams` (place, ngram) make pairs rare, for pairs in some ranges of places."""
    where = " OR ".join(f"place BETWEEN {low} AND {high}" for low, high in places)
    shown = f"(SELECT place, ngram FROM {ngrams} WHERE {where}) AS shown"
    return f"SELECT place, min(ngram) AS ngram FROM ({_unlisted(shown, kind)}) AS rare GROUP BY place ORDER BY place"
