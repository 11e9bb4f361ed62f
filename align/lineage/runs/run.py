"""One run as `align compare` shows it: parameters, code, data, main metrics, cost.

Parameters are read from the commit's params.yaml, and what the stages wrote, by the hashes in its dvc.lock, from DVC's
cache or its remotes; for the checkout, both from its files. For the cost, see `align.lineage.runs.costs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from ruamel.yaml.error import YAMLError

from align.config.params import INHERITS, PARAMS_FILE, parse_yaml
from align.config.paths import MAKE_PRETRAINED, PathsConfig
from align.errors import DataError, FormatError, without_logins
from align.formats.query_ranks import RANKS
from align.lineage.versions.at_revision import FilesAt, Revisions
from align.services.git import git_if_any

#: The name of the checkout as a run.
HERE = "."
#: What is compared as code, where a repository has it.
CODE = ("align", "flows", "dvc.yaml", "code.yaml")
_METRICS, _MANIFEST, _REPORT, _CONFIG = "metrics.json", "manifest.json", "report.json", "config.json"


@dataclass(frozen=True)
class Measured:
    """A main metric with its 95 % interval and the chance level, all 0 to 1."""

    value: float
    low: float
    high: float
    chance: float

    def differs_from(self, other: Measured) -> bool:
        """Whether the two intervals have no value in common."""
        return self.low > other.high or self.high < other.low


@dataclass
class ComparedRun:
    """One run.

    Attributes:
        name: as it is shown: the branch, the revision, or `.`.
        commit: of the run; of the checkout, HEAD.
        day: the commit's, such as 2026-01-31.
        made_from: the commit that the run's own commit is based on; None for the checkout.
        params: `section.key` -> value, as params.yaml has it.
        metrics: of every stage, by their flat names.
        digests: of the data (sha256 of the shards' manifest), of the packaged model, and, as `set/NAME`, of what each
            set was measured on, as far as they are known.
        costs: see `align.lineage.runs.costs`.
        notes: what could not be read, and how to get it.
        ranks: the file with the rank of each query, if the run has it.
        others: stages that made another model than the one that fine-tuning began with; nothing of them is here.
    """

    name: str
    commit: str
    day: str
    made_from: str | None
    params: Mapping[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    costs: dict[str, float | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ranks: Path | None = None
    others: tuple[str, ...] = ()

    def measured(self) -> dict[str, Measured]:
        """The main metrics: recall@10 and accuracies, those that have an interval and a chance level."""
        parts = ("", "/low", "/high", "/chance")
        return {
            name: Measured(*(self.metrics[name + part] for part in parts))
            for name in self.metrics
            if name.endswith(("/recall@10", "/accuracy")) and all(name + part in self.metrics for part in parts)
        }


def read_run(name: str, root: Path, paths: PathsConfig, revisions: Revisions) -> ComparedRun:
    """Reads one run.

    Args:
        name: `.`, the name of a run (NAME of branch run/NAME), or a git revision.
        root: the checkout.
        paths: where stages write.
        revisions: what git and DVC have recorded.

    Raises:
        DataError: there is no such run, or it has no dvc.lock.
        FormatError: its params.yaml is not valid.
    """
    shown, commit = (HERE, _commit(root, "HEAD", HERE)) if name == HERE else _resolve(root, name)
    day, _, parents = (git_if_any(root, "show", "-s", "--format=%cs %P", commit) or "").strip().partition(" ")
    if name == HERE:
        text = (root / PARAMS_FILE).read_text("utf-8") if (root / PARAMS_FILE).is_file() else None
        files = FilesAt(root)
    else:
        text = git_if_any(root, "show", f"{commit}:{PARAMS_FILE}")
        files = revisions.at(shown)
    values = _values(text, shown)
    others = MAKE_PRETRAINED if _begins_elsewhere(values) else ()
    if others:
        shape = (_read(files, paths.finetuned, _CONFIG) or {}).get("model")
        values = _of_another_start(values, shape if isinstance(shape, dict) else {})
    made_from = None if name == HERE else parents.split(" ")[0]
    run = ComparedRun(shown, commit, day, made_from, dict(_flat(values, "")), others=others)
    _read_reports(run, files, paths)
    return run


def read_folder(name: str, folder: Path, paths: PathsConfig | None) -> ComparedRun:
    """Reads what a run has in a folder so far, or has left there: its params.yaml and those reports that exist.

    Args:
        name: of the run.
        folder: where they are.
        paths: where stages write; None: the reports there may be another run's, and are not read.

    Raises:
        FormatError: its params.yaml is not valid.
    """
    file = folder / PARAMS_FILE
    values = _values(file.read_text("utf-8") if file.is_file() else None, name)
    run = ComparedRun(name, "", "", None, dict(_flat(values, "")))
    if paths is not None:
        _read_reports(run, FilesAt(folder), paths)
    return run


def _read_reports(run: ComparedRun, files: FilesAt, paths: PathsConfig) -> None:
    for path in files.reports(paths.reports):
        if path.name in run.others:
            continue
        metrics = _read(files, path, _METRICS)
        if metrics is None:
            run.notes.append(f"{run.name}: {files.why_missing(path)}")
        run.metrics |= metrics or {}
    for what, path, file, key in (
        ("data", paths.shards, _MANIFEST, "digest"),
        ("model", paths.reports / "package", _REPORT, "digest"),
    ):
        if (content := _read(files, path, file)) and key in content:
            run.digests[what] = str(content[key])
    evaluated = _read(files, paths.reports / "evaluation", _REPORT) or {}
    run.digests |= {f"set/{name}": one["digest"] for name, one in evaluated.get("sets", {}).items()}
    run.ranks = files.file(paths.reports / "evaluation", RANKS)


def _read(files: FilesAt, path: Path, name: str) -> dict[str, Any] | None:
    """A JSON file of an out; None if it is not available."""
    content = files.json(path, name)
    if content is None and files.file(path, name) is not None:
        raise FormatError(f"{path}/{name}: not a report of this version")
    return content


def code_changes(root: Path, one: ComparedRun, other: ComparedRun) -> list[str]:
    """The files of the code that differ between two runs; of the checkout, as its tracked files are now."""
    if HERE in (one.name, other.name):
        commits = [other.commit if one.name == HERE else one.commit]
    else:
        commits = [one.commit, other.commit]
    return (git_if_any(root, "diff", "--name-only", "--no-renames", *commits, "--", *CODE) or "").splitlines()


def _resolve(root: Path, name: str) -> tuple[str, str]:
    """The run as it is shown, and its commit; the name of a run has priority over another branch of that name."""
    for shown in (f"run/{name}", name):
        if commit := git_if_any(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{shown}^{{commit}}"):
            return shown, commit.strip()
    runs = (git_if_any(root, "branch", "--list", "run/*", "--format=%(refname:short)") or "").split()
    known = f"; the runs are {', '.join(one.removeprefix('run/') for one in runs)}" if runs else "; there are no runs"
    raise DataError(f"'{name}' is not a run, git revision, or '.' (this checkout){known}")


def _commit(root: Path, revision: str, shown: str) -> str:
    commit = git_if_any(root, "rev-parse", "--verify", "--quiet", revision)
    if commit is None:
        raise DataError(f"'{shown}': {root} is not a git repository with a commit; runs are recorded in git")
    return commit.strip()


def _begins_elsewhere(values: Mapping[str, Any]) -> bool:
    """Whether params.yaml, perhaps of an earlier version, names another start of fine-tuning than pretrain's model."""
    start, ours = (
        (values.get(section) or {}).get(key) for section, key in (("finetune", "from"), ("paths", "pretrained"))
    )
    return bool(start and ours) and PurePath(str(start)) != PurePath(str(ours))


def _of_another_start(values: Mapping[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those of the stages that made another model; with what finetune inherits from them.

    Args:
        values: of params.yaml.
        shape: section `model` of the model that fine-tuning began with, as its folder has it.
    """
    inherited = {name: (values.get(parent) or {}) | (values.get(name) or {}) for name, parent in INHERITS.items()}
    kept = {name: content for name, content in values.items() if name not in (*MAKE_PRETRAINED, "model")}
    return kept | inherited | {"model": dict(shape)}


def _values(text: str | None, name: str) -> dict[str, Any]:
    try:
        values = parse_yaml(text or "")
    except YAMLError as error:
        raise FormatError(f"'{name}': its {PARAMS_FILE} is not valid YAML: {' '.join(str(error).split())}") from None
    return values if isinstance(values, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", without_logins(value) if isinstance(value, str) else value
