"""Removes the pictures and texts of opted-out pairs from data/raw, by rewriting the shards that hold them.

A purged pair keeps its row, without picture and text: `failed_to_download`, `opted out`. Counts and keys stay the same,
and ingest writes the same row for an address that it may not fetch. The addresses stay: the policy knows the pair by
them. A picture that another pair shows as well, one that nobody opted out (of one page they did, the other pages
did not), stays.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from align.display.console import track
from align.durable.files import link, sha256_file, write_text
from align.durable.work import key_of, work_directory
from align.errors import DataError, FormatError
from align.formats.policy import OptedOut
from align.formats.raw import MANIFEST, kept_scan, read_raw_manifest
from align.formats.statuses import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, NOT_FETCHED, SUCCESS
from align.formats.tar import BLOCK, header, padding
from align.formats.tar_members import DamagedTar, Member, read_members
from align.ingest.writer import write_raw_manifest
from align.lineage.take_down.opted_out_pairs import OptedOutPairs
from align.lineage.versions.raw_pairs import RawRow, is_opted_out, iter_rows, iter_tables

#: What a purged row says, in addition to its status. The hash stays: the policy knows the picture by it, and it shows
#: nothing of the picture.
_PURGED: RawRow = {
    "caption": "",
    "error_message": "opted out",
    "image_key": None,
    "width": None,
    "height": None,
    "original_width": None,
    "original_height": None,
    "retryable": False,
}


def purge_raw(
    raw: Path,
    opted_out: OptedOut,
    pairs: OptedOutPairs,
    *,
    tar_of: Callable[[str], Path] | None = None,
    keep_tar: Callable[[Path, str], None] | None = None,
) -> list[str]:
    """Rewrites the shards with opted-out pairs without their pictures; all new shards appear at once, or none.

    The scan of the ingest goes, since it has all texts.

    Args:
        raw: data/raw; files that do not change are linked into the new folder, not copied.
        opted_out: the policy.
        pairs: `opted_out_pairs(raw, opted_out)`.
        tar_of: shard name -> its tar, if the tars are not in the folder.
        keep_tar: stores a new tar (path, sha256) where the others are.

    Returns:
        Names of the rewritten shards; their tables have new rows, and their tars no opted-out picture.

    Raises:
        DataError: a shard is unreadable.
        LockedError: `align ingest` is making the folder.
    """
    stale = _shards_to_rewrite(raw, pairs)
    with work_directory(raw, None, key_of("purge", time.time_ns())) as part:  # a new key each time: never resumed
        for path in raw.iterdir():
            if path.is_file() and path.name.partition(".")[0].removesuffix("_stats") not in stale:
                link(path, part / path.name)
            elif path.is_dir():  # a file that somebody put there stays
                shutil.copytree(path, part / path.name, copy_function=link)
        for name in track(sorted(stale), what="opt_out: shards rewritten", total=len(stale)):
            tar = raw / f"{name}.tar"
            if tar_of and not tar.is_file():
                tar = tar_of(name)
            table, held = _purged_table(raw / f"{name}.parquet", opted_out, pairs)
            pq.write_table(table, part / f"{name}.parquet", compression="zstd")
            with (part / f"{name}.tar").open("wb") as target:
                _copy_tar(tar, target, pairs.gone, held)
            tar_sha256 = _rewrite_stats(raw, part, name, table)
            if keep_tar:
                keep_tar(part / f"{name}.tar", tar_sha256)
        manifest = read_raw_manifest(raw)
        if manifest is not None:
            (part / MANIFEST).unlink()
            names = [tar.removesuffix(".tar") for tar in stored_tars(raw)]
            write_raw_manifest(part, names, manifest.made_with)
        shutil.rmtree(kept_scan(raw), ignore_errors=True)
    return sorted(stale)


def stored_tars(folder: Path) -> dict[str, tuple[str, int]]:
    """The tars that the manifest of a data/raw or data/shards names: path -> (sha256, bytes); empty: it has none.

    Raises:
        FormatError: it is the manifest of neither folder.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if "splits" in manifest:
            rows = [shard for split in manifest["splits"].values() for shard in split["shards"]]
            return {str(row["path"]): (str(row["sha256"]), int(row["num_bytes"])) for row in rows}
        return {f"{row['name']}.tar": (str(row["tar_sha256"]), int(row["tar_bytes"])) for row in manifest["shards"]}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{path}: no manifest that this code reads; make the folder again") from None


