"""The small JSON files of the project, parsed to their models."""

from pathlib import Path
from typing import Literal

import pytest

from align.errors import FormatError
from align.formats.json_file import StoredModel, parse


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
