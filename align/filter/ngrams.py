"""Rule T2 in SQL: the joint list of frequent unigrams and bigrams, and the pairs with an n-gram that is not on it.

N-grams are 64-bit hashes (`align.filter.words`), pairs are row numbers (`align.filter.tables`).
"""

from __future__ import annotations

from collections.abc import Iterable


def ngram_counts(num_parts: int) -> dict[str, str]:
    """How often each n-gram occurs in the raw pairs, from `unigrams` and `bigrams`.

    Args:
        num_parts: ranges in which bigrams are counted; enough that the hash table of each fits in memory.

    Returns:
        Tables to make (name -> query), with columns ngram_hash and num.
    """
    unigrams = "SELECT ngram_hash, CAST(sum(num) AS BIGINT) AS num FROM unigrams GROUP BY ngram_hash"
    return {"unigram_counts": unigrams} | {
        f"bigram_counts_{number}": f"SELECT ngram_hash, count(*) AS num FROM bigrams{part} GROUP BY ngram_hash"
        for number, part in enumerate(_parts(num_parts))
    }


def counts_of_counts(counts: Iterable[str]) -> str:
    """count -> number of n-grams that occur that often, from the tables of `ngram_counts`."""
    tables = " UNION ALL ".join(f"SELECT num FROM {name}" for name in counts)
    return f"SELECT num, count(*) FROM ({tables}) AS counts GROUP BY num"


def frequent(counts: Iterable[str], cut: int) -> dict[str, str]:
    """Tables to make (name -> query) with the n-grams on the list, from the tables of `ngram_counts`."""
    listed = [f"SELECT ngram_hash FROM {name} WHERE num >= {cut}" for name in counts]
    return {"frequent_unigrams": listed[0], "frequent_bigrams": " UNION ALL ".join(listed[1:])}


def vocabulary_cut(counts: dict[int, int], num_frequent: int) -> tuple[int, int]:
    """Where the joint list of frequent unigrams and bigrams is cut.

    Args:
        counts: how many n-grams occur how often (count -> number of n-grams).
        num_frequent: N, the most n-grams on the list.

    Returns:
        The smallest count c for which at most N n-grams occur at least c times, and how many n-grams that is. If not
        even the most frequent ones fit, c is above every count and the list is empty.
    """
    cut, listed = max(counts, default=0) + 1, 0
    for count in sorted(counts, reverse=True):
        if listed + counts[count] > num_frequent:
            return cut, listed
        cut, listed = count, listed + counts[count]
    return 1, listed


def block_of(row_number: str) -> str:
    """SQL: the block of `rare_blocks` that a pair belongs to."""
    return f"({row_number} >> 5)"


def is_rare(row_number: str) -> str:
    """SQL: whether `rare_blocks`, joined by `block_of`, marks a pair."""
    return f"(((coalesce(rare_blocks.bits, 0) >> CAST({row_number} & 31 AS INT)) & 1) = 1)"


def rare_pairs(num_parts: int) -> dict[str, str]:
    """Pairs with an n-gram that is not on the list, from `frequent_unigrams` and `frequent_bigrams`.

    A bigram occurs no more often than either of its words. If all bigrams of a text are frequent, so are all its words.
    So words are checked only in texts without a bigram.

    Args:
        num_parts: ranges in which bigrams are looked up; enough that the hash table of each join fits in memory.
            Reading the bigrams again costs less than a join that spills, which writes every bigram of every pair.

    Returns:
        Tables to make (name -> query), for `rare_blocks` to join.
    """
    parts = [_unlisted("bigrams", "bigrams", part) for part in _parts(num_parts)]
    only_words = "(SELECT row_number, only_word_hash AS ngram_hash FROM pairs WHERE only_word_hash IS NOT NULL)"
    parts.append(_unlisted(f"{only_words} AS only_words", "unigrams"))
    block = block_of("row_number")
    return {
        f"rare_{number}": f"""
            SELECT {block} AS block, bit_or(CAST(1 AS BIGINT) << CAST(row_number & 31 AS INT)) AS bits
            FROM ({part}) AS rare GROUP BY {block}
        """
        for number, part in enumerate(parts)
    }


def _unlisted(ngrams: str, kind: str, part: str = "") -> str:
    """SQL: the rows of `ngrams` (row_number, ngram_hash) that are not on the list of their kind."""
    return f"""
        SELECT used.row_number, used.ngram_hash FROM (SELECT row_number, ngram_hash FROM {ngrams}{part}) AS used
        LEFT JOIN (SELECT ngram_hash FROM frequent_{kind}{part}) AS listed ON listed.ngram_hash = used.ngram_hash
        WHERE listed.ngram_hash IS NULL
    """


def _parts(num_parts: int) -> list[str]:
    """SQL: conditions that divide all n-grams evenly. Both ends are open, as BIGINT cannot hold the upper bound."""
    cuts = [-(1 << 63) + (number << 64) // num_parts for number in range(1, num_parts)]
    low, high = ["", *(f"ngram_hash >= {cut}" for cut in cuts)], [*(f"ngram_hash < {cut}" for cut in cuts), ""]
    bounds = [" AND ".join(filter(None, both)) for both in zip(low, high, strict=True)]
    return [f" WHERE {one}" if one else "" for one in bounds]


def rare_blocks(names: Iterable[str]) -> str:
    """The rare pairs of all parts, 32 per row: (block, bits), where bit b of a block marks row number 32 * block + b.

    If most pairs are rare, a table of row numbers would have more rows than the list, and joining it would spill the
    pairs.
    """
    parts = [f"SELECT block, bits FROM {name}" for name in names]
    none = "SELECT row_number AS block, row_number AS bits FROM pairs WHERE 1 = 0"
    return f"SELECT block, bit_or(bits) AS bits FROM ({' UNION ALL '.join(parts) or none}) AS parts GROUP BY block"


def rare_ngrams(ngrams: str, kind: str, ranges: list[tuple[int, int]]) -> str:
    """The n-grams that make pairs rare, from a table `ngrams` (row_number, ngram_hash), for ranges of row numbers."""
    where = " OR ".join(f"row_number BETWEEN {low} AND {high}" for low, high in ranges)
    shown = f"(SELECT row_number, ngram_hash FROM {ngrams} WHERE {where}) AS shown"
    rare = _unlisted(shown, kind)
    return f"""
        SELECT row_number, min(ngram_hash) AS ngram_hash FROM ({rare}) AS rare GROUP BY row_number ORDER BY row_number
    """