def _shards_to_rewrite(raw: Path, pairs: OptedOutPairs) -> set[str]:
    image_keys = pairs.gone | pairs.shared
    return {
        name
        for name, rows in iter_tables(raw, ["key"])
        if name in pairs.shards or any(row["key"] in image_keys for row in rows)
    }


def _purged_table(path: Path, opted_out: OptedOut, pairs: OptedOutPairs) -> tuple[pa.Table, dict[str, RawRow]]:
    """The new table; and for each shared picture the first row that may still show it, by key of its tar sample."""
    table = pq.ParquetFile(path).read()
    still_shown: dict[str, RawRow] = {}
    columns = {column: table[column].to_pylist() for column in table.column_names}
    for index, row in enumerate(iter_rows(path)):
        if not is_opted_out(opted_out, row):
            image_key = row["image_key"]
            if image_key in pairs.shared:
                still_shown.setdefault(image_key, {column: values[index] for column, values in columns.items()})
            continue
        columns["status"][index] = FAILED_TO_DOWNLOAD
        for column, value in _PURGED.items():
            if column in columns:
                columns[column][index] = value
    arrays = [pa.array(columns[field.name], field.type) for field in table.schema]
    return pa.table(arrays, schema=table.schema), still_shown


def _copy_tar(source: Path, target: BinaryIO, gone: frozenset[str], rows: dict[str, RawRow]) -> None:
    """Copies members byte for byte, except those of `gone`; a sample in `rows` gets that row's text and JSON.

    Members without bytes that can be read, such as links, are left out. Raises DataError if the tar is damaged.
    """
    num_bytes = 0
    with source.open("rb") as file:
        for member in _members(file, source):
            key, _, extension = member.name.rpartition("/")[2].partition(".")
            if key in gone:
                continue
            row = rows.get(key)
            if row is not None and extension in ("txt", "json"):
                text = row["caption"] if extension == "txt" else json.dumps(row, ensure_ascii=False)
                data = text.encode("utf-8")
                block = header(member.name, len(data)) + data
            else:
                file.seek(member.start)
                block = file.read(member.offset + member.size - member.start)
            num_bytes += target.write(block + padding(len(block)))
    end = 2 * BLOCK
    target.write(bytes(end + -(num_bytes + end) % (20 * BLOCK)))  # as `tar` ends an archive


def _members(file: BinaryIO, path: Path) -> Iterator[Member]:
    try:
        yield from (member for member in read_members(file) if member.problem is None)
    except DamagedTar as error:
        raise DataError(f"{path}: not a readable tar ({error}); make the folder again") from None


def _rewrite_stats(raw: Path, part: Path, name: str, table: pa.Table) -> str:
    """Writes NNNNN_stats.json of the new table and tar; returns the tar's sha256."""
    stats: dict[str, Any] = json.loads((raw / f"{name}_stats.json").read_bytes())
    statuses = Counter(table["status"].to_pylist())
    messages = Counter(message or SUCCESS for message in table["error_message"].to_pylist())
    tar = part / f"{name}.tar"
    sha256 = sha256_file(tar)
    stats |= {
        "successes": statuses[SUCCESS],
        "failed_to_download": statuses[FAILED_TO_DOWNLOAD],
        "failed_to_resize": statuses[FAILED_TO_RESIZE],
        "status_dict": dict(sorted(messages.items())),
    }
    if "tar_sha256" in stats:  # img2dataset writes none
        table_sha256 = sha256_file(part / f"{name}.parquet")
        stats |= {"tar_sha256": sha256, "tar_bytes": tar.stat().st_size, "table_sha256": table_sha256}
        stats["not_fetched"] = statuses[NOT_FETCHED]
    write_text(part / f"{name}_stats.json", json.dumps(stats, indent=4, ensure_ascii=False) + "\n")
    return sha256
