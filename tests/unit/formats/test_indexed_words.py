"""Words of an index's texts: what is found is what RE2 finds in the texts themselves, whatever they hold."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.errors import CorruptError
from align.formats.indexed_words import _SCHEMA, WORDS, IndexedWords, _same_case, whole_words, write_words

#: Letters with unusual cases, marks, digits, signs, and white space that RE2's pattern for it does not know.
CHARACTERS = (
    "aAbkK\u212asS\u017f\u00df\u1e9e\u0130\u0131\u00e9\u00c9\u0301\u0345\u03b9\u0390\u1fd3\ufb05\ufb06_9\u0664.-'+("
    "\u2160\u24b6 \t\n\x0b\x1c\xa0\u3000\u8d64"
)
TEXTS = st.lists(
    st.lists(st.text(CHARACTERS, max_size=12) | st.sampled_from(["a red  Heart", "C++ (c)"]), max_size=3), max_size=5
)
ASKED = st.lists(st.text(CHARACTERS, max_size=4).filter(lambda text: text.split() != []), min_size=1, max_size=4)


def opened(folder, texts):
    table = pa.table({"texts": pa.array(texts, pa.list_(pa.string()))})
    pq.write_table(table, folder / "items.parquet")
    write_words(folder, folder / "items.parquet")
    return IndexedWords.load(folder, len(texts)), table["texts"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(texts=TEXTS, asked=ASKED)
def test_words_are_found_as_a_regular_expression_finds_them(tmp_path_factory, texts, asked):
    words, column = opened(tmp_path_factory.getbasetemp(), texts)
    for one in (*asked, *(text for some in texts for text in some if text.split())):
        pattern = whole_words(one.split())
        found = [any(pc.match_substring_regex(pa.array(some, pa.string()), pattern).to_pylist()) for some in texts]
        assert words.matching(one, column).tolist() == found, one


def test_letters_are_of_the_same_case_for_re2_too():
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    with_case = pa.array([one for one in every if len({one, one.upper(), one.lower(), one.casefold()}) > 1])
    ours = np.array([_same_case(one) for one in with_case.to_pylist()])
    for place in np.unique(ours, return_index=True)[1]:  # to be of the same case is an equivalence: one letter of each
        code = ord(with_case[int(place)].as_py())
        same = pc.match_substring_regex(with_case, rf"(?i)^\x{{{code:x}}}$")
        assert np.array_equal(np.asarray(same), ours == ours[place]), hex(code)


def test_a_filter_costs_no_pass_over_the_texts(tmp_path):
    texts = [[f"a picture of number {number}, which somebody (else) has described"] for number in range(3000)]
    words, column = opened(tmp_path, texts)
    absent = pa.chunked_array([pa.nulls(len(texts), column.type)])  # reading them would find nothing
    assert words.matching("A", absent).all() and words.matching("(ELSE)", absent).all()
    assert np.flatnonzero(words.matching("17", absent)).tolist() == [17]
    assert np.flatnonzero(words.matching("17,", absent)).tolist() == [17]
    assert not words.matching("els", absent).any() and not words.matching("7,", absent)[17]


@pytest.mark.parametrize(
    ("words", "images"),
    [(["b", "a"], [[0], [1]]), (["a", "a"], [[0], [1]]), (["a", "b"], [[0], [2]]), (["a"], [None]), (["a"], [[None]])],
)
def test_a_file_that_does_not_belong_to_the_rest(tmp_path, words, images):
    pq.write_table(pa.table([words, images], schema=_SCHEMA), tmp_path / WORDS)
    with pytest.raises(CorruptError, match=r"words.parquet: damaged .*run `align index` again"):
        IndexedWords.load(tmp_path, 2)


def test_every_flipped_byte_of_the_words_is_found_or_changes_nothing(tmp_path):
    words, column = opened(tmp_path, [[f"red {number}"] for number in range(40)])
    asked = ["red", *map(str, range(40))]
    whole = [words.matching(word, column).tolist() for word in asked]
    file = tmp_path / WORDS
    good = file.read_bytes()
    for place in range(0, len(good), 23):
        file.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            damaged = IndexedWords.load(tmp_path, 40)
        except CorruptError:
            continue
        assert [damaged.matching(word, column).tolist() for word in asked] == whole, place
