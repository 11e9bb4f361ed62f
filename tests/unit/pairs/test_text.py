"""Normal form, words and file names."""

import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig
from align.filter import rules
from align.filter.pair_tables import pair_tables
from align.filter.tables import IMAGES
from align.formats.policy import OptedOut
from align.formats.raw import SCHEMA
from align.pairs.languages import languages
from align.pairs.text import MAX_CHARACTERS, is_filename, mask_personal_data, normalise, num_words, personal_data, words
from align.pairs.text_cuts import TextCuts, facts_of
from align.services.engine import open_engine
from tests.support import ROOT
from tests.support.params import load_params


def test_normalise_composes_and_collapses_white_space_and_controls():
    assert normalise("  cafe\u0301 \t\n\u00a0au\x00lait ") == "café au lait"
    assert normalise("\ud800x") == "x"  # an unpaired surrogate fits in no table
    assert normalise(" \n ") == ""


@pytest.mark.parametrize(("text", "expected"), [
    ("Don't panic, a 1920x1080 alt_img", ["don't", "panic", "a", "1920x1080", "alt_img"]),
    ("猫が好き", ["猫", "が", "好", "き"]),  # \w+ would find one word
    ("東京タワー", ["東", "京", "タワー"]),
    ("한국어 단어", ["한국어", "단어"]),
    ("NAÏVE Café", ["naïve", "café"]),
    ("--- !!! ___ 😀", []),
    ("3.14 e-mail", ["3.14", "e", "mail"]),
    ("", []),
])  # fmt: skip
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(("text", "number"), [
    ("一只猫", 2), ("一只猫在草地上", 4), ("猫、犬", 2),  # each run is rounded up
    ("猫がタワーの上にいる写真", 6), ("ｶﾒﾗ カメラ", 4), ("〇々", 1),
    ("แมวบนหญ้าสีเขียว", 7),  # vowels and tones above a letter are no characters of their own
    ("ສະບາຍດີ", 3), ("ឆ្មា", 1), ("東京Tower 2024年 in der Nacht", 7), ("カメラ_a", 3),
])  # fmt: skip
def test_two_characters_without_spaces_are_a_word(text, number):
    assert num_words(normalise(text)) == number == facts_of(text).num_words


@pytest.mark.parametrize("text", [
    "Don't panic, a 1920x1080 alt_img", "한국어 단어", "NAÏVE Café", "--- ___ 😀", "Ångström ὀδυσσεύς", "שלום עולם", "",
    "नमस्ते दुनिया", "مرحبا بالعالم", "Привет, мир", "1\u0660\u0661 \u0e51\u0e52", "བོད་ཡིག", "tiếng Việt có dấu",
])  # fmt: skip
def test_texts_with_spaces_have_the_words_that_they_had(text):
    assert num_words(text) == len(words(text))


@pytest.mark.parametrize("text", [
    "IMG_0123.JPG", "images/foo/bar baz.png", "../_images/modeling_meshes.png", "/usr/share/icons", "C:\\pictures\\cat",
    "DSC01234", "Screenshot 2020-01-01 at 10.10.10", "https://example.org/a_b?c=d", "My holiday (1).jpeg",
])  # fmt: skip
def test_is_a_file_name(text):
    assert is_filename(text)


@pytest.mark.parametrize(
    "text", ["black/white", "a cat.", "and/or cat", "photo 5 dogs", "Image: a dog", "logo.svg vector", "a png file", ""]
)
def test_is_no_file_name(text):
    assert not is_filename(text)


@pytest.mark.parametrize(("text", "code"), [
    ("a black dog runs over the green grass", "en"),
    ("a red brick house", "en"),
    ("Left arrow curving right, arrow, curving, left, right", "en"),
    ("safety pin (diaper, pin, punk, rock, safety)", "en"),
    ("person walking (human, person)", "en"),
    ("ein Hund läuft über die grüne Wiese", "de"),
    ("un chien court dans le pré vert", "fr"),
    ("女性会社員: ol, サラリーマン, ビジネスパーソン", "ja"),
    ("黒い犬", "ja"),
    ("一隻黑狗在草地上奔跑", "zh"),  # traditional characters
    ("一只黑狗在草地上奔跑", "zh"),
    ("כלב שחור רץ על הדשא", "he"),  # CLD2 says `iw`
    ("en svart hund løper over det grønne gresset", "no"),
    ("usa ka itom nga iro ang nagdagan sa ibabaw sa sagbot", None),  # Cebuano has no code of two letters
    ("una vaca caminando por la calle con gente", None),  # CLD2 knows none of its groups of letters
    ("qwrt xzzk", None),
    ("1920 x 1080", None),
    ("cat", None),  # too short to tell
    ("猫", None),
    ("", None),
])  # fmt: skip
def test_languages(text, code):
    assert languages([text]) == [code]


def test_every_character_has_a_language_or_none():
    codes = languages(["".join(map(chr, range(start, start + 64))) for start in range(0, 0x110000, 64)])
    assert all(code is None or re.fullmatch("[a-z]{2}", code) for code in codes)
    assert languages(["a black dog\0 runs\ud800 over\uffff the green grass"]) == ["en"]


def test_languages_do_not_depend_on_threads():
    texts = ["a black dog runs over the green grass", "ein Hund läuft über die Wiese", "黒い犬", "qwrt xzzk"] * 250
    with ThreadPoolExecutor(8) as threads:
        assert all(codes == languages(texts) for codes in threads.map(languages, [texts] * 32))


