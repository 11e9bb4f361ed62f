"""What a take-down touches: the opted-out pairs of data/raw, the pictures that only they show, and where those lie.

A purged pair keeps its row, without the picture: `failed_to_download`, `opted out`. So counts stay honest, keys stay,
and ingest writes the same row for an address that it may not ask. A picture that some other pair shows as well, one
that nobody asked to forget (a page opted out, the other pages did not), stays where it is.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from align.console import track
from align.errors import DataError
from align.files import sha256_file, write_text
from align.formats.policy import OptedOut
from align.formats.raw import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, MANIFEST, SUCCESS, RawShard, read_table
from align.formats.shards import SPLITS, read_manifest
from align.formats.tar import BLOCK, header, padding
from align.ingest.writer import write_raw_manifest
from align.protocols.store import FetchTar
from align.work import key_of, work_directory

#: error_message of a row whose picture is not there because somebody asked for that.
OPTED_OUT_MESSAGE = "opted out"
_COLUMNS = ("key", "url", "page_url", "sha256", "image_key", "status")


@dataclass(frozen=True)
class Affected:
    """The opted-out pairs of a folder.

    Attributes:
        num_pairs: all of them.
        num_held: those whose picture lies in the folder.
        image_ids: of all of them, as far as known.
        gone: keys of the tar samples that no other pair shows.
        shared: keys of those that some other pair shows.
        used: (kind, value) of the entries that match.
        shards: names of shards with an opted-out pair.
    """

    num_pairs: int
    num_held: int
    image_ids: frozenset[str]
    gone: frozenset[str]
    shared: frozenset[str]
    used: frozenset[tuple[str, str]]
    shards: frozenset[str]


def affected(raw: Path, opted_out: OptedOut) -> Affected:
    """Reads the tables of a folder in img2dataset's layout; its tars need not be there.

    Raises:
        DataError: a table is unreadable.
    """
    num_pairs = 0
    held: Counter[str] = Counter()
    image_ids, used, shards = set(), set(), set()
    for name, rows in _tables(raw):
        for row in rows:
            entry = opted_out.entry(row["url"], row["page_url"], row["sha256"])
            if entry is not None:
                num_pairs += 1
                used.add(entry)
                shards.add(name)
                image_ids |= {row["sha256"]} - {None}
                if row["image_key"] is not None:
                    held[row["image_key"]] += 1
    shared = set()
    if held:
        for _, rows in _tables(raw):
            for row in rows:
                key = row["image_key"]
                if key in held and not opted_out.matches(row["url"], row["page_url"], row["sha256"]):
                    shared.add(key)
    return Affected(
        num_pairs, held.total(), frozenset(image_ids), frozenset(held.keys() - shared), frozenset(shared),
        frozenset(used), frozenset(shards),
    )  # fmt: skip


def find_pairs(raw: Path, column: str, values: set[str]) -> Iterator[dict[str, Any]]:
    """Rows (key, url, page_url, sha256, image_key, status) of which a column has one of the values."""
    for name, rows in _tables(raw):
        for row in rows:
            if row[column] in values:
                if row["sha256"] is None and row["status"] == SUCCESS:  # a stock folder without hashes
                    shard = RawShard(name, raw / f"{name}.parquet", raw / f"{name}.tar")
                    full = {one["key"]: one["sha256"] for one in read_table(shard, ["key", "sha256"]).to_pylist()}
                    row["sha256"] = full[row["key"]]
                yield row


def _tables(raw: Path) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    for path in sorted(raw.glob("*.parquet")):
        try:
            yield path.stem, _rows(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: not a readable parquet file ({error}); make the folder again") from None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    file = pq.ParquetFile(path, pre_buffer=False)  # or pyarrow keeps the file as it goes
    known = [name for name in _COLUMNS if name in file.schema_arrow.names]
    empty = dict.fromkeys(_COLUMNS)
    if "image_key" in known:
        for batch in file.iter_batches(columns=known):
            for row in batch.to_pylist():
                yield empty | row
    else:  # a stock folder: every picture under its own key
        for batch in file.iter_batches(columns=known):
            for row in batch.to_pylist():
                yield empty | row | {"image_key": row["key"] if row["status"] == SUCCESS else None}


def purge_raw(
    raw: Path,
    opted_out: OptedOut,
    found: Affected,
    *,
    tar_of: Callable[[str], Path] | None = None,
    keep_tar: Callable[[Path, str], None] | None = None,
) -> list[str]:
    """Rewrites the shards with opted-out pairs without their pictures; all of them appear at once, or none.

    Args:
        raw: data/raw; files that do not change are linked into the new folder, not copied.
        opted_out: whose pairs.
        found: `affected(raw, opted_out)`.
        tar_of: a shard's name -> its tar, where the tars do not lie in the folder.
        keep_tar: takes a new tar (path, sha256) to where they lie.

    Returns:
        Names of the shards that were rewritten; their tables have new rows, and their tars no opted-out picture.

    Raises:
        DataError: a shard is unreadable.
        LockedError: `align ingest` is making the folder.
    """
    stale = {name for name, rows in _tables(raw) if name in found.shards or _holds(rows, found)}
    with work_directory(raw, key_of("purge", time.time_ns())) as part:  # never resumed: what is there, goes
        for path in raw.iterdir():
            if path.is_file() and path.name.partition(".")[0].removesuffix("_stats") not in stale:
                _link(path, part / path.name)
        for name in track(sorted(stale), what="forget: shards rewritten", total=len(stale)):
            tar = raw / f"{name}.tar"
            tar = tar_of(name) if tar_of and not tar.is_file() else tar
            tar_sha256 = _rewrite(raw, part, name, opted_out, found, tar)
            if keep_tar:
                keep_tar(part / f"{name}.tar", tar_sha256)
        if (raw / MANIFEST).is_file():
            names = [shard["name"] for shard in json.loads((raw / MANIFEST).read_bytes())["shards"]]
            (part / MANIFEST).unlink()
            write_raw_manifest(part, names)
    return sorted(stale)


def _holds(rows: Iterable[dict[str, Any]], found: Affected) -> bool:
    return any(row["key"] in found.gone or row["key"] in found.shared for row in rows)


def _rewrite(raw: Path, part: Path, name: str, opted_out: OptedOut, found: Affected, tar: Path) -> str:
    table = pq.ParquetFile(raw / f"{name}.parquet").read()
    rows: dict[str, dict[str, Any]] = {}
    columns = {column: table[column].to_pylist() for column in table.column_names}
    empty: list[None] = [None] * len(table)
    pages, hashes = columns.get("page_url", empty), columns.get("sha256", empty)
    for place, key in enumerate(columns["key"]):
        if not opted_out.matches(columns["url"][place], pages[place], hashes[place]):
            holder = columns["image_key"][place] if "image_key" in columns else key
            if holder in found.shared:
                rows.setdefault(holder, {column: values[place] for column, values in columns.items()})
            continue
        columns["status"][place] = FAILED_TO_DOWNLOAD
        for column, value in _PURGED.items():
            if column in columns:
                columns[column][place] = value
    arrays = [pa.array(columns[field.name], field.type) for field in table.schema]
    changed = pa.table(arrays, schema=table.schema)
    pq.write_table(changed, part / f"{name}.parquet", compression="zstd")
    with (part / f"{name}.tar").open("wb") as target:
        _copy_tar(tar, target, found.gone, rows)
    return _rewrite_stats(raw, part, name, changed)


#: What a purged row says beside its status. The hash stays: it names the picture to the policy, and shows none of it.
_PURGED: dict[str, Any] = {
    "error_message": OPTED_OUT_MESSAGE, "image_key": None, "width": None, "height": None, "original_width": None,
    "original_height": None, "retryable": False,
}  # fmt: skip


def _copy_tar(source: Path, target: BinaryIO, gone: frozenset[str], rows: dict[str, dict[str, Any]]) -> None:
    """Copies members byte for byte, but for those of `gone`; a sample in `rows` gets that row's text and JSON."""
    num_bytes = 0
    with source.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            key, _, extension = member.name.rpartition("/")[2].partition(".")
            if key in gone:
                continue
            row = rows.get(key)
            if row is not None and extension in ("txt", "json"):
                text = row["caption"] if extension == "txt" else json.dumps(row, ensure_ascii=False)
                data = text.encode("utf-8")
                block = header(member.name, len(data)) + data
            else:
                file.seek(member.offset)
                block = file.read(member.offset_data + member.size - member.offset)
            num_bytes += target.write(block + padding(len(block)))
    end = 2 * BLOCK
    target.write(bytes(end + -(num_bytes + end) % (20 * BLOCK)))  # as `tar` ends an archive


