"""diff: compares two versions of the data. Which pairs entered and left, why, and how the kept pairs differ.

A version is a git revision with a dvc.lock (such as run/demo), whose tables come from DVC's cache or remotes, or a
folder that holds data/raw and data/filtered (such as data). See `align.lineage.diff.tables`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from align.config import Params
from align.config.engine import EngineConfig
from align.config.paths import PathsConfig
from align.display.console import say, show, show_json
from align.durable.files import to_json, write_text
from align.errors import DataError
from align.lineage.diff.page import as_page, text_lines
from align.lineage.diff.tables import VersionTables, compare
from align.lineage.versions.data_versions import DataVersions
from align.services.engine import open_engine


def main(params: Params, args: argparse.Namespace) -> None:
    """`align diff`: find the tables of both versions, compare them, print the report."""
    paths, config = params.section(PathsConfig), params.section(EngineConfig)
    with tempfile.TemporaryDirectory(prefix="align-", dir=config.temp_directory) as scratch:
        versions = DataVersions(Path.cwd(), Path(scratch))
        before, after = (find_tables(name, paths, versions) for name in (args.before, args.after))
        with open_engine(config) as engine:
            report = compare(engine, before, after)
    if args.html:
        write_text(args.html, as_page(report))
        say(f"diff: {args.html} written")
    if args.json:
        show_json(to_json(report.model_dump(mode="json")))
    else:
        show(*text_lines(report))


def find_tables(name: str, paths: PathsConfig, versions: DataVersions) -> VersionTables:
    """The tables of a folder or of a git revision.

    Raises:
        DataError: it is neither, it has no such data, or its tables are gone from DVC's cache and remotes.
    """
    if Path(name).is_dir():
        return VersionTables(name, Path(name) / paths.raw.name, Path(name) / paths.filtered.name)
    outs = versions.lock(name)
    folders = []
    for path in (paths.raw.as_posix(), paths.filtered.as_posix()):
        if path not in outs:
            raise DataError(f"'{name}': its dvc.lock has no {path}; was that another pipeline, or a run cut short?")
        folder = versions.lay_out(outs[path], "*.parquet")
        if folder is None:
            problems = "".join(f" ({why})" for why in versions.unreachable.values())
            raise DataError(f"'{name}': the tables of {path} are neither in DVC's cache nor in a remote{problems}")
        folders.append(folder)
    return VersionTables(name, *folders)
