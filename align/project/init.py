"""`align init DIR`: makes a project of one's own apart from the checkout, a git and DVC repository with all commands.

The code stays the installed package; `align.project.code` tells DVC of it, as in a checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from align.cli import read_params
from align.config import Params, load_params
from align.config.infrastructure import StoreConfig
from align.config.ingest import IngestConfig
from align.config.params import PARAMS_FILE, chosen_values, flattened, profile_overrides, write_params
from align.config.paths import INPUTS, READ, ROOT, PathsConfig, require_declared
from align.display.console import show
from align.durable.files import replace_directory, to_json, write_text
from align.errors import ConfigError, DataError
from align.formats.acceptances import write_acceptances
from align.formats.drift_reference import REFERENCE
from align.formats.policy import OptedOut, write_opted_out
from align.project.declared import DVC_FILE, declared_outs
from align.project.installed import installed
from align.services.files.files import StoreFiles
from align.services.git import git, git_if_any, identity

#: The profile of projects that train nothing.
CATALOGUE = "catalogue"
TEMPLATE = Path(__file__).with_name("template")
#: Files that are copied from the checkout unchanged.
COPIED = (
    "dvc.yaml", "prefect.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore", "data/policy/README.md",
    "infra/env.example",
)  # fmt: skip


def main(params: Params, args: argparse.Namespace) -> None:
    """Makes a project.

    Raises:
        ConfigError: a value is refused.
        DataError: the folder is not empty, and not this project; `align ingest` would refuse the source; or git fails.
    """
    overrides = [*profile_overrides(str(TEMPLATE / "params.yaml")), *args.overrides]
    chosen = chosen_values(load_params(args.params, overrides), overrides)
    typed = {override.partition("=")[0] for override in args.overrides}
    # a relative path is meant from where the person types it
    chosen |= {key: _from_here(key, chosen[key], args.directory) for key in READ if key in typed}
    made_now = init(args.directory, params.source, chosen, ingests=args.profile != CATALOGUE)
    archive, made, then = chosen["paths.archive"], "dvc repro", 'align search "your words" --html hits.html'
    if args.profile == CATALOGUE:
        made, then = "align index --source --model FOLDER", "align serve --index catalogue/index --model FOLDER"
    what = "committed to git" if made_now else "here already, which stays as it is"
    show(
        f"{args.directory}: a project, {what}; it reads {archive} (paths.archive in params.yaml)",
        f"next: cd {args.directory} && {made}",
        f"then: {then}",
    )


def init(directory: Path, params_file: Path, chosen: Mapping[str, Any], *, ingests: bool = True) -> bool:
    """Makes a project; the folder appears complete, or not at all.

    Args:
        directory: absent or empty; or a project of the same values, which stays as it is: then the answer is False.
        params_file: whose values, with their comments, are taken.
        chosen: `section.key` -> the value to have instead.
        ingests: whether `align ingest` is to read `paths.archive`.

    Raises:
        ConfigError: a parameter is refused.
        DataError: the folder is in use; the source, if it is here, is none of `ingest.source`; or git fails.
    """
    if directory.is_dir() and any(directory.iterdir()):
        _require_same(directory, params_file, chosen)
        return False
    with replace_directory(directory, None) as part:
        _fill(part, params_file, chosen)
        params = _require_usable(part, directory)
        if ingests:
            _require_source(params, directory)
        _commit(part)
    return True


def _require_same(directory: Path, params_file: Path, chosen: Mapping[str, Any]) -> None:
    """Raises DataError if a folder that is in use is no project of these values; later edits of it do not count."""
    if not (directory / DVC_FILE).exists():
        raise DataError(f"{directory}: it is not empty; choose a new folder")
    first = (git_if_any(directory, "rev-list", "--max-parents=0", "HEAD") or "none").strip()
    if (text := git_if_any(directory, "show", f"{first}:{PARAMS_FILE}")) is None:
        raise DataError(f"{directory}: it is a project already; choose a new folder")
    with TemporaryDirectory(prefix="align-") as scratch:
        then, now = Path(scratch, "then.yaml"), Path(scratch, "now.yaml")
        write_text(then, text)
        shutil.copyfile(params_file, now)
        write_params(now, chosen)
        old, new = (flattened(load_params(file).values) for file in (then, now))
    if differ := sorted(key for key in old | new if old.get(key) != new.get(key)):
        other = f"made with other values of {', '.join(differ[:3])}{', ...' * (len(differ) > 3)}"
        raise DataError(
            f"{directory}: it is a project already, {other}; edit its {PARAMS_FILE}, or choose a new folder"
        )


def _require_source(params: Params, directory: Path) -> None:
    """Raises DataError if `align ingest` would refuse what it is to read, as far as that is here by now."""
    paths = params.section(PathsConfig)
    if "://" in paths.archive or not ("*" in paths.archive or Path(paths.archive).exists()):
        return
    from align.ingest.sources import open_source, require_seen_by_dvc

    config = params.section(IngestConfig)
    try:
        source = open_source(config, paths.archive, StoreFiles(params.section(StoreConfig)))
    except DataError as error:
        profiles = "--profile photographs for pictures with captions, --profile url_table for addresses"
        raise DataError(f"{error} (ingest.source is {config.source}; {profiles})") from None
    require_seen_by_dvc(source, paths.archive, directory / paths.raw)


def _from_here(key: str, value: Any, directory: Path) -> Any:
    """The path as the project needs it: relative if it lies in the project, else absolute."""
    if not isinstance(value, str) or "://" in value:
        return value
    typed = Path(value).expanduser()
    path, project = _absolute(typed), _absolute(directory)
    if path.is_relative_to(project):
        return str(typed) if typed.is_absolute() else path.relative_to(project).as_posix()
    if path.exists() or "*" in value:
        return str(path)
    if key == "paths.archive":
        raise ConfigError(f"--set {key}={value}: {path}: no such file or folder; give the path from here")
    return str(typed)  # it will be in the project


def _absolute(path: Path) -> Path:
    """Without `..`, and with symbolic links as they are."""
    return Path(os.path.normpath(Path.cwd() / path))


def _require_usable(part: Path, directory: Path) -> Params:
    """The parameters of a project, absolute paths of what is read, checked as its stages will when they run there.

    Raises:
        ConfigError: a value is wrong, or a stage would write elsewhere than dvc.yaml says.
    """
    paths = load_params(part / PARAMS_FILE).values["paths"]
    read = {name: paths[name] for name in sorted(INPUTS) if isinstance(paths[name], str) and "://" not in paths[name]}
    there = {name: str(_absolute(directory / value)) for name, value in ({ROOT: paths[ROOT]} | read).items()}
    try:
        require_declared(paths, declared_outs(part))
        return read_params(part / PARAMS_FILE, [f"paths.{name}={json.dumps(value)}" for name, value in there.items()])
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(part), str(directory))) from None


def _fill(part: Path, params_file: Path, chosen: Mapping[str, Any]) -> None:
    for folder in (".dvc", "infra", "data/policy", "data/evaluation"):
        (part / folder).mkdir(parents=True)
    for name in COPIED:
        shutil.copyfile(installed(name), part / name)
    for name in ("Makefile", "README.md"):
        shutil.copyfile(TEMPLATE / name, part / name)
    shutil.copyfile(params_file, part / "params.yaml")
    write_params(part / "params.yaml", chosen)
    write_acceptances((), part / "data/policy")
    write_opted_out(part / "data/policy", OptedOut())
    write_text(part / "data/policy" / REFERENCE, to_json({"reference": None, "schema_version": 1}))
    write_text(part / "data/evaluation/README.md", "Evaluation sets: NAME.tar with NAME.json. See the README above.\n")
    write_text(part / "data/queries.json", to_json({"schema_version": 1, "queries": [], "composed": []}))


def _commit(root: Path) -> None:
    """Uses git's plumbing, so that no hook of the person runs, and nothing asks for a key to sign with."""
    git(root, "init", "--quiet")
    git(root, "add", "--force", ".")  # also what the person's own settings ignore
    tree = git(root, "write-tree")
    commit = git(root, "commit-tree", tree, "-m", "A project of align", env=identity(root))
    git(root, "update-ref", "HEAD", commit)
