"""`dvc status`, and what `dvc repro` would do with each stage.

DVC says what has changed since dvc.lock, which a worktree does not have. It does not say whether the run cache has a
result before the earlier stages are checked out. Here the stages are followed without a checkout: the hashes of the
outs are known for each stage that the cache has, and so are the deps of the next one.

Reading the states writes nothing except DVC's own notes of the hashes of files.

`check_out` takes everything that the cache has by one call of DVC: `dvc repro` would take two seconds for each stage.
`changed_code` names the files of a stage whose code has changed, from git.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from align.config.params import PARAMS_FILE, parse_yaml
from align.errors import DataError
from align.project.declared import CODE_FILE
from align.project.provenance import closure, deciding, says
from align.services.dvc import run_cache
from align.services.dvc.commands import write_code
from align.services.dvc.repository import DvcError, dvc_repository, locked_repository
from align.services.dvc.run_cache import is_known
from align.services.git import LOCK_FILE, git
from align.verbs import STAGES
from flows.dag import Stage
from flows.run.context import RunContext, child_environment

#: Keys of section `paths`: outs that take long to make, or may be put there by hand. The rest is made again in minutes.
PRECIOUS = ("raw", "tokenizer", "pretrained", "finetuned")
#: A reason names at most this many files or parameters, and the number of the others.
SHOWN = 4


_PACKAGE = closure("align")["align"].parent


def changed_code(root: Path, stage: str, digest: str) -> list[str]:
    """The files that decide the bytes of a stage and do something else now than in the run whose dvc.lock has `digest`.

    Returns:
        Paths from the root; none if git has no such run, or the code is not part of the checkout.
    """
    if not digest or not (root / "align").is_dir():
        return []
    try:
        run = git(root, "log", "-1", "--format=%H", f"-S{digest}", "--all", "--", LOCK_FILE)
        files = git(root, "diff", "--name-only", "--no-renames", run, "--", "align").split() if run else []
    except DataError:
        return []
    decides = {f"align/{path.relative_to(_PACKAGE).as_posix()}" for path in deciding(STAGES[stage].module).values()}
    return [file for file in files if file in decides and _differs(root, run, file)]


def _differs(root: Path, commit: str, file: str) -> bool:
    """Whether a file does something else than at a commit; a new file does."""
    with suppress(DataError, OSError, SyntaxError):
        return says((root / file).read_text("utf-8")) != says(git(root, "show", f"{commit}:{file}"))
    return True


def check_out(run: RunContext, locks: dict[str, dict[str, Any]], log: Callable[[str], None]) -> dict[str, Any]:
    """Writes what DVC's run cache says of stages into dvc.lock, and checks out their outs.

    No result depends on it: DVC's status, which is returned, compares this dvc.lock with everything, as after any run,
    and a stage that it does not find unchanged runs as before. The run works in a worktree of its own.
    """
    file = run.root / LOCK_FILE
    before = file.read_bytes() if file.is_file() else None
    values = (parse_yaml(before.decode()) if before else None) or {}
    try:
        _write(file, locks)
        with locked_repository(run.root, "checkout") as repo:
            repo.checkout(allow_missing=True)  # of all stages: if they are named, each takes a second
            others = values.get("stages")
            if not others:
                return status_of(repo)
            _write(file, {**others, **locks})
        return read_status(run.root)
    except DvcError as error:
        log(f"{error}; each stage is taken from the cache by itself")
        file.unlink() if before is None else file.write_bytes(before)
        return read_status(run.root)


def _write(file: Path, stages: Mapping[str, Any]) -> None:
    """Writes the same bytes as DVC: equal results are one branch."""
    yaml = YAML()
    yaml.default_flow_style = False
    with file.open("w", encoding="utf-8") as stream:
        yaml.dump({"schema": "2.0", "stages": dict(stages)}, stream)


class StageState(BaseModel):
    """What `dvc repro` would do with a stage.

    Attributes:
        stage: its name.
        state: nothing (`unchanged`), check out its outs (`cached`), or run its command (`runs`). A stage that reads
            what another one makes again counts as `runs`, although it need not run if the bytes come out the same.
        why: why it is not unchanged, in words.
        missing: deps that no stage makes and that do not exist.
        num_bytes: of its outs, if known: those in the cache, or those of the last time.
        metrics: of its report, if the cache has it.
    """

    model_config = ConfigDict(frozen=True)
    stage: str
    state: Literal["unchanged", "cached", "runs"]
    why: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    num_bytes: int | None = None
    metrics: dict[str, float] = {}


class States(BaseModel):
    """The states of all stages.

    Attributes:
        status: see `read_status`.
        stages: each stage.
        locks: entries of dvc.lock of the cached stages.
    """

    model_config = ConfigDict(frozen=True)
    status: dict[str, Any]
    stages: tuple[StageState, ...]
    locks: dict[str, dict[str, Any]] = {}


def read_states(run: RunContext) -> States:
    """What `dvc repro` would do with all stages where a run works, compared with the last run in the user's checkout.

    Raises:
        DvcError: DVC refuses, for example because another command works there.
    """
    write_code(run.root, child_environment(run))
    with locked_repository(run.root, "status") as repo:
        status = status_of(repo)
        follower = _Follower(repo, status, run.checkout / LOCK_FILE)
        found = follower.follow(run.chosen.dag)
    return States(status=status, stages=tuple(found), locks=follower.locks)


def read_status(root: Path) -> dict[str, Any]:
    """What `dvc status --json` says of a checkout, by the names of the stages: what has changed since dvc.lock.

    The code is what code.yaml says: `read_states` has written it.

    Raises:
        DvcError: DVC refuses.
    """
    with locked_repository(root, "status") as repo:
        return status_of(repo)


def status_of(repo: Any) -> dict[str, Any]:
    """As `read_status`, of a repository that is locked."""
    found = ((stage, stage.status(check_updates=True)) for stage in repo.index.stages)
    return {getattr(stage, "name", None) or name: changes for stage, one in found for name, changes in one.items()}


class _Follower:
    """Follows the DAG; for each stage it knows the hashes of its future outs, or that they are unknown.

    Attributes:
        locks: what dvc.lock will have of each cached stage.
    """

    def __init__(self, repo: Any, status: Mapping[str, Any], lock: Path) -> None:
        self._repo, self._root, self._changed, self._lock = repo, Path(repo.root_dir), status.keys(), lock
        self._stages = {stage.name: stage for stage in repo.index.stages if getattr(stage, "name", None)}
        self._outs: dict[str, dict[str, Any]] = {}  # path -> {md5, size, nfiles}
        self._states: dict[str, StageState] = {}
        self.locks: dict[str, dict[str, Any]] = {}

    @cached_property
    def _reference(self) -> dict[str, Any]:
        """The entries of the dvc.lock with which the stages are compared."""
        values = parse_yaml(self._lock.read_text("utf-8")) if self._lock.is_file() else None
        return (values or {}).get("stages") or {}

    def follow(self, stages: Sequence[Stage]) -> list[StageState]:
        """The states, in the order of `stages`, each of which comes after those that it reads from."""
        for stage in stages:
            self._states[stage.name] = self._state(stage)
        return list(self._states.values())

    def _state(self, stage: Stage) -> StageState:
        theirs = self._stages[stage.name]
        makers = [name for name in stage.upstream if self._states[name].state == "runs"]
        settled = all(self._states[name].state == "unchanged" for name in stage.upstream)
        if stage.name not in self._changed and settled:
            outs = self._know({out.def_path: _entry(out) for out in theirs.outs})
            return StageState(stage=stage.name, state="unchanged", num_bytes=_size(outs), metrics=self._metrics(stage))
        last = self._reference.get(stage.name)
        missing = [dep.def_path for dep in theirs.deps if not self._is_there(dep, stage, theirs)]
        now = None if makers or missing else self._lock_entry(theirs)
        why = _differences(self._root, stage.name, last, now) if now else []
        why += [f"reads what {_some(makers)} make{'s' if len(makers) == 1 else ''} again"] if makers else []
        why += [f"{path} does not exist" for path in missing]
        if now and not theirs.is_callback and not theirs.always_changed and (entry := self._cached(theirs, now)):
            outs = self._know({out["path"]: out for out in entry["outs"]})
            self.locks[stage.name] = dict(entry)
            why = why if last else []  # else a run of another checkout or branch has made it
            return StageState(
                stage=stage.name, state="cached", why=tuple(why), num_bytes=_size(outs), metrics=self._metrics(stage)
            )
        known = _size({out["path"]: out for out in (last or {}).get("outs", ())})
        return StageState(
            stage=stage.name,
            state="runs",
            why=tuple(why) or ("its outs are not in DVC's cache",),
            missing=tuple(missing),
            num_bytes=known or None,
        )

    def _know(self, outs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        self._outs |= {os.path.normpath(path): entry for path, entry in outs.items()}
        return outs

    def _is_there(self, dep: Any, stage: Stage, theirs: Any) -> bool:
        """Whether a dep exists, or a stage makes it. Parameters are there: `read_dag` has read them."""
        if dep.def_path is None or dep.def_path in (PARAMS_FILE, CODE_FILE) or dep.protocol != "local":
            return True
        return bool(dep.exists) or any(
            _within(dep.def_path, str(out.def_path)) for name in stage.upstream for out in self._stages[name].outs
        )

    def _lock_entry(self, theirs: Any) -> dict[str, Any] | None:
        """The stage as dvc.lock will have it, without outs; None if a dep's hash is not known."""
        for dep in theirs.deps:
            made = self._made(dep.def_path) if dep.def_path else None
            if made is None:
                dep.save()
            elif not made:
                return None
            else:
                run_cache.set_hash(dep, made)
        return run_cache.lock_entry(theirs)

    def _made(self, path: str) -> dict[str, Any] | None:
        """What an earlier stage makes at a path; {}: not known; None: no stage makes it."""
        path = os.path.normpath(path)
        if path in self._outs:
            return self._outs[path]
        for out, entry in self._outs.items():
            if path.startswith(f"{out}{os.sep}"):
                return run_cache.member(self._repo, entry["md5"], Path(path).relative_to(out).parts)
        return None

    def _metrics(self, stage: Stage) -> dict[str, float]:
        """The numbers of a stage's report, from the cache."""
        made = self._made(f"{stage.report}/metrics.json")
        if not made:
            return {}
        try:
            found: dict[str, float] = json.loads(Path(self._repo.cache.local.oid_to_path(made["md5"])).read_bytes())
        except (OSError, ValueError):
            return {}
        return found

    def _cached(self, theirs: Any, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """The run cache's entry of a stage with these deps and parameters whose outs are in the cache."""
        found = run_cache.result(self._repo, theirs, run_cache.name_of(entry))
        return found[0] if found and found[1].outs_cached() else None


def _within(path: str, out: str) -> bool:
    path, out = os.path.normpath(path), os.path.normpath(out)
    return path == out or path.startswith(f"{out}{os.sep}") or out.startswith(f"{path}{os.sep}")


def _entry(out: Any) -> dict[str, Any]:
    return {"md5": out.hash_info.value, **(out.meta.to_dict() if out.meta else {})}


def _size(outs: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(int(out.get("size") or 0) for out in outs.values())


def _differences(root: Path, stage: str, last: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """What differs between an entry of dvc.lock and the stage as it is now in a checkout, in words."""
    if last is None:
        return ["it has not run here yet"]
    found = ["its command is another"] if last.get("cmd") != now.get("cmd") else []
    old = {dep["path"]: dep.get("md5") for dep in last.get("deps", ())}
    new = {dep["path"]: dep.get("md5") for dep in now.get("deps", ())}
    paths = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    found += [f"changed: {_some(paths)}"] if paths else []
    old, new = last.get("params", {}), now.get("params", {})
    if old.get(CODE_FILE) != new.get(CODE_FILE):
        files = changed_code(root, stage, str(old.get(CODE_FILE, {}).get(stage, "")))
        found += [f"changed code: {_some(files)}" if files else "changed code"]
    changed = list(_changed(old.get(PARAMS_FILE, {}), new.get(PARAMS_FILE, {})))
    return found + ([_some(changed)] if changed else [])


def _changed(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """`section.key 3 -> 4` of every value that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from _changed(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield f"{key} {json.dumps(old)} -> {json.dumps(new)}"


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def require_known(run: RunContext, status: Mapping[str, Any]) -> None:
    """Refuses to run stages that would replace, in the user's checkout, what only the checkout has.

    DVC removes a stage's outs before it runs the stage. It can give back what is in its cache, and what dvc.lock
    records. The rest would be lost: pictures that were fetched with other values, a model that was put there by hand.

    Args:
        run: the run.
        status: of `read_status`.

    Raises:
        DataError: a stage would; the message says how to keep it.
    """
    paths = run.params.values["paths"]
    precious = {paths[name] for name in PRECIOUS if name in paths}
    writers = {
        out: stage.name
        for stage in run.chosen.stages
        for out in sorted(_changed_outs(status.get(stage.name, [])) & precious & set(stage.outs))
        if (run.root / out).exists()
    }
    if not writers:
        return
    for out in _not_in_dvc(run.root, writers):
        stage = writers[out]
        raise DataError(
            f"{out} holds what DVC does not know, and stage {stage} would replace it: if `align {stage}` made it with "
            f"this params.yaml, keep it with `dvc commit {stage}`; else move it to another folder, or delete it"
        )


def _changed_outs(changes: Collection[Any]) -> set[str]:
    """The outs that a stage's entry in `dvc status --json` names as changed; a deleted one cannot be lost."""
    return {
        out
        for change in changes
        if isinstance(change, Mapping)
        for out, state in change.get("changed outs", {}).items()
        if state != "deleted"
    }


def _not_in_dvc(root: Path, names: Iterable[str]) -> list[str]:
    """Those of the outs, named as in dvc.yaml, that hold what DVC could not give back."""
    with dvc_repository(root, "outs") as repo:
        outs = {str(Path(out.fs_path).relative_to(repo.root_dir)): out for out in repo.index.outs if out.exists}
        return [name for name in names if name in outs and not is_known(outs[name])]
