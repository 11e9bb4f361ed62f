"""What a failed run leaves: its reports and its log, which outlive its worktree. The newest few are kept.

.align/failed/NAME-KEY/   reports/ as the stages wrote them, log.txt with what they printed, params.yaml, and run.json:
                          the run's name, its commit, its id in Prefect, whether it failed or was killed, and why
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from align.config import load_params
from align.config.params import PARAMS_FILE
from align.durable.files import replace_directory, to_json, write_text
from align.durable.locks import locked
from align.errors import AlignError
from align.services.git import resolve
from flows.tasks.run_context import STATE, RunContext, log_file

#: The number of failed runs that are kept; older ones are removed.
NUM_KEPT = 5
LOG, RUN = "log.txt", "run.json"
_MADE_BY = "align run"
_MAX_NAME_BYTES = 80


def folder_for(root: Path, name: str, key: str) -> Path:
    """Where a run of the checkout `root` is kept if it fails; one of the same name and key replaces it.

    A name of a branch may hold what a shell would obey; the folder's name holds letters, digits, `.`, `_` and `-`.
    """
    plain = re.sub(r"[^\w.-]", "-", name).strip(".-").encode()[:_MAX_NAME_BYTES].decode("utf-8", "ignore")
    return root / STATE / "failed" / f"{plain or 'run'}-{key[:8]}"


@contextmanager
def kept_if_it_fails(worktree: Path, folder: Path, log: Callable[[str], None], name: str = "") -> Iterator[None]:
    """If the block fails, moves the reports and the log of the worktree to `folder`, and says so."""
    try:
        yield
    except Exception as error:
        from prefect import runtime  # a run has imported it anyway; `align plan` does not need it

        run = {"name": name, "state": "failed", "why": str(error), "flow_run": str(runtime.flow_run.id or "")}
        keep(worktree, folder, log, run)
        raise


def keep(worktree: Path, folder: Path, log: Callable[[str], None], run: dict[str, str]) -> None:
    """Moves what a run leaves to `folder`, and says so, or why that is impossible.

    Args:
        worktree: where the run worked.
        folder: see `folder_for`.
        log: for one line, and one for each older run that is removed.
        run: `name`, `state` (failed or killed), `why` and `flow_run`.
    """
    try:
        _keep(worktree, folder, run)
        how = "failed" if run["state"] == "failed" else "was killed"
        log(f"this run {how}; its reports and its log are kept in {folder}")
        # one run at a time: a folder that another run is removing has the newest time of all
        with locked(folder.parent.parent / "locks" / "failed", "a run that failed", log):
            for removed in _remove_older(folder.parent):
                log(f"{removed}: removed, since the {NUM_KEPT} newest failed runs are kept")
    except (OSError, AlignError) as error:  # such as a full disk; the run's own error says more
        log(f"the reports of this run could not be kept in {folder}: {error}")


def in_kept_folder(message: str, run: RunContext, reports: str) -> str:
    """The message of a failed stage, naming its report where it will be; unchanged if the checkout stays.

    Args:
        message: may name paths in `reports`, and the command that accepts what failed.
        run: the run.
        reports: `paths.reports`.
    """
    if run.kept is None:
        return message
    folder = run.kept.relative_to(run.checkout)
    message = re.sub(rf"(?<![\w./-]){re.escape(reports)}/", f"{folder / reports}/", message)
    message = re.sub(r"align validate --accept \S+", rf"\g<0> --from {folder / reports}", message)
    return f"{message}; the reports and the log of this run are kept in {folder}"


def _keep(worktree: Path, folder: Path, run: dict[str, str]) -> None:
    reports = load_params(worktree / PARAMS_FILE).values["paths"]["reports"]
    with replace_directory(folder, _MADE_BY) as part:
        for source, target in ((worktree / reports, part / reports), (log_file(worktree), part / LOG)):
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source, target)
        shutil.copy(worktree / PARAMS_FILE, part / PARAMS_FILE)
        try:
            commit = resolve(worktree, "HEAD")
        except AlignError:  # it was killed before git had finished, or this is not a repository
            commit = ""
        write_text(part / RUN, to_json({"schema_version": 1, "commit": commit, **run}))


def _remove_older(parent: Path) -> list[Path]:
    folders = [path for path in parent.iterdir() if not path.name.startswith(".") and path.is_dir()]
    older = sorted(folders, key=lambda path: path.stat().st_mtime_ns)[:-NUM_KEPT]
    for path in older:
        shutil.rmtree(path, ignore_errors=True)
    return older
