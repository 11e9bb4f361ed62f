"""A catalogue: any folder of pictures, or a table that names their files, indexed with any model; no filter, no shards.

A row of the table is an image of the index, with its other columns. New pictures are embedded some hundred at a time in
the work folder, where a killed run resumes. An update takes what it can from the index before; its bytes are those of a
new index. A row without a picture that can be read is left out, for a reason that is said (`align.search.left_out`).
"""

from __future__ import annotations

import argparse
import hashlib
import html
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from align.arguments.stages import CATALOGUE as OUT
from align.config import Params
from align.config.ingest import IngestConfig
from align.config.paths import PathsConfig
from align.config.search import IndexConfig
from align.display.console import say, track
from align.durable.files import sha256_file
from align.durable.work import key_of, work_directory
from align.errors import ConfigError, DataError
from align.formats.image_index import CATALOGUE, VECTORS, ImageIndex, IndexFacts, write_index
from align.formats.indexed_images import ROWS_AT_ONCE, Vectors32
from align.formats.model_folder import model_digest, origin
from align.formats.table import PICTURE_COLUMNS, TEXT_COLUMNS, Table, find_column
from align.formats.written_numbers import read_column
from align.model.embedder import IMAGES_AT_ONCE, Embedder, SearchEncoder
from align.pairs.picture import PictureError
from align.pairs.text import normalise
from align.project import provenance
from align.search.embed_shards import thumbnail, write_table
from align.search.given_model import given_model
from align.search.inputs import image_files
from align.search.left_out import LeftOut
from align.search.surely import ask_held_out, promised
from align.services.dvc.outs import require_no_out
from align.services.vector_index import VectorIndex

_MAX_ROWS, _MAX_COLUMNS = 1_000_000, 64
#: Characters of a column's name, and of a value.
_MAX_NAME, _MAX_VALUE = 100, 1_000
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_PICTURES_AT_ONCE = 10 * IMAGES_AT_ONCE
_PIECES = ".embedded"
#: Rows by whose texts the model is tried, so many that fewer tell nothing, and the share of the others that a picture
#: comes before if the model knows such.
_NUM_ASKED, _FEW, _KNOWN = 80, 20, 0.6
_UNKNOWN = "the model may know another kind of pictures, or these texts do not say what they show"
_SCHEMA = pa.schema([("image_id", pa.string()), ("thumbnail", pa.binary()), ("vector", pa.binary())])


class _Entry(NamedTuple):
    """A row. `key` is its picture's name; the second row of a picture has `#2` after it."""

    row: int
    key: str
    image_id: str
    path: Path
    text: str
    values: tuple[str, ...]


