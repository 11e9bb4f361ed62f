"""Catalogues: folders and tables of pictures, their columns as filters, and updates with the bytes of a new index."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from align.config.ingest import IngestConfig
from align.config.search import IndexConfig
from align.errors import DataError
from align.formats.image_index import ImageIndex
from align.search.catalogue import index_catalogue
from align.services.vector_index import VectorIndex
from tests.support.colours import ColourEncoder, square
from tests.support.params import load_params

TABLE = """SKU;Title;Price;Category;Picture
007;a red lamp;19,90;Lamps;pictures/red.jpg
008;a green chair, "large";120;Chairs;pictures/green.png
009;;7,5;Lamps;pictures\\blue-vase.jpg
010;no such picture;1;Lamps;pictures/none.jpg
011;outside;1;Lamps;../secret.jpg
012;broken;1;Lamps;pictures/broken.jpg
013;a red lamp again;25;Lamps;pictures/red.jpg
"""


class Counting(ColourEncoder):
    """Counts what it embeds."""

    def __init__(self):
        self.num_images = 0

    def embed_images(self, images):
        some = list(images)
        self.num_images += len(set(some))
        return super().embed_images(some) if some else np.zeros((0, 4), np.float32)


def shop(root, text=TABLE, encoding="windows-1252"):
    (root / "shop/pictures").mkdir(parents=True, exist_ok=True)
    (root / "secret.jpg").write_bytes(square("yellow"))
    for name, colour in (("red.jpg", "red"), ("green.png", "green"), ("blue-vase.jpg", "blue")):
        (root / "shop/pictures" / name).write_bytes(square(colour, format="PNG" if name.endswith("png") else "JPEG"))
    (root / "shop/pictures/broken.jpg").write_bytes(square("red")[:200])
    (root / "shop/shop.csv").write_bytes(text.encode(encoding))
    return root / "shop/shop.csv"


def build(source, out, *, update=False, digest="mine", max_bytes=1 << 25, **values):
    """Makes the index; returns the encoder with its count."""
    encoder, params = Counting(), load_params(overrides=[f"ingest.max_record_bytes={max_bytes}"])
    config = IndexConfig.model_validate(params.values["index"] | {"queries": None} | values)
    number = index_catalogue(config, source, params.section(IngestConfig), encoder, digest, out, update=update)
    assert number >= encoder.num_images
    return encoder


def opened(out):
    return ImageIndex.load(out, VectorIndex.load)


def found(index, text, *where):
    hits = index.search(ColourEncoder().embed_texts([text])[0], 9, allowed=index.allowed(where=where))
    return [hit.item.key for hit in hits]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_table_of_a_spreadsheet_with_its_columns(tmp_path, capsys):
    encoder = build(shop(tmp_path), tmp_path / "index")
    assert encoder.num_images == 3
    said = capsys.readouterr().err
    assert "separated by semicolons; pictures from column 'Picture', texts from 'Title'; columns: SKU, Price" in said
    for reason, row in (("is missing", 5), ("does not decode", 7)):
        assert re.search(rf"left out: 1 whose picture {reason}: '\S+jpg' \(row {row}\)", said)
    assert re.search(
        r"1 with a picture outside of the folder; name files relative to \S+: '../secret.jpg' \(row 6\)", said
    )
    index = opened(tmp_path / "index")
    assert [item.key for item in index.items] == [
        "pictures/red.jpg", "pictures/green.png", "pictures/blue-vase.jpg", "pictures/red.jpg#2",
    ]  # fmt: skip
    assert index.item("pictures/red.jpg").columns == {"SKU": "007", "Price": 19.9, "Category": "Lamps"}
    assert [item.texts for item in index.items][1:3] == [('a green chair, "large"',), ("blue vase",)]
    assert index.items.choices == {"SKU": [], "Price": None, "Category": ["Chairs", "Lamps"]}
    assert found(index, "red") == [
        "pictures/red.jpg", "pictures/red.jpg#2", "pictures/green.png", "pictures/blue-vase.jpg",
    ]  # fmt: skip
    assert index.thumbnail("pictures/green.png").startswith(b"\xff\xd8")
    assert index.addresses("pictures/red.jpg")[0].url == ""


def test_half_a_surrogate_in_a_value_or_a_name_is_left_out(tmp_path, capsys):
    shop(tmp_path)
    rows = [{"file": "pictures/red.jpg", "text": "a \ud83d lamp", "pri\ud83dce": "\ud83d1"}, {"file": "\ud83d.jpg"}]
    (tmp_path / "shop/t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    build(tmp_path / "shop/t.jsonl", tmp_path / "index")
    index = opened(tmp_path / "index")
    assert [item.texts for item in index.items] == [("a lamp",)]
    assert index.item("pictures/red.jpg").columns == {"pri ce": 1}
    assert "left out: 1 without a name" in capsys.readouterr().err


def test_each_row_without_a_picture_has_its_reason_and_a_way_out(tmp_path, capsys):
    names = [
        "Pictures/RED.jpg", r"C:\Users\eva\red.jpg", r"\\nas\goods\x.jpg", "https://shop.example/red.jpg",
        "pictures/large.jpg", "pictures/none.jpg", "pictures", "", "=cmd|calc", "leads/secret.jpg", "Leads/SECRET.jpg",
        r"D:\leads\secret.jpg", "a;b", "pictures/red.jpg",
    ]  # fmt: skip
    file = shop(tmp_path, "Picture;Price\n" + "".join(f"{name};1\n" for name in names))
    (tmp_path / "shop/leads").symlink_to(tmp_path)
    (tmp_path / "shop/pictures/large.jpg").write_bytes(b"x" * 5000)
    build(file, tmp_path / "index", max_bytes=4000)
    said = capsys.readouterr().err
    relative = f"name files relative to {tmp_path}/shop"
    for line in (
        "1 whose file has a name in other letters; write it as the file: 'Pictures/RED.jpg is pictures/red.jpg'",
        rf"3 with a path of Windows; {relative}: 'C:\Users\eva\red.jpg' (row 3), '\\nas\goods\x.jpg' (row 4)",
        "1 with an address of the web; download the pictures, and name their files: 'https://shop.example/red.jpg'",
        "1 whose picture has more than 4,000 bytes (ingest.max_record_bytes): 'pictures/large.jpg' (row 6)",
        "4 whose picture is missing: 'pictures/none.jpg' (row 7), 'pictures' (row 8)",
        "1 without a name that a picture's file can have: (row 9)",
        "1 that do not fit the columns; in a CSV, quote texts that hold its separator: (row 14)",
        f"1 with a picture outside of the folder; {relative}: 'leads/secret.jpg' (row 11)",
    ):
        assert f"left out: {line}" in said, said
    assert f"13 rows left out: {tmp_path}/index.left_out.csv" in said
    rows = list(csv.reader((tmp_path / "index.left_out.csv").read_text("utf-8-sig").splitlines()))
    assert rows[0] == ["row", "picture", "reason"]
    assert sorted(int(row[0]) for row in rows[1:]) == [*range(2, 15)]
    assert ["10", "'=cmd|calc"] in [row[:2] for row in rows]  # no formula for a spreadsheet
    assert ["12", "Leads/SECRET.jpg", "whose picture is missing"] in rows  # what a link leads to is not told
    file.write_text("Picture;Price\npictures/red.jpg;1\n")
    build(file, tmp_path / "index", update=True)
    assert not (tmp_path / "index.left_out.csv").exists()


def test_columns_are_filters_and_nothing_else(tmp_path):
    build(shop(tmp_path), tmp_path / "index")
    index = opened(tmp_path / "index")
    assert sorted(found(index, "green", "Price<=19,9", "Category = Lamps")) == [
        "pictures/blue-vase.jpg", "pictures/red.jpg",
    ]  # fmt: skip
    assert found(index, "red", "price>19.9", "price < 100") == ["pictures/red.jpg#2"]
    assert found(index, "red", "SKU=7") == [] and found(index, "red", "sku=007") == ["pictures/red.jpg"]
    for condition, message in (
        ("colour=red", r"'colour=red': expected COLUMN=VALUE.*: SKU, Price, Category"),
        ("Price", "expected COLUMN=VALUE"),
        ("Price<=cheap", "column Price has numbers, and 'cheap' is no number"),
        ("Price<=1.250", "'1.250' may be two numbers; write more or fewer decimals"),
        ("Price=1 OR 1=1", "column Price has numbers"),
        ("Category<M", "column Category has texts, which only = compares; .*`align index` names the cell"),
        ("1=1; DROP TABLE items", "expected COLUMN=VALUE"),
    ):
        with pytest.raises(DataError, match=message):
            found(index, "red", condition)


def test_what_no_row_has_is_answered_with_the_values_that_there_are(tmp_path):
    kinds = ["dress", "shoes", *(f"kind {number}" for number in range(10))] * 2
    rows = "".join(f"pictures/red.jpg;{kind};{number}\n" for number, kind in enumerate(kinds))
    build(shop(tmp_path, f"Picture;Category;Price;Size\n{rows.replace(chr(10), ';' + chr(10))}"), tmp_path / "index")
    index = opened(tmp_path / "index")
    assert index.items.offered(["Category=DRESS"]).startswith("in Category there is: dress, kind 0, kind 1,")
    assert index.items.offered(["Category=Dress"]).endswith("kind 6, …")
    assert index.items.offered(["price>99", "Size=M"]) == "in Price there is: 0 to 23; in Size there is: nothing"
    assert [hit.item.columns["Price"] for hit in index.search(None, 2, allowed=index.allowed(where=["Price>=5"]))] == [
        5,
        6,
    ]
    assert index.items.offered([]) == ""


def test_a_model_that_does_not_know_such_pictures_is_told(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(30):
        colour = ("red", "green", "blue")[number % 3]
        image = Image.new("RGB", (32, 32), colour)
        image.putpixel((0, 0), tuple(int(value) for value in rng.integers(0, 255, 3)))
        (tmp_path / "goods").mkdir(exist_ok=True)
        image.save(tmp_path / f"goods/{colour}-{number}.png")
    build(tmp_path / "goods", tmp_path / "index")
    said = capsys.readouterr().err
    assert re.search(r"finds its picture before [89]\d% of the others; by chance 50%\n", said), said
    for number, path in enumerate(sorted((tmp_path / "goods").iterdir())):
        path.rename(tmp_path / f"goods/{('blue', 'red', 'green')[number % 3]} {number}.png")
    build(tmp_path / "goods", tmp_path / "index")
    loaded = ImageIndex.load(tmp_path / "index", VectorIndex.load)
    warning = "by chance 50%: the model may know another kind of pictures"
    assert warning in capsys.readouterr().err and warning in loaded.header.warning


def test_a_hundred_texts_draw_a_line_and_fewer_draw_none(tmp_path, capsys):
    goods = tmp_path / "goods"
    goods.mkdir()
    for number in range(120):
        colour = ("red", "green", "blue")[number % 3]
        (goods / f"{colour} {number}.png").write_bytes(square(colour, shade=number, format="PNG", side_px=8))
    build(goods, tmp_path / "index")
    promise = opened(tmp_path / "index").header.promise
    assert promise.num_concepts == 60 and promise.lines[0.75] <= promise.lines[0.9]
    capsys.readouterr()
    for path in list(goods.iterdir())[:30]:
        path.unlink()
    build(goods, tmp_path / "index")
    assert opened(tmp_path / "index").header.promise is None
    assert (
        "index: 90 different held-out texts can be asked, fewer than 100, so answers have no line\n"
        in capsys.readouterr().err
    )


def test_html_of_a_title_is_text(tmp_path):
    titles = ["<p>A <b>red</b> lamp &amp; shade</p>", "&lt;br/&gt;5 < 6 > 4 <3", "<br>"]
    rows = "".join(f"pictures/red.jpg,{title}\n" for title in titles)
    build(shop(tmp_path, f"Picture,Title\n{rows}"), tmp_path / "index")
    texts = [text for item in opened(tmp_path / "index").items for text in item.texts]
    assert texts == ["A red lamp & shade", "5 < 6 > 4 <3", "red"]


def test_prices_of_a_spreadsheet_are_numbers_and_the_cell_that_spoils_them_is_named(tmp_path, capsys):
    lines = ["Picture;Price;Asked;Weight", *(f"pictures/red.jpg;{row}" for row in (
        "1.299,00 €;5;1.299", "19,90 €;ask us;", ";12;1.5", "7 €;2;2",
    ))]  # fmt: skip
    build(shop(tmp_path, "\n".join(lines)), tmp_path / "index")
    said = capsys.readouterr().err
    assert (
        "column Asked, row 3: 'ask us' is no number as the others are, so the column has texts, which only = compares"
        in said
    )
    assert "column Price" not in said and "column Weight" not in said
    index = opened(tmp_path / "index")
    assert [item.columns["Price"] for item in index.items] == [1299, 19.9, None, 7]
    assert found(index, "red", "Price>1.000,00 €") == ["pictures/red.jpg"] == found(index, "red", "Price>$1,000.00")
    assert found(index, "red", "Weight<1.3") == ["pictures/red.jpg"]


@pytest.mark.usefixtures("any_blocks")
def test_an_update_embeds_what_is_new_and_has_the_bytes_of_a_new_index(tmp_path):
    source, out = shop(tmp_path), tmp_path / "index"
    build(source, out)
    lines = TABLE.splitlines(keepends=True)
    (source.parent / "pictures/yellow.jpg").write_bytes(square("yellow"))
    source.write_text("".join([lines[0], *lines[2:], "014;a yellow sofa;900;Sofas;pictures/yellow.jpg\n"]))
    assert build(source, out, update=True).num_images == 1
    assert [item.key for item in opened(out).items] == [
        "pictures/green.png", "pictures/blue-vase.jpg", "pictures/red.jpg", "pictures/yellow.jpg",
    ]  # fmt: skip
    assert build(source, tmp_path / "fresh").num_images == 4
    assert files(out) == files(tmp_path / "fresh")
    source.write_text("".join(lines[:3]))  # rows and their pictures are gone
    assert build(source, out, update=True).num_images == 0
    assert len(opened(out).items) == 2
    assert build(source, out, update=True).num_images == 0  # twice in a row
    build(source, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_an_update_of_an_approximate_index_has_the_same_bytes(tmp_path):
    source, out = shop(tmp_path), tmp_path / "index"
    build(source, out, exact_below=2)
    (source.parent / "pictures/yellow.jpg").write_bytes(square("yellow"))
    source.write_text(TABLE + "014;a yellow sofa;900;Sofas;pictures/yellow.jpg\n")
    assert build(source, out, update=True, exact_below=2).num_images == 1
    build(source, tmp_path / "fresh", exact_below=2)
    assert files(out) == files(tmp_path / "fresh")
    assert build(source, out, update=True).num_images == 4  # exact now: float16 would not give a new index's bytes
    build(source, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_an_index_of_another_model_is_not_updated_and_stays(tmp_path):
    source, out = shop(tmp_path), tmp_path / "index"
    build(source, out)
    before = files(out)
    with pytest.raises(DataError, match=r"made with another model; run it without --update"):
        build(source, out, update=True, digest="another")
    source.write_text("Title;Picture\nnothing;none.jpg\n")
    with pytest.raises(DataError, match=r"nothing to index: 1 whose picture is missing: 'none.jpg' \(row 2\)"):
        build(source, out, update=True)
    source.write_text("Titel;Bild\nx;pictures/red.jpg\n")
    with pytest.raises(DataError, match=r"it has Titel, Bild; set ingest\.columns\.url to one of these"):
        build(source, out)
    assert files(out) == before


def test_a_killed_index_resumes_with_what_it_embedded(tmp_path, monkeypatch):
    source, out = shop(tmp_path), tmp_path / "index"
    monkeypatch.setattr("align.search.catalogue.write_index", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(source, out)
    monkeypatch.undo()
    assert not out.exists()
    assert build(source, out).num_images == 0 and len(opened(out).items) == 4


def test_a_folder_of_pictures_has_their_names(tmp_path):
    folder = shop(tmp_path).parent
    (folder / "linked.jpg").symlink_to(tmp_path / "secret.jpg")
    build(folder, tmp_path / "index")
    index = opened(tmp_path / "index")
    assert sorted((item.key, *item.texts) for item in index.items) == [
        ("pictures/blue-vase.jpg", "blue vase"), ("pictures/green.png", "green"), ("pictures/red.jpg", "red"),
    ]  # fmt: skip
    assert index.item("pictures/red.jpg").columns == {}
