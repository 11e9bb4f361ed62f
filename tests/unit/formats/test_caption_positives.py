import json
from pathlib import Path

import numpy as np
import pytest

from align.errors import DataError, FormatError
from align.formats import caption_positives
from align.formats.caption_positives import placed_positives, positions, read_positives
from tests.support.suites import local_files


def test_a_file_as_eccv_caption_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "eccv_image_to_caption.json"
    file.write_text(json.dumps({"373119": [560256, 646721], "7": [9]}))
    positives = read_positives(str(file), local_files())
    assert positives == {373119: [560256, 646721], 7: [9]}
    placed = placed_positives(positives, [5, 7, 373119], [646721, 9, 1, 560256])
    assert [items.tolist() for items in placed] == [[], [1], [3, 0]]


@pytest.mark.parametrize(
    "text", ['{"7": [9', '{"7": 9}', '{"x": [9]}', "[1]", '{"7": [1.5]}', "", "\x00", '{"7": [1e400]}']
)
def test_other_layouts_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(FormatError, match=r"bad\.json: .*expected \{"):
        read_positives(str(file), local_files())


def test_no_file_and_a_huge_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"none\.json: the right items cannot be read: .*No such file"):
        read_positives(str(tmp_path / "none.json"), local_files())
    (tmp_path / "huge.json").write_text('{"1": [2]}' + " " * (1 << 20))
    monkeypatch.setattr(caption_positives, "_MOST_BYTES", 1 << 20)
    with pytest.raises(DataError, match="the right items: more than 1 MiB"):
        read_positives(str(tmp_path / "huge.json"), local_files())


def test_a_set_of_another_split_is_refused() -> None:
    with pytest.raises(DataError, match="queries: the set lacks 1, the first is id 8"):
        placed_positives({7: [1], 8: [1]}, [7], [1])
    with pytest.raises(DataError, match="right items: the set lacks 2, the first is id 3"):
        placed_positives({7: [1, 4, 3, 4]}, [7], [1])
    with pytest.raises(DataError, match="the set lacks all"):
        placed_positives({7: [1]}, [], [])
    with pytest.raises(DataError, match="id 7 twice"):
        placed_positives({7: [1]}, [7, 7], [1])


def test_positions_of_large_ids() -> None:
    big = 2**53 + 1
    assert positions(np.array([big, 3], dtype=np.int64), [3, big - 1, big], "ids").tolist() == [2, 0]


def test_one_right_item_in_a_thousand_may_lack() -> None:
    placed = placed_positives({7: [*range(1000), 5000]}, [7], range(1000))
    assert placed[0].tolist() == list(range(1000))
    with pytest.raises(DataError, match="the set lacks 2, the first is id 5000"):
        placed_positives({7: [*range(1000), 5000, 5001]}, [7], range(1000))
