"""`align init DIR`: a project of one's own, apart from the checkout; a git and DVC repository in which all works.

The code stays the installed package. So the code deps of dvc.yaml, which are files of the checkout, become one DVC
parameter for each stage: the digest of its code in code.yaml (see `align.declared`).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from align.cli import read_params
from align.config import Params, load_params
from align.config.checks import wrong_parameters
from align.config.params import PARAMS_FILE
from align.config.params_file import editor, write_params
from align.config.paths import INPUTS, READ, ROOT, require_declared
from align.config.profile import profile_overrides
from align.console import show
from align.declared import CODE_FILE, DVC_FILE, declared_outs, read_yaml
from align.errors import ConfigError, DataError
from align.files import (
    clear_leftovers,
    fsync_all,
    make_parent,
    require_replaceable,
    swap,
    temporary_name,
    to_json,
    write_text,
)
from align.filter.rules import RULES
from align.formats.acceptances import write_acceptances
from align.formats.drift_reference import REFERENCE
from align.formats.policy import OptedOut, write_opted_out
from align.git import git, identity
from align.installed import installed
from align.provenance import digest
from align.verbs import STAGES

TEMPLATE = Path(__file__).with_name("template")
#: Taken over as they are in the checkout.
COPIED = (
    "prefect.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore", "data/policy/README.md",
    "infra/env.example",
)  # fmt: skip

_CODE_HEADER = f"""\
# Stage: digest of the code in the installed align that decides its bytes. DVC compares it with {DVC_FILE}'s record; a
# stage refuses to run with other code. `align init --update` writes this file.
"""


def main(params: Params, args: argparse.Namespace) -> None:
    """Makes a project, or updates the one in the working directory.

    Raises:
        ConfigError: a value is refused.
        DataError: the folder exists and is not empty, or git fails.
    """
    if args.update:
        update(Path())
        return
    overrides = [*profile_overrides(str(TEMPLATE / "params.yaml")), *args.overrides]
    values = load_params(args.params, overrides).values
    chosen = {key: _value(values, key) for key in (override.partition("=")[0] for override in overrides)}
    typed = {override.partition("=")[0] for override in args.overrides}
    # a relative path is meant from where the person types it
    chosen |= {key: _from_here(key, chosen[key], args.directory) for key in READ if key in typed}
    init(args.directory, params.source, chosen)
    archive = chosen["paths.archive"]
    show(
        f"{args.directory}: a project, committed to git; it reads {archive} (paths.archive in params.yaml)",
        f"next: cd {args.directory} && dvc repro",
        'then: align search "your words" --html hits.html',
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
        hint = "it is a project already" if (directory / CODE_FILE).exists() else "it is not empty"
        raise DataError(f"{directory}: {hint}; choose a new folder")
    require_replaceable(directory, "init")
    make_parent(directory)
    clear_leftovers(directory)
    part = temporary_name(directory)
    part.mkdir()
    try:
        _fill(part, params_file, chosen)
        _require_usable(part, directory)
        _commit(part)
        fsync_all(part)
        swap(part, directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def update(root: Path) -> None:
    """Writes code.yaml for the installed code, and says which stages become stale, and which parameters are new.

    Raises:
        ConfigError: the folder is no project.
    """
    old = read_yaml(root / CODE_FILE)
    if not old:
        raise ConfigError(f"{(root / CODE_FILE).absolute()}: no such file; start in a folder that `align init` made")
    new = _digests()
    changed = [stage for stage in new if new[stage] != old.get(stage)]
    if changed:
        _write_code(root / CODE_FILE, new)
        show(
            f"{CODE_FILE}: new code for {', '.join(changed)}; `dvc repro` runs these stages, and those that read what "
            "they write if it differs",
            f"commit it: git commit -m 'align upgraded' {CODE_FILE}",
        )
    else:
        show(f"{CODE_FILE}: up to date; no stage becomes stale")
    ours, written = read_yaml(root / DVC_FILE).get("stages", {}), _dvc_yaml()[1]
    if different := [stage for stage in written if written[stage] != ours.get(stage)]:
        show(
            f"{DVC_FILE}: this align would write {', '.join(different)} differently; `align init NEW_FOLDER` makes one "
            "to compare with"
        )
    _say_wrong(root / PARAMS_FILE)


def _say_wrong(file: Path) -> None:
    """Prints parameters that the installed align needs and the file lacks, as its own params.yaml has them."""
    params, default = load_params(file), installed(PARAMS_FILE)
    text = default.read_text("utf-8")
    lines, ours = text.splitlines(), editor().load(text)
    wrong = {key: "" for key in ours if key not in params.values} | wrong_parameters(params, RULES)
    missing = [key for key in wrong if _line(ours, key) is not None and not _has(params.values, key)]
    missing.sort(key=lambda key: _line(ours, key) or 0)
    if missing:
        show(f"{PARAMS_FILE}: this align needs parameters that are not there; put them in, with the values you want:")
    shown: set[int] = set()
    for key in missing:
        parts = key.split(".")
        for number in range(1, len(parts) + 1):
            line = _line(ours, ".".join(parts[:number]))
            if line is not None and line not in shown:
                block = lines[line : _end(lines, line)] if number == len(parts) else [lines[line]]
                show(*block)
                shown.add(line)
    show(*(f"{PARAMS_FILE}: {line}" for key, line in wrong.items() if key not in missing))


def _line(document: Any, key: str) -> int | None:
    """The number of the line, from 0, in which a key (`section.key`) stands; None where it is not there."""
    *parents, last = key.split(".")
    for part in parents:
        document = document.get(part) if isinstance(document, dict) else None
    if not isinstance(document, CommentedMap) or last not in document:
        return None
    line: int = document.lc.key(last)[0]
    return line


def _end(lines: Sequence[str], first: int) -> int:
    """The number of the line after what stands below a key."""
    indent = len(lines[first]) - len(lines[first].lstrip())
    end = first + 1
    while end < len(lines) and len(lines[end]) - len(lines[end].lstrip()) > indent:
        end += 1
    return end


def _has(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _value(values: Mapping[str, Any], key: str) -> Any:
    node: Any = values
    for part in key.split("."):
        node = node[part]
    return node


def _from_here(key: str, value: Any, directory: Path) -> Any:
    """The path as it is right inside the project: absolute, or relative where it lies in the project."""
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
    return value  # it is to be in the project


def _absolute(path: Path) -> Path:
    """Without `..`, and with symbolic links as they are."""
    return Path(os.path.normpath(Path.cwd() / path))


def _require_usable(part: Path, directory: Path) -> None:
    """Checks the parameters of a new project as its stages will, which run in `directory`.

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
    write_text(part / DVC_FILE, (TEMPLATE / "dvc_header.txt").read_text("utf-8") + "\n" + _dvc_yaml()[0])
    _write_code(part / CODE_FILE, _digests())
    write_acceptances((), part / "data/policy")
    write_opted_out(part / "data/policy", OptedOut())
    write_text(part / "data/policy" / REFERENCE, to_json({"reference": None, "schema_version": 1}))
    write_text(part / "data/evaluation/README.md", "Evaluation sets: NAME.tar with NAME.json. See the README above.\n")
    write_text(part / "data/queries.json", to_json({"schema_version": 1, "queries": [], "composed": []}))