@pytest.mark.parametrize(("text", "counts"), [
    ("write to jane.doe@example.org or JOHN@mail.example.co.uk", (2, 0)),
    ("not@home, @name, a@b", (0, 0)),
    ("call +49 30 1234567", (0, 1)),
    ("(555) 123-4567 and 555-123-4567", (0, 2)),
    ("030/1234567", (0, 1)),
    ("on 2020-01-01 at 10.10.10, 1920x1080, ISBN 978-3-16-148410-0, IMG_20200101_101010, 3.14159265", (0, 0)),
])  # fmt: skip
def test_personal_data(text, counts):
    assert personal_data(text) == counts


def test_many_marks_take_no_time():
    start = time.process_time()
    text = normalise("a" + "\u0315\u0300\u0316\u0345" * 20_000 + " picture")  # NFC alone takes 11 s
    assert time.process_time() - start < 1
    assert len(text) == 30  # `a` with the first grave accent is one character
    assert normalise("a" + "\u0315" * 29 + "\u0300b") == "\u00e0" + "\u0315" * 29 + "b"


def test_a_text_is_cut():
    assert normalise("x" * 10_000) == "x" * MAX_CHARACTERS


HOSTILE = [
    "\U0001f1e9", "\U0001f468\u200d", "_", "_.", "a.", "1", "1-", "1 ", "(0", "+1", "+1 ", "@", "a@", "a@a.", "a/",
    "\\a", "a@" + "b." * 10, "img 1 at ", "img 1 ", "猫", "א'", "ア\uff9e", "\u0300 ", "\u0130", "\ufb2c", "กำ", "\0",
    "a\u00ad", "\u00ad", "1\u0308", "http://",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_text_takes_long(piece):
    for end in ("", "@", " b", "x"):  # what the text as a whole turns out not to be
        text = normalise((piece * MAX_CHARACTERS)[: MAX_CHARACTERS - len(end)] + end)
        start = time.process_time()
        words(text), is_filename(text), personal_data(text), languages([text]), mask_personal_data(text)
        assert time.process_time() - start < 0.5  # the slowest takes 0.02


CONFIG = load_params().section(FilterConfig)
CUTS = TextCuts(CONFIG.min_words, CONFIG.max_words, CONFIG.max_characters, CONFIG.drop_filenames)
ON_TEXTS = ("text_too_short", "text_too_long", "text_is_filename")


def texts():
    draw = random.Random(0)
    characters = [chr(code) for code in range(32, 127)] + list(
        "      éß猫が\u0301😀ſıİ’\u200dא٣ﬀ\uff9e\t\n\u00a0\u3000"
    )
    some = ["".join(draw.choices(characters, k=draw.randrange(120))) for _ in range(3000)]
    words = ["a picture", "img", "don't", "1920x1080", "猫", "a.b", "_", "...", "photo.jpg", "x/y/z"]
    some += [" ".join(draw.choices(words, k=draw.randrange(26))) for _ in range(3000)]
    some += [path.read_bytes().decode(errors="replace") for path in (ROOT / "tests/fuzz/corpus/text").iterdir()]
    for length in (999, 1000, 1001, MAX_CHARACTERS - 1, MAX_CHARACTERS):
        some += [f"three words {'x' * (length - 12)}", f"three short words{' ' * (length - 17)}", "a " * (length // 2)]
    return [None, "", *some, "\uff9e" * 1000, "e" + "\u0301" * 900, "IMG_0001.jpg", "Screenshot 2020-01-01 at 10.10.10"]


@pytest.mark.parametrize("cuts", [
    CUTS,
    replace(CUTS, min_words=1, drop_filenames=False),
    replace(CUTS, min_words=5, max_words=7, max_characters=40),
    replace(CUTS, max_words=5000, max_characters=8000),
], ids=str)  # fmt: skip
def test_one_text_and_whole_tables_agree(cuts, tmp_path):
    captions = texts()
    raw = [{"caption": text, "key": f"{row:09d}", "url": f"http://x/{row}"} for row, text in enumerate(captions)]
    table = pair_tables(
        0, pa.Table.from_pylist(raw, SCHEMA), IMAGES.empty_table(), OptedOut(),
        CONFIG.model_copy(update={"max_characters": cuts.max_characters}),
    )["pairs"]  # fmt: skip
    pq.write_table(table, tmp_path / "pairs.parquet")
    config = CONFIG.model_copy(update={name: getattr(cuts, name) for name in TextCuts.__dataclass_fields__})
    limits = {"memory_limit": "200MB", "num_threads": 1, "temp_directory": tmp_path}
    with open_engine(load_params().section(EngineConfig).model_copy(update=limits)) as engine:
        engine.view("pairs", tmp_path / "pairs.parquet")
        masks = engine.rows(f"SELECT {rules.mask(config, ON_TEXTS)} FROM pairs ORDER BY row_number")
        facts = [facts_of(text)._asdict() | {"number": number} for number, text in enumerate(captions)]
        pq.write_table(pa.Table.from_pylist(facts), tmp_path / "facts.parquet")
        engine.view("facts", tmp_path / "facts.parquet")
        passes = engine.rows(f"SELECT {cuts.condition} FROM facts ORDER BY number")
    decided = [mask == 0 for (mask,) in masks]
    assert [can_pass for (can_pass,) in passes] == decided
    assert 0 < sum(decided) < len(decided)
