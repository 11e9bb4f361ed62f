"""Reads the small JSON files of the project into pydantic models, and those of others as objects, or raises an error
that names file and field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from align.config.params import Strict
from align.errors import DataError, FormatError, first_line

#: Of a file of others; a vocabulary of 250,000 words has half of it.
_MAX_BYTES = 32 << 20


class StoredModel(Strict):
    """What a JSON file of ours holds, or a part of it."""


Stored = TypeVar("Stored", bound=StoredModel)


def parse(model: type[Stored], data: bytes, path: Path | str, remedy: str) -> Stored:
    """Parses the text of a file. A model with a `schema_version` requires the file to have one.

    Args:
        model: what the file holds.
        data: its text.
        path: its path or URI, for the error.
        remedy: what to do about a bad file, such as "run `align shard` again".

    Raises:
        FormatError: the text is not JSON, or has another schema_version or layout.
    """
    try:
        parsed = model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "json_invalid":
            problem = f"not valid JSON ({first['ctx']['error']})"
        elif field == "schema_version" and first["type"] == "literal_error":
            problem = f"schema_version {first['input']!r}, but this code reads {first['ctx']['expected']}"
        else:
            problem = f"{field}: {first['msg']}" if field else first["msg"]
        raise FormatError(f"{path}: {problem}; {remedy}") from None
    if "schema_version" in model.model_fields and "schema_version" not in parsed.model_fields_set:
        raise FormatError(f"{path}: no schema_version; {remedy}")
    return parsed


def read_if_exists(model: type[Stored], path: Path, remedy: str) -> Stored | None:
    """Parses a file; None if there is none. Arguments and errors are those of `parse`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return parse(model, data, path, remedy)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that others wrote. Raises DataError if there is no such file, it is too large, or it
    holds no JSON object.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: larger than {_MAX_BYTES >> 20} MiB: not read")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object")
    return found