def _dvc_yaml() -> tuple[str, dict[str, Any]]:
    """dvc.yaml with a parameter in place of the code deps: its text without the header, and its stages."""
    yaml = editor()
    document = yaml.load(installed(DVC_FILE).read_text("utf-8"))
    for name, stage in document["stages"].items():
        deps = stage["deps"]
        for number in reversed(range(len(deps))):
            if deps[number].startswith("align/"):
                del deps[number]
        if "params" not in stage:
            stage.insert(list(stage).index("outs"), "params", [])
        stage["params"].append({CODE_FILE: [name]})
    text = io.StringIO()
    yaml.dump(document, text)
    whole = text.getvalue()
    return whole[whole.index("\nstages:") + 1 :], document["stages"]


def _digests() -> dict[str, str]:
    return {stage: digest(verb.module) for stage, verb in STAGES.items()}


def _write_code(file: Path, digests: Mapping[str, str]) -> None:
    write_text(file, _CODE_HEADER + "".join(f"{stage}: {value}\n" for stage, value in digests.items()))


def _commit(root: Path) -> None:
    """By git's own plumbing, so that no hook of the person runs, and nothing asks for a key to sign with."""
    git(root, "init", "--quiet")
    git(root, "add", "--force", ".")  # whatever the person's own settings ignore
    tree = git(root, "write-tree")
    commit = git(root, "commit-tree", tree, "-m", "A project of align", env=identity(root))
    git(root, "update-ref", "HEAD", commit)
