import io

import pytest
from matplotlib.figure import Figure
from PIL import Image

from align.display import figure
from align.display.figure import legible, png

HOSTILE = [
    "was $50% now $40% today", r"$\frac$ and $x_$", "a \x1b[31m red\x00", "txt.\u202egpj\u2066", "half \ud83e of a fox",
    "a\nb\u2028c", "赤い狐 红狐狸 लाल लोमड़ी จิ้งจอก", "fox 🦊\U000e0067", "x" * 100_000,
    "a" + "\u0301" * 100_000, "", "\u202e" * 99,
]  # fmt: skip


def drawn(text: str) -> Figure:
    """A figure with the text wherever a figure can have one."""
    made = Figure(layout="constrained")
    made.suptitle(text)
    axes = made.subplots()
    axes.bar([0, 1], [1, 2], label=text or "none")
    axes.set_xticks([0, 1], [text, "b"])
    axes.set_xlabel(text)
    axes.set_title(text, loc="left")
    axes.text(0.5, 0.5, text)
    axes.legend()
    return made


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_can_be_drawn(text: str) -> None:
    with Image.open(io.BytesIO(png(drawn(legible(text, width=20, lines=2))))) as image:
        assert max(image.size) < 2_000


def test_money_is_no_mathematics_whoever_places_it() -> None:
    assert png(drawn("was $50% now $40% today")) != png(drawn("was 50% now 40% today"))


def test_what_turns_letters_around_is_shown() -> None:
    assert legible("txt.\u202egpj \x1b", width=40) == r"txt.\u202egpj \u001b"


def test_texts_are_wrapped_and_cut() -> None:
    assert legible("red fox", width=20) == "red fox"
    assert legible("a red fox in deep snow", width=8, lines=2) == "a red\nfox in …"
    assert legible("x" * 1000, width=8) == "xxxxxxx…"
    assert legible("赤" * 9, width=8, lines=2) == "赤赤赤赤\n赤赤赤…"  # they are twice as wide


def test_fonts_that_are_not_installed_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure, "_FAMILIES", ("DejaVu Sans", "No Such Font", "STIXGeneral"))
    figure._families.cache_clear()
    try:
        assert figure._families() == ["DejaVu Sans", "STIXGeneral"]
        letter = "\U0001d49c"  # script A: DejaVu Sans lacks it, STIX has it
        with_stix = png(drawn(letter))
    finally:
        monkeypatch.undo()
        figure._families.cache_clear()
    assert png(drawn(letter)) != with_stix
