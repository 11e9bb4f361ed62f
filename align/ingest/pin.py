"""pin: lists the files of a source with what each is now, in a small file that `paths.archive` takes.

DVC's run cache keeps a stage only where each of its inputs is a file or folder here. If `paths.archive` is a bucket or
a web server, every fresh checkout fetches everything again; with such a list, which git keeps, it fetches only what
changed. `align ingest` compares every file with the list before it reads any (`align.services.files.pinned_lists`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from align.config.infrastructure import StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.config.params import Params
from align.display.console import say
from align.errors import DataError
from align.ingest.sources import source_at
from align.ingest.sources.picture_files import is_folder
from align.ingest.sources.reading import is_local
from align.interfaces.store import Files
from align.services.files import pinned_lists
from align.services.files.files import StoreFiles

#: Kinds of source whose files name others, which are read from beside them.
_NAMES_OTHERS = ("html", "coco", "url_table")
_ENDING = ".paths"


def pin(config: IngestConfig, files: Files, location: str, out: Path) -> tuple[int, int]:
    """Writes the list of a source.

    Args:
        config: says what kind of files the source has.
        files: reads them.
        location: as `paths.archive`: a folder, pattern, file or list; here, on s3:// or https://.
        out: the list.

    Returns:
        The number of files, and the number of those for which the server tells only the size.

    Raises:
        DataError: the source has no file, or `out` is not the name of such a list, or another file.
        ServiceError: a server is unavailable.
    """
    _require_list(out)
    source = source_at(config, location, files)
    inputs = [file for file in source.inputs if not file.endswith("/")]
    inside = [file for folder in source.inputs if folder.endswith("/") for file in files.list(folder, ())]
    read = inputs or inside  # a source that is one folder reads all files in it
    if config.source == "url_table":
        read, inside = source.files, [*inside, *inputs]
    if config.source in _NAMES_OTHERS and is_folder(location, inputs):
        inside += files.list(location, ())
    elif config.source in ("html", "coco"):
        say(f"pin: {location}: only the files that name pictures are listed, not pictures beside them; pin the folder")
    beside = sorted({*inside} - {*read})
    every = [*read, *beside]
    stamps = dict(zip(every, files.stamps(every), strict=True))
    pinned_lists.write(out, location, {file: stamps[file] for file in read}, {file: stamps[file] for file in beside})
    return len(every), sum(1 for stamp in stamps.values() if not stamp.strip().partition(" ")[2])


def _require_list(out: Path) -> None:
    if out.suffix != _ENDING:
        raise DataError(f"{out}: the name of a list ends in {_ENDING}; choose such a name")
    if not out.exists():
        return
    if not out.is_file():
        raise DataError(f"{out}: not a file; choose another name")
    with out.open("rb") as stream:
        if pinned_lists.source_of(stream) is None:
            raise DataError(f"{out}: is not a list that `align pin` made, so it is not replaced; choose another name")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align pin`."""
    config = params.section(IngestConfig)
    files = StoreFiles(params.section(StoreConfig), params.section(DownloadConfig))
    num_files, num_without_version = pin(config, files, args.source, args.out)
    if num_without_version:
        say(f"pin: warning: {num_without_version:,} files have no ETag and no date: only their size is compared")
    made = f"pin: {num_files:,} files of {args.source} in {args.out}"
    if is_local(args.source):
        say(
            f"{made}, with their times, which differ after every clone and every `dvc pull`: the list holds in this "
            f"folder only. For others set paths.archive: {args.source}"
        )
    else:
        say(f"{made}; commit it, and set paths.archive: {args.out}")