class _Catalogue:
    """The rows of a source that have a picture, in order, and those that have none."""

    def __init__(self, source: Path, config: IngestConfig) -> None:
        self.columns: list[str] = []
        self.entries: list[_Entry] = []
        self._numbers, self._ids = Counter[str](), dict[str, str]()
        self.left_out = LeftOut(source if source.is_dir() else source.parent, config.max_record_bytes)
        if source.is_dir():
            for path in image_files(source)[0]:
                self._add(0, path.relative_to(source).as_posix(), "", ())
        else:
            with source.open("rb") as stream:
                named = [config.columns.url, *config.columns.texts]
                self._read(Table(stream, str(source), [name for name in named if name]), source, config)

    def _read(self, table: Table, file: Path, config: IngestConfig) -> None:
        picture = table.column("pictures", config.columns.url, PICTURE_COLUMNS, "ingest.columns.url", lists=True)
        text = next(iter(config.columns.texts), None)
        if text or find_column(TEXT_COLUMNS, table.names):
            text = table.column("texts", text, TEXT_COLUMNS, "ingest.columns.text", lists=True)
        others = {normalise(name): name for name in table.names if name not in (picture, text)}
        others = dict([one for one in others.items() if 0 < len(one[0]) <= _MAX_NAME][:_MAX_COLUMNS])
        self.columns = list(others)
        said = f"pictures from column '{picture}', texts from " + (f"'{text}'" if text else "their names")
        say(f"index: {file}: {'; '.join(filter(None, [table.layout, said]))}; columns: {', '.join(self.columns)}")
        first = table.first_row
        for number, row in enumerate(table.rows([picture, text, *others.values()]), first):
            if number - first >= _MAX_ROWS:
                raise DataError(f"{file}: more than {_MAX_ROWS:,} rows; divide it")
            if row is None:
                self.left_out.add(
                    number, "", "that do not fit the columns; in a CSV, quote texts that hold its separator"
                )
            else:
                values = tuple(normalise(_plain(value))[:_MAX_VALUE] for value in row[2:])
                self._add(number, _plain(row[0]), _plain(row[1]), values)

    def _add(self, row: int, written: str, text: str, values: tuple[str, ...]) -> None:
        name = os.path.normpath(written.replace("\\", "/")) if written else ""
        path = self.left_out.folder / name
        try:
            if not self.left_out.has_picture(row, written, name):
                return
            image_id = self._ids.get(name) or self._ids.setdefault(name, sha256_file(path))
        except OSError:
            self.left_out.add(row, written, "whose picture cannot be read")
            return
        self._numbers[name] += 1
        key = name if self._numbers[name] == 1 else f"{name}#{self._numbers[name]}"
        words = (
            normalise(_TAG.sub(" ", html.unescape(normalise(text))))
            or normalise(re.sub("[-_]", " ", path.stem))
            or name
        )
        self.entries.append(_Entry(row, key, image_id, path, words, values))


def _plain(value: Any) -> str:
    """A cell as text: of a list the first one, of an object nothing."""
    if isinstance(value, (list, pa.Array)):
        value = next(iter(value[:1]), None)
    value = value.as_py() if isinstance(value, pa.Scalar) else value
    return "" if value is None or isinstance(value, (dict, list, bytes)) else str(value).strip()


