"""Compositional sets, measured with a model that knows colours."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align.errors import DataError
from align.evaluate.answered import Answered
from align.evaluate.choices import measure_choices
from align.evaluate.embed import cut
from align.formats.evaluation_set import EvaluationSet, held
from align.formats.measured_sets import set_digests
from tests.support.choices import aro, sugarcrepe, winoground
from tests.support.colours import ColourEncoder, square
from tests.support.suites import read


def measured(one: EvaluationSet) -> Answered:
    return measure_choices(one, ColourEncoder(), num_resamples=200, seed=0)


def values(found: Answered) -> dict[str, float]:
    return {name: score.value for name, score in found.scores.items()}


def test_sugarcrepe(tmp_path: Path) -> None:
    one = read(tmp_path, sugarcrepe(tmp_path / "set"), "sugarcrepe", "compositional")
    found = measured(one)
    assert set(found.scores) == {
        *(f"{kind}/accuracy" for kind in found.groups), "accuracy", "mean_per_group"
    } and len(found.groups) == 7  # fmt: skip
    assert set(values(found).values()) == {1.0} and found.num_texts == 2
    assert found.groups["add_att"] == {"num_rows": 2, "accuracy": 1.0}
    assert all(score.chance == 0.5 for score in found.scores.values())
    # The unit is the picture: two of them, whatever the number of rows.
    assert found.scores["accuracy"].low == pytest.approx(0.025 ** (1 / 2))


def test_equal_captions_are_a_tie_and_wrong(tmp_path: Path) -> None:
    one = read(tmp_path, sugarcrepe(tmp_path / "set"), "sugarcrepe", "compositional")
    assert one.choices is not None
    rows = tuple(replace(row, texts=(row.texts[0], row.texts[0].upper())) for row in one.choices.rows)
    found = measured(replace(one, choices=replace(one.choices, rows=rows)))
    assert values(found)["accuracy"] == 0


def test_winoground(tmp_path: Path) -> None:
    one = read(tmp_path, winoground(tmp_path / "set"), "winoground", "compositional")
    assert values(measured(one)) == {"text_score": 1.0, "image_score": 1.0, "group_score": 1.0}
    assert one.choices is not None
    first, second = one.choices.rows
    swapped = replace(first, texts=first.texts[::-1])
    found = measured(replace(one, choices=replace(one.choices, rows=(swapped, second))))
    assert values(found) == {"text_score": 0.5, "image_score": 0.5, "group_score": 0.5}


def test_text_and_image_score_are_not_each_other(tmp_path: Path) -> None:
    """Both captions name red: no caption is nearer to a picture, and the red picture is nearer to both."""
    one = read(tmp_path, winoground(tmp_path / "set"), "winoground", "compositional")
    assert one.choices is not None
    row = replace(one.choices.rows[0], texts=("red", "red green"))
    found = measured(replace(one, choices=replace(one.choices, rows=(row,))))
    # red-green is as near to green as to red; so caption 1 does not prefer its own picture, but picture 1 prefers it.
    assert values(found) == {"text_score": 1.0, "image_score": 0.0, "group_score": 0.0}


@pytest.mark.parametrize("kind", ["relation", "attribution"])
def test_aro_shows_the_part_in_the_box(tmp_path: Path, kind: str) -> None:
    one = read(tmp_path, aro(tmp_path / "set", kind), "aro", "compositional")
    if kind == "attribution":
        with pytest.raises(DataError, match="no group is left for the mean; the largest, red_green, has 3 rows"):
            measured(one)  # fewer than 25
        return
    found = measured(one)
    assert values(found) == pytest.approx({"accuracy": 2 / 3, "mean_per_group": 2 / 3})
    assert found.groups == {"to the left of": {"num_rows": 3, "accuracy": 0.666667}}
    assert found.scores["accuracy"].low == found.scores["accuracy"].high  # one picture: one unit
    left_out = read(
        tmp_path, tmp_path / "set/visual_genome_relation.json", "aro", "compositional", leave_out=["to the left of"]
    )
    with pytest.raises(DataError, match="no group is left"):
        measured(left_out)
    with pytest.raises(DataError, match="leave_out: it has no rows of any of beside"):
        measured(
            read(tmp_path, tmp_path / "set/visual_genome_relation.json", "aro", "compositional", leave_out=["beside"])
        )


def test_a_part_beyond_the_picture_is_black() -> None:
    part = np.asarray(Image.open(io.BytesIO(cut(square("red", format="PNG", side_px=20), (-10, 0, 10, 10)))))
    assert part.shape == (10, 20, 3) and not part[:, :10].any() and part[:, 10:].any()


def test_rows_of_a_picture_that_does_not_decode_are_named(tmp_path: Path) -> None:
    one = read(tmp_path, sugarcrepe(tmp_path / "set"), "sugarcrepe", "compositional")
    (tmp_path / "set/val2017/000000000002.jpg").write_bytes(b"no picture")
    found = measured(one)
    assert len(found.faults) == 7 and found.faults["swap_att/3"].startswith("000000000002.jpg: ")
    assert found.groups["swap_att"]["num_rows"] == 1
    with pytest.raises(DataError, match="none of its 2 pictures can be shown"):
        measured(replace(one, pictures=held([b"x", b"y"])))
    parts = read(tmp_path, aro(tmp_path / "aro", "relation"), "aro", "compositional")
    with pytest.raises(DataError, match="none of its 2 pictures can be shown"):
        measured(replace(parts, pictures=held([b"x", b"y"])))


def test_the_digest_is_of_the_rows_too(tmp_path: Path) -> None:
    one = read(tmp_path, sugarcrepe(tmp_path / "set"), "sugarcrepe", "compositional")
    assert one.choices is not None
    other = replace(one, choices=replace(one.choices, rows=one.choices.rows[1:]))
    assert set_digests([one]) != set_digests([other]) and one.identity != other.identity
