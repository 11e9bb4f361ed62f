"""docs/catalogue.md as it is typed, with a small model in place of align-base."""

import pytest

from tests.support import own_model
from tests.support.journeys import AUTHOR, travel


@pytest.mark.journeys
def test_from_a_table_of_a_shop_to_search_and_an_update(folder):
    own_model.write(folder, 12)
    (folder / "photos").rename(folder / "goods")
    (folder / "goods/captions.csv").unlink()
    rows = [
        f"{number:03d};ein Stück, {number};{number},90;{('Fox', 'Owl')[number % 2]};images/{number:03d}.jpg\n"
        for number in range(12)
    ]
    text = "SKU;Title;Price;Category;Picture\n" + "".join(rows)
    (folder / "goods/goods.csv").write_bytes(text.encode("windows-1252"))
    said = travel(folder, "catalogue", "catalogue", AUTHOR)
    assert "next: cd shop && align index --source --model FOLDER" in said
    assert "separated by semicolons, encoded in windows-1252; pictures from column 'Picture'" in said
    assert '"SKU": "002"' in said and '"Price": 2.9' in said and '"SKU": "001"' not in said
    assert "12 images of" in said and "12 pictures were embedded" in said
    assert "11 images of" in said and "0 pictures were embedded" in said
