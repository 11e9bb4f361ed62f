"""A folder of pictures with their texts: in tables of file names, or in a `.txt` beside each picture.

    photos/captions.csv + photos/images/0001.jpg     any table that `tables.py` reads, and any number of them
    photos/0001.jpg + photos/0001.txt                each line is a text

A name in a table is relative to the table's folder, see `picture_files.py`. Several rows of one picture, or a list of
texts, give a pair each. Every row of a table gives a row, with a problem where there is no such picture. Pictures
without a text are counted, and so are all other files. With `ingest.folder_text`, pictures without a text have one with
the name of their folder.

A table may also be given alone: its pictures are then beside it, or in a folder of a usual name there. Parquet may have
the pictures inside (`inside.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.display.console import say
from align.errors import DataError
from align.formats.sample_texts import MAX_TEXT_BYTES, TEXT_EXTENSIONS
from align.formats.table import PICTURE_COLUMNS, PICTURE_SUFFIXES, TABLES, NoColumnError, is_picture_name
from align.ingest.limits import MAX_TEXTS, TooLarge, read_at_most
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.inside import Part, PicturesInside
from align.ingest.sources.picture_files import (
    IMPOSSIBLE,
    NEAR_TABLES,
    PictureFiles,
    below,
    folder_of,
    is_file_name,
    is_folder,
    read_picture,
)
from align.ingest.sources.reading import Batches, Within, is_file, is_local, is_on_web
from align.ingest.sources.tables import Tables, WrittenPairs, add_pairs
from align.ingest.sources.texts import TOO_MANY, Sourced
from align.interfaces.store import Files

#: Names that systems and archives leave in folders, such as `.git/`, `._0001.jpg`.
_HIDDEN = (".", "__MACOSX")
#: So many files that are left out are named; more are only counted. So many texts may turn out to be tables.
_NAMED = 10
#: Tables that are looked at although a picture has the same name; a `.json` there describes that picture.
_NEVER_OF_ONE_PICTURE = tuple(suffix for suffix in TABLES if not suffix.startswith(".json"))
_KINDS = ", ".join((*TABLES[1:6], TABLES[0]))
_ADDRESS = "an address, no file: ingest.source url_table fetches it"
_NO_NAME = "no file name"


class Folder:
    """A source (`align.ingest.sources.Source`).

    One scan reads all of it: only that tells which pictures have no text. Tables with pictures inside are apart.
    """

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when the location has no picture with a text."""
        self._tables = Tables(config, files, PICTURE_COLUMNS)
        listed = [location] if self._is_table(files, location) else files.list(location, (), config.paths_root)
        if any(map(is_on_web, listed)):
            raise DataError(f"{location}: a web server lists no files; copy the pictures to a folder or s3://")
        self._config, self._location, self._store = config, location, files
        self._folder = folder_of(location, listed)
        contents = _Contents(self._folder, listed)
        self._alone = not contents.pictures
        self._chosen = self._choose_tables(contents)
        self._inside = PicturesInside(config, files, self._tables, self._folder)
        self._parts = {name: part for name, part in self._inside.tasks(self._chosen).items() if part.groups is not None}
        self._in_parts = {part.file for part in self._parts.values()}
        self.files = [*([] if location in self._parts else [location]), *self._parts]
        whole = is_folder(location, listed)
        self._listed = None if whole else listed  # a folder may have a million files: no copy for each process
        self.inputs = [f"{self._folder}/"] if whole else [*listed, *self._beside()]

    def _is_table(self, files: Files, location: str) -> bool:
        """Whether the location is a .txt that is a table, and no list of files."""
        if not location.lower().endswith(".txt") or "*" in location or not is_file(files, location):
            return False
        try:
            self._tables.look_at(location)
        except NoColumnError:
            return False
        return True

    def _beside(self) -> Sequence[str]:
        """What decides the pairs of a table alone besides itself."""
        if not self._alone or self._in_parts.issuperset(self._chosen):
            return []
        if not is_local(self._folder):
            return [f"{self._folder}/"]  # a listing, instead of a request for each picture
        found = (batch["file"].to_pylist() for batch in self.scan(self.files[0], Counter()))
        return sorted({file for files in found for file in files if file is not None})

    def _choose_tables(self, contents: _Contents) -> list[str]:
        """The tables that have the columns; says which columns are taken, and which files are left out."""
        chosen: list[str] = []
        errors: list[DataError] = []
        for table in [*contents.tables, *contents.perhaps_tables[:_NAMED]]:
            try:
                found = self._tables.look_at(table)
            except DataError as error:
                if not isinstance(error, NoColumnError) and not table.lower().endswith((".json", ".json.gz")):
                    raise  # damaged; a damaged .json cannot be told from another kind of file
                if table in contents.tables:
                    errors.append(error)
                continue
            chosen.append(table)
            for line in found:
                say(f"ingest: {table}: {line}")
        if not chosen and not contents.num_texts and self._config.folder_text is None:
            raise self._without_text(contents, errors)
        for reason in errors[:_NAMED]:
            say(f"ingest: a table is left out: {reason}")
        if others := [file for file in contents.others if file not in chosen]:
            more = f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else ""
            names = ", ".join(below(self._folder, file) for file in others[:_NAMED])
            say(f"ingest: {self._location}: other files, left out: {len(others):,} ({names}{more})")
        return chosen

    def _without_text(self, contents: _Contents, errors: Sequence[DataError]) -> DataError:
        where = self._location
        if errors:
            of = f"none of its {len(errors):,} tables can be used. The first: " if len(errors) > 1 else ""
            return DataError(f"{where}: {of}{errors[0]}" if of else str(errors[0]))
        if not contents.pictures:
            return DataError(f"{where}: neither a picture nor a table ({_KINDS}) is there; check paths.archive")
        names = (below(self._folder, picture) for picture in contents.pictures)
        classes = sorted({name.rpartition("/")[0] for name in names} - {""})
        text = f"{where}: {len(contents.pictures):,} pictures without a text: no table ({_KINDS}), no .txt beside any"
        if not classes:
            return DataError(f"{text}; add one of these")
        return DataError(
            f"{text}. If folders like {classes[0]} are classes, they are an evaluation set: `format: folder` of a "
            "suite. To take texts from the folders' names anyway, set ingest.folder_text"
        )

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`; also counts pictures_without_text and files_left_out."""
        if file in self._parts:
            yield from self._of_tables([self._parts[file]], None, set(), counts)
            return
        listed = self._store.list(file, ()) if self._listed is None else self._listed
        contents = _Contents(self._folder, listed)
        named_by = None if self._alone else contents.pictures.keys()
        pictures = PictureFiles(self._store, self._folder, named_by, self._near)
        named: set[str] = set()
        tables = [Part(table, None) for table in self._chosen if table not in self._in_parts]
        yield from self._of_tables(tables, pictures, named, counts)
        batches = Batches()
        for path, beside in contents.pictures.items():
            name = below(self._folder, path)
            own = None if name in named else self._own_text(name, beside)
            if own is None:
                counts["pictures_without_text"] += name not in named
                counts["files_left_out"] += beside is not None
                continue
            problem = own.problem or (IMPOSSIBLE if _is_not_utf8(path) else None)
            add_pairs(batches, counts, own, Candidate(name, "", None, None, problem, None if problem else path))
            yield from batches.full()
        left_out = {*contents.others, *contents.tables} - {*self._chosen}
        counts["files_left_out"] += len(left_out)
        yield from batches.rest()

    def _of_tables(
        self, parts: Iterable[Part], pictures: PictureFiles | None, named: set[str], counts: Counter[str]
    ) -> Iterator[pa.RecordBatch]:
        """The pairs of tables, which may name `pictures`; adds the names of pictures to `named`."""
        batches = Batches()
        for table, groups in parts:
            for pairs in self._tables.rows(table, counts, str, groups):
                problem = _NO_NAME if not pairs.picture else None if is_file_name(pairs.picture) else _ADDRESS
                if pairs.inside is not None or pictures is None:
                    picture = self._inside.picture_of(table, pairs)
                else:
                    picture = pictures.picture_of(table, pairs, problem)
                    named.add(picture.url)
                add_pairs(batches, counts, pairs, picture)
                yield from batches.full()
        yield from batches.rest()

    def _near(self) -> Iterator[str]:
        """The pictures beside a table that is given alone, and in folders of the usual names there."""
        if is_local(self._folder):
            yield from (str(path) for path in Path(self._folder).iterdir() if is_picture_name(path.name))
        for name in NEAR_TABLES:
            with suppress(DataError):
                yield from self._store.list(f"{self._folder.rstrip('/')}/{name}/", PICTURE_SUFFIXES)

    def _own_text(self, name: str, beside: str | None) -> WrittenPairs | None:
        """The texts of a picture that no table names; None if it has none."""
        if beside is not None:
            try:
                with self._store.open(beside) as stream:
                    data = read_at_most(stream, MAX_TEXT_BYTES)
            except TooLarge:
                return WrittenPairs(name, [("", None)], None, f"too large: a text above {MAX_TEXT_BYTES:,} bytes")
            lines = [line.strip() for line in data.decode("utf-8-sig", "replace").splitlines()]
            source = beside.rpartition(".")[2].lower()
            texts: list[Sourced] = [(line, source) for line in lines if line] or [("", None)]
            if len(texts) > MAX_TEXTS:
                return WrittenPairs(name, [("", None)], None, TOO_MANY)
            return WrittenPairs(name, texts, None, None)
        folder = name.rpartition("/")[0].rpartition("/")[2]
        if not folder or self._config.folder_text is None:
            return None
        words = folder.replace("_", " ").replace("-", " ").strip()
        return WrittenPairs(name, [(self._config.folder_text.replace("{}", words), "folder")], None, None)

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: the whole file, or the picture in a row of a table."""
        if offset is not None:
            return self._inside.read(file, offset)
        return read_picture(self._store, file, self._config.max_record_bytes, self._folder)


class _Contents:
    """What the files of a folder are, by their names, in order."""

    def __init__(self, folder: str, files: Sequence[str]) -> None:
        within = Within(folder)
        shown = [file for file in files if not _is_hidden(below(folder, file)) and within.holds(file)]
        pictures = [file for file in shown if is_picture_name(file)]
        stems = {_stem(picture) for picture in pictures}
        texts = {_stem(file): file for file in shown if file.lower().endswith(tuple(f".{e}" for e in TEXT_EXTENSIONS))}
        #: Each with the text beside it, or None.
        self.pictures = {picture: texts.get(_stem(picture)) or texts.get(picture) for picture in pictures}
        beside = {text for text in self.pictures.values() if text is not None}
        self.num_texts = len(beside)
        # what is beside a picture under its name mostly describes that picture alone
        self.tables = [file for file in shown if file.lower().endswith(TABLES) and _stem(file) not in stems]
        known = {*pictures, *beside, *self.tables}
        #: Also everything outside of the folder that links lead to.
        self.others = [file for file in files if file not in known]
        #: The others that are tables if they look like one.
        self.perhaps_tables = [
            file for file in shown if file not in known and file.lower().endswith((".txt", *_NEVER_OF_ONE_PICTURE))
        ]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(_HIDDEN) for part in name.split("/"))


def _stem(file: str) -> str:
    folder, slash, name = file.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}"


def _is_not_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return True
    return False
