"""Tables in JSON: arrays, and objects by line. Whole tables in one object, as pandas writes them, are refused."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

from align.errors import DataError, FormatError
from align.formats.json_file import StoredModel, parse
from tests.support.reading import pairs, table_rows

A, B = "http://x.example/a.jpg", "https://y.example/b.jpg"


TABLE = {"url": [A, B, A], "page": [None, "http://p/", None], "caption": ["one", 'two "\u00e9', None]}


def orients():
    """TABLE as `pandas.DataFrame.to_json` writes it, by `orient`."""
    rows = [dict(zip(TABLE, values, strict=True)) for values in zip(*TABLE.values(), strict=True)]
    columns = {name: {str(at): value for at, value in enumerate(values)} for name, values in TABLE.items()}
    data = [list(row.values()) for row in rows]
    return {
        "columns": json.dumps(columns),
        "columns, indented": json.dumps(columns, indent=2),
        "lists": json.dumps(TABLE),
        "split": json.dumps({"columns": list(TABLE), "index": [0, 1, 2], "data": data}),
        "records": json.dumps(rows),
        "values": json.dumps(data),
        "index": json.dumps({str(at): row for at, row in enumerate(rows)}),
    }


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", orients())
def test_tables_of_pandas(tmp_path, name, packed, monkeypatch):
    monkeypatch.setattr("align.formats.json_tables._CHUNK_CHARACTERS", 3)  # every piece is cut everywhere
    path = tmp_path / ("t.json.gz" if packed else "t.json")
    text = orients()[name].encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    if name != "records":
        reason = "without the names of their columns" if name == "values" else "neither an array of objects nor one"
        with pytest.raises(DataError, match=f"{reason}.*write it as JSON lines"):
            table_rows(path)
        return
    counts = Counter()
    rows = table_rows(path, "page_url=page", counts=counts)
    assert [(row["url"], row["text"], row["page_url"], row["problem"]) for row in rows] == [
        (A, "one", None, None), (B, 'two "\u00e9', "http://p/", None), (A, "", None, None),
    ]  # fmt: skip
    assert counts["rows"] == 3


def test_numbers_that_a_piece_cuts_stay_whole(tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    path.write_text('[{"url": "http://x/1", "caption": 1234.5e2}, {"url": "http://x/2", "caption": -1200}]')
    for size in range(1, 60):
        monkeypatch.setattr("align.formats.json_tables._CHUNK_CHARACTERS", size)
        assert [row["text"] for row in table_rows(path)] == ["123450.0", "-1200"]


@pytest.mark.parametrize(("text", "says"), [
    ('[{"url": "http://x/1", "caption": "c"}', "array is cut off or damaged"),
    ('[{"url": "http://x/1", "caption" "c"}]', "array is cut off or damaged"),
    ('[{"url": "http://x/1", "caption": ' + "[" * 100_000, "nested too deeply"),
    ('[{"url": "http://x/1", "caption": "c"}]\n[{"url": "http://x/2", "caption": "d"}]', "something follows the"),
    ('["http://x/1", "http://x/2"]', "without the names"),
    ('{\n"url": "http://x/1",\n"caption": "c"}', "neither an array"),
])  # fmt: skip
def test_json_that_is_no_table_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as raised:
        table_rows(path)
    assert "\n" not in str(raised.value)
    assert "JSON lines" in str(raised.value) or "fetch it again" in str(raised.value)


def test_one_object_is_a_row_if_it_has_a_plain_value(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"url": A, "caption": ["one", "two"], "meta": {"size": [1, 2]}}))
    assert pairs(table_rows(path)) == [(A, "one"), (A, "two")]


class Inner(StoredModel):
    count: int


class Document(StoredModel):
    schema_version: Literal[1] = 1
    rows: tuple[Inner, ...]


def test_a_document_is_parsed_to_its_model():
    parsed = parse(Document, b'{"schema_version": 1, "rows": [{"count": 2}]}', Path("a.json"), "make it again")
    assert parsed == Document(rows=(Inner(count=2),))


@pytest.mark.parametrize(("text", "message"), [
    ("{", r"a\.json: not valid JSON \(.*\); make it again"),
    ("[]", r"a\.json: .*object.*; make it again"),
    ('{"rows": []}', r"a\.json: no schema_version; make it again"),
    ('{"schema_version": 2, "rows": []}', r"a\.json: schema_version 2, but this code reads 1; make it again"),
    ('{"schema_version": 1, "rows": [{"count": "2"}]}', r"a\.json: rows\.0\.count: .*integer; make it again"),
    ('{"schema_version": 1, "rows": [], "more": 1}', r"a\.json: more: .*not permitted; make it again"),
])  # fmt: skip
def test_a_broken_document_is_one_clear_line(text, message):
    with pytest.raises(FormatError, match=message) as caught:
        parse(Document, text.encode(), Path("a.json"), "make it again")
    assert "\n" not in str(caught.value)
