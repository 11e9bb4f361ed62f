"""Looks into one file, whoever names it and however: does it show an opted-out picture or text?

A table or a tar says so itself. A page or a picture of a report does not: it shows small copies. Whether one of these
has to go depends on what the report was made of (`search`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from align.errors import DataError
from align.formats.indexed_images import ITEMS, IndexedImages
from align.formats.policy import OptedOut
from align.formats.statuses import SUCCESS
from align.formats.tar_members import DamagedTar, Member, read_members
from align.pairs.text import mask_personal_data, normalise

#: What a file is that shows one; PAGE: it shows small copies of some pictures.
TABLE, TAR, DECISIONS, INDEX, REPORT, PAGE = "table", "tar", "decisions", "index", "report", "page"
_HEAD_BYTES, _TAR_MAGIC = 512, slice(257, 262)
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")
_SIGNS = (b"data:image/jpeg", b"data:image/webp")
_RAW = ("url", "page_url", "sha256", "image_key", "caption", "status")


@dataclass(frozen=True)
class Wanted:
    """What is looked for.

    Attributes:
        opted_out: the policy.
        image_ids: sha256s of opted-out pictures that no other pair shows.
        texts: (sha256 of the picture or None, normalised text) of opted-out pairs.
    """

    opted_out: OptedOut
    image_ids: frozenset[str] = frozenset()
    texts: frozenset[tuple[str | None, str]] = frozenset()

    @cached_property
    def quoted(self) -> frozenset[str]:
        """The texts as reports quote them."""
        return frozenset(form for _, text in self.texts for form in (text, mask_personal_data(text)))


def look_into(path: Path, wanted: Wanted) -> str:
    """What the file is, if it shows one, or is a page; empty: it shows none, or is of no kind that could.

    A damaged table or tar counts as one that shows it.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    try:
        if head.startswith(b"PAR1"):
            return _table(path, wanted)
        if head[_TAR_MAGIC] == b"ustar":
            return TAR if any(_shown(sample, wanted) for sample in _samples(path)) else ""
        if head.lstrip().startswith(b"<"):
            return PAGE if any(sign in path.read_bytes() for sign in _SIGNS) else ""
        if head.lstrip().startswith(b"{"):
            return REPORT if not wanted.quoted.isdisjoint(_strings(json.loads(path.read_bytes()))) else ""
    except (DataError, DamagedTar, pa.ArrowException, OSError, KeyError, TypeError):
        return f"damaged {TABLE if head.startswith(b'PAR1') else TAR}"
    except ValueError:  # no JSON
        return ""
    return PAGE if head.startswith(_PICTURES) else ""


def pairs_in(table: Path, opted_out: OptedOut) -> Iterator[tuple[str | None, str]]:
    """(sha256 of the picture, normalised text or empty) of the opted-out pairs of a table of data/raw, as far as it
    still has one of the two; none of another table.
    """
    file = pq.ParquetFile(table, pre_buffer=False)
    names = [name for name in _RAW if name in file.schema_arrow.names]
    if not {"url", "caption", "status"} <= set(names):
        return
    for batch in file.iter_batches(columns=names):
        for found in batch.to_pylist():
            row: dict[str, Any] = dict.fromkeys(_RAW) | found
            held = row["image_key"] is not None if "image_key" in names else row["status"] == SUCCESS
            text = normalise(row["caption"] or "")
            if (held or text) and opted_out.matches(row["url"], row["page_url"], row["sha256"]):
                yield row["sha256"], text


def _table(path: Path, wanted: Wanted) -> str:
    names = set(pq.read_schema(path).names)
    if {"url", "caption", "status"} <= names:
        return TABLE if any(True for _ in pairs_in(path, wanted.opted_out)) else ""
    if {"image_id", "text", "keep"} <= names:
        for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(columns=["image_id", "text"]):
            if any(row["text"] and _is_text(row["image_id"], row["text"], wanted) for row in batch.to_pylist()):
                return DECISIONS
    if {"image_id", "texts"} <= names:  # one of another form counts as damaged
        with TemporaryDirectory(prefix="align-") as folder:
            (Path(folder) / ITEMS).symlink_to(path.absolute())
            images = IndexedImages.load(Path(folder))
            covers = wanted.opted_out.matches
            return INDEX if images.listed(wanted.image_ids, lambda url, page: covers(url, page, None)).any() else ""
    return ""


def _samples(tar: Path) -> Iterator[dict[str, Any]]:
    """The JSON of each sample of data/raw or data/shards; of data/raw with `picture`, the sha256 of its bytes."""
    pictures: dict[str, Member] = {}
    with tar.open("rb") as file:
        for member in read_members(file):
            key, _, extension = member.name.rpartition("/")[2].partition(".")
            if member.problem is None and extension == "json":
                row, picture = _json(_bytes(file, member)), pictures.pop(key, None)
                if picture is not None and "url" in row:
                    row["picture"] = hashlib.sha256(_bytes(file, picture)).hexdigest()
                yield row
            elif member.problem is None and extension != "txt":
                pictures[key] = member


def _json(data: bytes) -> dict[str, Any]:
    """An object; empty if it is none."""
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _bytes(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _shown(sample: dict[str, Any], wanted: Wanted) -> bool:
    if "image_id" in sample:  # of data/shards
        texts = sample.get("texts", ())
        return sample["image_id"] in wanted.image_ids or any(_is_text(sample["image_id"], one, wanted) for one in texts)
    if "url" not in sample:
        return False  # of an evaluation set, which says what ends it there
    if sample.get("picture") in wanted.opted_out.image_ids:
        return True
    return wanted.opted_out.matches(sample["url"], sample.get("page_url"), sample.get("sha256"))


def _is_text(image_id: str | None, text: str, wanted: Wanted) -> bool:
    return image_id in wanted.opted_out.image_ids or (image_id, text) in wanted.texts


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)
