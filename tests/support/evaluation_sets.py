"""A small evaluation set, whose header and members a test can change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.durable.files import sha256_file
from tests.support.tars import tar


def write_set(directory: Path, name: str = "concepts", **changes: Any) -> Path:
    """A set of two images; `changes` overrides header fields, `members` the tar's files."""
    rows = [
        {"key": "a1", "concept": "heart", "texts": ["red heart"], "class": "symbols", "vendor": "noto",
         "split": "query"},
        {"key": "b1", "concept": "rose", "texts": ["rose", "flower"], "class": "plants", "vendor": None,
         "source_url": "https://example.org/rose", "split": "reference"},
    ]  # fmt: skip
    members = changes.pop("members", None)
    if members is None:
        members = {f"{row['key']}.json": json.dumps(row).encode() for row in rows}
        members |= {f"{row['key']}.jpg": f"bytes of {row['key']}".encode() for row in rows}
    directory.mkdir(parents=True, exist_ok=True)
    tar(directory / f"{name}.tar", dict(sorted(members.items())))
    header = {
        "schema_version": 1, "name": name, "kind": "retrieval", "num_images": 2, "num_texts": 3, "num_concepts": 2,
        "sha256": sha256_file(directory / f"{name}.tar"), "description": "two things",
    }  # fmt: skip
    (directory / f"{name}.json").write_text(json.dumps(header | changes))
    return directory