def index_catalogue(
    config: IndexConfig,
    source: Path,
    reading: IngestConfig,
    encoder: SearchEncoder,
    digest: str,
    out: Path,
    *,
    update: bool,
) -> int:
    """Makes the index of a catalogue.

    Args:
        config: section `index`.
        source: a folder of pictures, or a table.
        reading: names the table's columns (`columns`), and says how large a file may be.
        encoder: the model.
        digest: names it.
        out: the index; replaced whole.
        update: take vectors and thumbnails from the index in `out`.

    Returns:
        The number of pictures that were embedded.

    Raises:
        ConfigError: there would be no thumbnails, and a page has nothing else to show.
        DataError: no row has a picture, the table is damaged or lacks a column, a file changes meanwhile, or the index
            in `out` was made with another model.
        LockedError: another run is making the index.
    """
    if not config.thumbnail_px:
        raise ConfigError("index.thumbnail_px=0: an index without shards shows its thumbnails; set 160")
    if not source.exists():
        raise DataError(f"--source {source}: no such file or folder")
    found = _Catalogue(source, reading)
    if not found.entries:
        raise DataError(f"{source}: nothing to index: {found.left_out.tell(source, out)}")
    content = key_of([[one.key, one.image_id, one.text, *one.values] for one in found.entries], found.columns)
    old, known = _before(config, digest, out, len(found.entries)) if update else (None, dict[str, str]())
    lacking = list({one.image_id: one.path for one in found.entries if one.image_id not in known}.items())
    with work_directory(out, "index", key_of(config, digest, content, provenance.digest(__name__))) as folder:
        new = _embedded(folder / _PIECES, lacking, encoder, config.thumbnail_px)
        new = {image_id: one for image_id, one in new.items() if one[1]}
        entries = [one for one in found.entries if one.image_id in known or one.image_id in new]
        for one in found.entries:
            if one.image_id not in known and one.image_id not in new:
                found.left_out.add(one.row, one.key, "whose picture does not decode")
        found.left_out.tell(source, out)
        if not entries:
            raise DataError(f"{source}: no picture decodes, so there is nothing to index")

        def embedded(image_id: str) -> tuple[bytes, bytes]:
            if old is None or image_id not in known:
                return new[image_id]
            return old.thumbnail(known[image_id]), old.vector(known[image_id]).tobytes()

        some = {one.image_id: one.text for one in entries[:: len(entries) // _NUM_ASKED + 1]}
        vectors = np.stack([np.frombuffer(embedded(image_id)[1], "<f4") for image_id in some])
        warning = None
        if len({*some.values()}) >= _FEW:
            said, is_known = _matched([*some.values()], vectors, encoder)
            warning = None if is_known else f"{said}: {_UNKNOWN}"
            say(f"index: {warning or said}")
        build = partial(VectorIndex.build, num_vectors=len(entries), exact_below=config.exact_below)
        facts = IndexFacts(
            model_digest=digest, shards_digest=content, thumbnail_px=config.thumbnail_px, warning=warning
        )
        write_index(folder, _images(entries, found.columns, embedded), build, facts)
        index = ImageIndex.load(folder, VectorIndex.load)
        if asked := ask_held_out(index, encoder):
            index.promising(promised(asked), folder)
        shutil.rmtree(folder / _PIECES)
    say(f"index: {len(entries):,} images of {source}; {len(lacking):,} pictures were embedded -> {out}")
    return len(lacking)


def _matched(texts: Sequence[str], vectors: Vectors32, encoder: SearchEncoder) -> tuple[str, bool]:
    """How well the model finds pictures, by their (number, width) vectors, from their own texts, in words; whether it
    knows such pictures.
    """
    scores = np.asarray(encoder.embed_texts(texts)) @ vectors.T
    own = scores.diagonal()[:, np.newaxis]
    wins = np.count_nonzero(own > scores) + (np.count_nonzero(own == scores) - len(texts)) / 2
    share = wins / (len(texts) * (len(texts) - 1))
    return f"the text of a row finds its picture before {share:.0%} of the others; by chance 50%", bool(share > _KNOWN)


def _images(
    entries: Sequence[_Entry], names: Sequence[str], embedded: Callable[[str], tuple[bytes, bytes]]
) -> Iterator[tuple[pa.Table, Vectors32]]:
    """The rows of the index, some at a time, with their vectors; `embedded` has thumbnail and vector of an image."""
    columns = [_column(name, entries, place) for place, name in enumerate(names)]
    for start in track(range(0, len(entries), ROWS_AT_ONCE), what="index: joined"):
        some = entries[start : start + ROWS_AT_ONCE]
        thumbnails, vectors = zip(*(embedded(one.image_id) for one in some), strict=True)
        keys, nothing = [one.key for one in some], [0] * len(some)
        # no addresses: an index is given away, and a path says where somebody keeps their pictures
        rows = {
            "key": keys, "image_id": [one.image_id for one in some], "texts": [[one.text] for one in some],
            "split": [CATALOGUE] * len(some), "shard": keys, "offset_bytes": nothing, "size_bytes": nothing,
            "keys": [[key] for key in keys], "page_urls": [[""] for _ in some], "urls": [[""] for _ in some],
            "thumbnail": thumbnails,
        }  # fmt: skip
        if columns:
            rows["columns"] = pa.StructArray.from_arrays([one.slice(start, len(some)) for one in columns], names)
        yield pa.table(rows), np.frombuffer(b"".join(vectors), "<f4").reshape(len(some), -1)


def _column(name: str, entries: Sequence[_Entry], place: int) -> pa.Array:
    """A column: numbers or texts, of which an empty one is missing. Says which cell is why it has texts."""
    values = [one.values[place] for one in entries]
    numbers, note, at = read_column(values)
    if note:
        say(f"index: column {name}, row {entries[at].row}: '{values[at][:60]}' {note}")
    if numbers is None:
        return pa.array([value or None for value in values], pa.string())
    return pa.array(numbers, pa.float64())


def _before(config: IndexConfig, digest: str, out: Path, num_entries: int) -> tuple[ImageIndex | None, dict[str, str]]:
    """The index in `out`, and image_id -> a key in it, of all whose vector and thumbnail are those of a new index."""
    if not out.exists():
        say(f"index: {out}: no index yet, so all pictures are embedded")
        return None, {}
    index = ImageIndex.load(out, VectorIndex.load)
    if index.header.model_digest != digest:
        raise DataError(f"{out}: was made with another model; run it without --update, which embeds all pictures")
    is_rounded = Path(VECTORS).with_suffix(".npy").name in index.header.files
    if index.header.thumbnail_px != config.thumbnail_px or (is_rounded and num_entries < config.exact_below):
        return None, {}
    return index, {item.image_id: item.key for item in index.items}


def _embedded(
    folder: Path, pictures: Sequence[tuple[str, Path]], encoder: SearchEncoder, thumbnail_px: int
) -> dict[str, tuple[bytes, bytes]]:
    """image_id -> thumbnail and vector; the vector is empty if the picture does not decode."""
    folder.mkdir(exist_ok=True)
    found: dict[str, tuple[bytes, bytes]] = {}
    starts = range(0, len(pictures), _PICTURES_AT_ONCE)
    for start in track(starts, what="index: embedded", total=len(starts)):
        some = pictures[start : start + _PICTURES_AT_ONCE]
        piece = folder / f"{key_of([image_id for image_id, _ in some])[:32]}.arrow"
        if not piece.exists():
            write_table(_embed(some, encoder, thumbnail_px), piece)
        with piece.open("rb") as file:
            rows = pa.ipc.open_file(file).read_all().to_pylist()
        found |= {row["image_id"]: (row["thumbnail"], row["vector"]) for row in rows}
    return found


def _embed(pictures: Sequence[tuple[str, Path]], encoder: SearchEncoder, thumbnail_px: int) -> pa.Table:
    rows: list[dict[str, Any]] = []
    decoded: list[bytes] = []
    for image_id, path in pictures:
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != image_id:
            raise DataError(f"{path}: changed while it was indexed; run it again")
        try:
            rows.append({"image_id": image_id, "thumbnail": thumbnail(data, thumbnail_px)})
            decoded.append(data)
        except PictureError:
            rows.append({"image_id": image_id, "thumbnail": b"", "vector": b""})
    # alone in a batch, a vector differs in its last bits
    fill = decoded[-1:] if len(decoded) % IMAGES_AT_ONCE == 1 else []
    vectors = iter(encoder.embed_images([*decoded, *fill]))
    return pa.Table.from_pylist(
        [{"vector": np.asarray(next(vectors), "<f4").tobytes()} | row if row["thumbnail"] else row for row in rows],
        _SCHEMA,
    )


def main(params: Params, args: argparse.Namespace) -> None:
    """`align index --source`."""
    if args.source is None:
        raise ConfigError("--model, --out and --update belong to --source: a folder of pictures, or a table of them")
    require_no_out("--out", out := args.out or OUT)
    model = given_model(args.model, params)
    encoder, digest = Embedder.load(model), model_digest(model)
    say(f"index: the model in {model}, {origin(model)}")
    config, reading = params.section(IndexConfig), params.section(IngestConfig)
    source = Path(args.source or params.section(PathsConfig).archive)
    index_catalogue(config, source, reading, encoder, digest, out, update=args.update)
    of = f" --model {args.model}" if args.model else ""
    say(f'index: align search "your words" --index {out}{of}; a page: align serve --index {out}{of}')
