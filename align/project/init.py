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
from typing import Any

from align.cli import read_params
from align.config import Params, load_params
from align.config.params import PARAMS_FILE, chosen_values, profile_overrides, write_params
from align.config.paths import INPUTS, READ, ROOT, require_declared
from align.display.console import show
from align.durable.files import replace_directory, to_json, write_text
from align.errors import ConfigError, DataError
from align.formats.acceptances import write_acceptances
from align.formats.drift_reference import REFERENCE
from align.formats.policy import OptedOut, write_opted_out
from align.project.declared import DVC_FILE, declared_outs
from align.project.installed import installed
from align.services.git import git, identity

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
        DataError: the folder exists and is not empty, or git fails.
    """
    overrides = [*profile_overrides(str(TEMPLATE / "params.yaml")), *args.overrides]
    chosen = chosen_values(load_params(args.params, overrides), overrides)
    typed = {override.partition("=")[0] for override in args.overrides}
    # a relative path is meant from where the person types it
    chosen |= {key: _from_here(key, chosen[key], args.directory) for key in READ if key in typed}
    init(args.directory, params.source, chosen)
    archive, made, then = chosen["paths.archive"], "dvc repro", 'align search "your words" --html hits.html'
    if args.profile == CATALOGUE:
        made, then = "align index --source --model FOLDER", "align serve --index catalogue/index --model FOLDER"
    show(
        f"{args.directory}: a project, committed to git; it reads {archive} (paths.archive in params.yaml)",
        f"next: cd {args.directory} && {made}",
        f"then: {then}",
    )


def init(directory: Path, params_file: Path, chosen: Mapping[str, Any]) -> None:
    """Makes a project; the folder appears complete, or not at all.

    Args:
        directory: absent or empty.
        params_file: whose values, with their comments, are taken.
        chosen: `section.key` -> the value to have instead.

    Raises:
        ConfigError: a parameter is refused.
        DataError: the folder is in use, or git fails.
    """
    if directory.is_dir() and any(directory.iterdir()):
        hint = "it is a project already" if (directory / DVC_FILE).exists() else "it is not empty"
        raise DataError(f"{directory}: {hint}; choose a new folder")
    with replace_directory(directory, None) as part:
        _fill(part, params_file, chosen)
        _require_usable(part, directory)
        _commit(part)


def _from_here(key: str, value: Any, directory: Path) -> Any:
    """The path as the project needs it: relative if it lies in the project, else absolute."""
    if not isinstance(value, str) or "://" in value:
        return value
    typed = Path(value).expanduser()
    if typed.is_absolute():
        return str(typed)
    path, project = _absolute(typed), _absolute(directory)
    if path.is_relative_to(project):
        return path.relative_to(project).as_posix()
    if path.exists() or "*" in value:
        return str(path)
    if key == "paths.archive":
        raise ConfigError(f"--set {key}={value}: {path}: no such file or folder; give the path from here")
    return value  # it will be in the project


def _absolute(path: Path) -> Path:
    """Without `..`, and with symbolic links as they are."""
    return Path(os.path.normpath(Path.cwd() / path))


def _require_usable(part: Path, directory: Path) -> None:
    """Checks the parameters of a new project as its stages will when they run in `directory`.

    Raises:
        ConfigError: a value is wrong, or a stage would write elsewhere than dvc.yaml says.
    """
    paths = load_params(part / PARAMS_FILE).values["paths"]
    read = {name: paths[name] for name in sorted(INPUTS) if isinstance(paths[name], str) and "://" not in paths[name]}
    there = {name: str(_absolute(directory / value)) for name, value in ({ROOT: paths[ROOT]} | read).items()}
    try:
        require_declared(paths, declared_outs(part))
        read_params(part / PARAMS_FILE, [f"paths.{name}={json.dumps(value)}" for name, value in there.items()])
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
