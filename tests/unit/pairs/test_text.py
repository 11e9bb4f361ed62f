"""Normal form, words and file names."""

import time

import pytest

from align.pairs.text import is_filename, languages, normalise, personal_data, words


def test_normalise_composes_and_collapses_white_space_and_controls() -> None:
    assert normalise("  cafe\u0301 \t\n\u00a0au\x00lait ") == "café au lait"
    assert normalise("\ud800x") == "x"  # an unpaired surrogate fits in no table
    assert normalise(" \n ") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't panic, a 1920x1080 alt_img", ["don't", "panic", "a", "1920x1080", "alt_img"]),
        ("猫が好き", ["猫", "が", "好", "き"]),  # \w+ would find one word
        ("東京タワー", ["東", "京", "タワー"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("NAÏVE Café", ["naïve", "café"]),
        ("--- !!! ___ 😀", []),
        ("3.14 e-mail", ["3.14", "e", "mail"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "IMG_0123.JPG",
        "images/foo/bar baz.png",
        "../_images/modeling_meshes.png",
        "/usr/share/icons",
        "C:\\pictures\\cat",
        "DSC01234",
        "Screenshot 2020-01-01 at 10.10.10",
        "https://example.org/a_b?c=d",
        "My holiday (1).jpeg",
    ],
)
def test_is_a_file_name(text: str) -> None:
    assert is_filename(text)


@pytest.mark.parametrize(
    "text", ["black/white", "a cat.", "and/or cat", "photo 5 dogs", "Image: a dog", "logo.svg vector", "a png file", ""]
)
def test_is_no_file_name(text: str) -> None:
    assert not is_filename(text)


def test_a_huge_text_takes_no_time() -> None:
    start = time.process_time()
    assert len(words("word " * 10_000)) == 10_000
    for hostile in ("a/" * 20_000 + " b", "IMG 1 " * 20_000 + "x", "a." * 20_000):
        is_filename(hostile)
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a black dog runs over the green grass", "en"),
        ("ein Hund läuft über die grüne Wiese", "de"),
        ("un chien court dans le pré vert", "fr"),
        ("cat", None),  # too short to tell
        ("", None),
    ],
)
def test_languages(text: str, code: str | None) -> None:
    assert languages([text]) == [code]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("write to jane.doe@example.org or JOHN@mail.example.co.uk", (2, 0)),
        ("not@home, @name, a@b", (0, 0)),
        ("call +49 30 1234567", (0, 1)),
        ("(555) 123-4567 and 555-123-4567", (0, 2)),
        ("030/1234567", (0, 1)),
        ("on 2020-01-01 at 10.10.10, 1920x1080, ISBN 978-3-16-148410-0, IMG_20200101_101010, 3.14159265", (0, 0)),
    ],
)
def test_personal_data(text: str, counts: tuple[int, int]) -> None:
    assert personal_data(text) == counts


def test_hostile_texts_take_no_time() -> None:
    start = time.process_time()
    for hostile in ("a." * 20_000 + "@", "@" * 40_000, "+1 " * 20_000, "0" * 40_000, "a@" + "b." * 20_000):
        personal_data(hostile)
    assert time.process_time() - start < 20