def _rewrite_stats(raw: Path, part: Path, name: str, table: pa.Table) -> str:
    stats = json.loads((raw / f"{name}_stats.json").read_bytes())
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
    if "tar_sha256" in stats:  # not in a stock folder
        table_sha256 = sha256_file(part / f"{name}.parquet")
        stats |= {"tar_sha256": sha256, "tar_bytes": tar.stat().st_size, "table_sha256": table_sha256}
    write_text(part / f"{name}_stats.json", json.dumps(stats, indent=4, ensure_ascii=False) + "\n")
    return sha256


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system behind a symbolic link
        shutil.copyfile(source, target)


def shards_show(shards: Path, image_ids: frozenset[str], tar_of: FetchTar | None = None) -> bool:
    """Whether data/shards (or a laid out version of it) holds one of these pictures.

    Args:
        shards: with its manifest.
        image_ids: sha256s of the pictures as they came.
        tar_of: (sha256, bytes) -> a tar that does not lie in the folder.

    Raises:
        DataError: there is no manifest, or a tar is missing.
        FormatError: the manifest has another schema_version or layout.
    """
    return any(sample["image_id"] in image_ids for _, _, sample in iter_rows(shards, tar_of))


def index_shows(index: Path, image_ids: frozenset[str]) -> bool:
    """Whether data/index holds a vector of one of these pictures."""
    ids = pq.read_table(index / "items.parquet", columns=["image_id"])["image_id"].to_pylist()
    return not image_ids.isdisjoint(ids)


