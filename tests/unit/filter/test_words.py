"""Words and n-grams of many texts at once: equal to the functions that look at one text."""

import itertools
import random
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import regex

from align.filter.words import _PLAIN, hashes, ngram_hashes, normal_forms, text_facts
from align.pairs.text import is_filename, normalise, num_words, personal_data, words
from tests.support.bombs import with_little_memory


def check(texts):
    facts = text_facts(texts)
    occurrences = Counter()
    for number, times in zip(facts.vocabulary.tolist(), facts.occurrences.tolist(), strict=True):
        occurrences[number] += times
    assert occurrences == Counter(facts.words.tolist())
    offsets, bigrams = facts.bigrams()
    for row, text in enumerate(texts):
        unigrams, pairs = ngram_hashes(words(text))
        assert facts.words[facts.offsets[row] : facts.offsets[row + 1]].tolist() == unigrams, text
        assert bigrams[offsets[row] : offsets[row + 1]].tolist() == pairs, text
        assert facts.num_words[row] == num_words(text), text
        assert facts.is_filename[row] == is_filename(text), text
        assert (facts.num_emails[row], facts.num_phones[row]) == personal_data(text), text


@pytest.mark.parametrize(
    ("characters", "length"),
    [
        *(("aB1_'.,:; -", length) for length in range(5)),
        ("a1_'.,: -", 5),
        pytest.param("aB1_'.,:; -", 5, marks=pytest.mark.numerics),
    ],
)
def test_every_ascii_text_of_one_character_of_each_class(characters, length):
    # UAX #29 looks at two characters on either side: what holds for all texts of five holds for all
    texts = map("".join, itertools.product(characters, repeat=length))
    check([text for text in texts if normalise(text) == text])


@pytest.mark.usefixtures("any_blocks")
def test_random_texts_of_all_sorts():
    draw = random.Random(0)
    characters = [chr(code) for code in range(32, 127)] * 3 + list("éß猫カーส가\u0301😀ſıİ’\u200dא٣ﬀ\uff9e")
    check([normalise("".join(draw.choices(characters, k=draw.randrange(80)))) for _ in range(5_000)])


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [""],
        ["___", "", "a"],
        ["é"],
        ["a \uff9eb c", "é \u0301\uff9fa", "a b", "ein ゙a \u200db"],  # what joins the space before it
        ["x" * 1000 + " " + "é" * 500],
        ["IMG 1", "img_0001.jpg", "Screenshot 2020-01-01 at 10.10.10", "a/b/c", "C:\\x", "ſvg.ſvg", "a.tiﬀ"],
        ["write to jane.doe@example.org", "+49 30 1234567", "call (555) 123-4567 now", "030/1234567", "1920x1080"],
    ],
)
def test_edges(texts):
    check(texts)


def test_normal_forms_are_those_of_each_text():
    draw = random.Random(1)
    characters = [chr(code) for code in range(128)] + [" "] * 40 + list("é\u0301\u00a0\u3000\u200d猫\x85\u2028")
    texts = ["".join(draw.choices(characters, k=draw.randrange(9))) for _ in range(20_000)]
    texts += [None, "", " ", "a  b", " a", "a ", "a b", "a\n"]
    forms = normal_forms(pa.array(texts, pa.string()).slice(5)).to_pylist()
    assert forms == [normalise(text or "") for text in texts[5:]]


def test_hashes_differ_spread_over_all_bits_and_stay_as_they_are():
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = ["".join(some) for length in range(1, 4) for some in itertools.product(letters, repeat=length)]
    texts += [f"a text of several words, number {number}" for number in range(100_000)]
    hashed = hashes(texts)
    assert len(np.unique(hashed)) == len(texts)
    shares = np.unpackbits(hashed.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert 0.49 < shares.min() < shares.max() < 0.51
    assert hashes(["a", "猫", "a text of several words", ""]).tolist() == STORED
    assert hashes(["ab"])[0] != ngram_hashes(["a", "b"])[1][0] != ngram_hashes(["b", "a"])[1][0]


#: The same on every machine and in every version: ranges of one filter run may be measured anywhere.
STORED = [5718913436695043505, -2899170001312474450, -1742823593145044690, 0]


def test_characters_that_need_no_normal_form():
    plain = regex.findall(f"[{_PLAIN}]", "".join(map(chr, range(0xD800))) + "".join(map(chr, range(0xE000, 0x10000))))
    assert len(plain) > 30_000
    parts = (unicodedata.decomposition(chr(code)).split() for code in range(0x110000))
    joining = {chr(int(two[1], 16)) for two in parts if len(two) == 2 and two[0][0] != "<"}
    for character in plain:
        assert unicodedata.normalize("NFC", character) == character == normalise(character)
        assert unicodedata.combining(character) == 0 and character not in joining
        assert not "\u1100" <= character <= "\u11ff"  # Hangul's letters join by a rule of their own


def test_long_words_of_many_characters_take_little_memory():
    """1,500 different texts without spaces, of 1,000 ideographs each, which are words of their own."""
    code = """
import random
from align.filter.words import text_facts
random.seed(0)
characters = [chr(code) for code in range(0x4e00, 0x9f00)]
facts = text_facts(["".join(random.choices(characters, k=1000)) for _ in range(1500)])
print(len(facts.words))
"""
    assert with_little_memory(code, mib=290) == "1500000"
