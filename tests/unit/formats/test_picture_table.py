"""Tables of pictures as spreadsheets write them."""

from align.formats.picture_table import PictureTable


def test_separator_and_encoding_are_found_in_the_bytes(tmp_path):
    file = tmp_path / "shop.csv"
    file.write_bytes("SKU;Preis;Bild\n1;1,50;größer.jpg\n2;2,00;b.jpg\n".encode("windows-1252"))
    table = PictureTable(file)
    assert table.layout == "separated by semicolons, encoded in windows-1252"
    assert list(table.rows(["Bild", "Preis"])) == [("größer.jpg", "1,50"), ("b.jpg", "2,00")]


def test_what_is_no_table_is_read_in_bounds(tmp_path):
    file = tmp_path / "noise.csv"
    file.write_bytes(bytes(range(256)) * 10_000 + b'"' * 100_000)
    assert isinstance(list(PictureTable(file).rows([None])), list)