def iter_rows(shards: Path, tar_of: FetchTar | None = None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(split, tar, JSON of the sample) of every sample of data/shards, without reading a picture. Raises as above."""
    manifest = read_manifest(shards)
    for split in SPLITS:
        for shard in manifest.splits[split].shards:
            path = shards / shard.path
            if not path.is_file() and tar_of is not None:
                path = tar_of(shard.sha256, shard.num_bytes)
            try:
                with path.open("rb") as file:
                    for _, _, offset, size in shard.offsets:
                        file.seek(offset)
                        yield split, shard.path, json.loads(file.read(size))
            except FileNotFoundError:
                raise DataError(f"{path}: named in the manifest but missing; run `align shard` again") from None


def seen(
    shards: Path,
    image_ids: frozenset[str],
    *,
    text: str | None = None,
    tar_of: FetchTar | None = None,
) -> dict[str, int]:
    """Split -> how many pairs of these pictures (with this text) are in it. Other arguments, errors: `shards_show`."""
    counts: Counter[str] = Counter()
    for split, _, sample in iter_rows(shards, tar_of):
        if sample["image_id"] in image_ids:
            counts[split] += sum(1 for one in sample["texts"] if text is None or one == text)
    return +counts


def tars_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Tar -> (sha256, bytes), of the manifest of data/raw or data/shards; empty where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return {}
    if "splits" in manifest:
        rows = [row for split in manifest["splits"].values() for row in split["shards"]]
        return {row["path"]: (row["sha256"], row["num_bytes"]) for row in rows}
    return {f"{row['name']}.tar": (row["tar_sha256"], row["tar_bytes"]) for row in manifest["shards"]}
