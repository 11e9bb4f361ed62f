"""`python -m flows.retention`: the program that `align gc` becomes. Lists what would go, or removes it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from align.config import load_params
from align.config.params import PARAMS_FILE, Params
from align.config.paths import PathsConfig
from align.console import say, show
from align.errors import AlignError, DataError
from align.git import git
from align.lineage.versions.data_versions import DataVersions
from align.locks import locked
from align.release.evidence import MEASURED, PAGES
from flows.retention.cache import dvc_locked
from flows.retention.history import History
from flows.retention.item import Item, clear
from flows.retention.live import GC, LOCKS, Worker, nobody_else, workers
from flows.retention.plan import Plan, Situation, make_plan
from flows.run_context import STATE

#: So many names of a group are listed.
_SHOWN = 5


def collect(root: Path, params: Params, *, yes: bool) -> Plan:
    """Lists what goes, and with `yes` removes it. One works at a time in a checkout; a second waits, and finds nothing.

    Args:
        root: the root of the checkout.
        params: its parameters.
        yes: whether to remove.

    Raises:
        DataError: `root` is no root of a git repository, or git or DVC fails.
        LockedError: a DVC command is at work.
        ServiceError: MLflow, or a server of a store or remote, does not answer.
    """
    if Path(git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
        raise DataError(f"{root}: start in the root of the checkout")
    checkpoints = root / params.section(PathsConfig).checkpoints
    with ExitStack() as stack:
        stack.enter_context(locked(root / LOCKS / GC, "`align gc`", say))
        if yes:
            stack.enter_context(dvc_locked(root))
        alone = stack.enter_context(nobody_else(root))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="align-")))
        history = History(root)
        at_work = workers(root, checkpoints, history.worktrees)
        if not alone and not at_work:  # it has begun a moment ago
            at_work = [Worker("a run", time.time())]
        versions = DataVersions(root, scratch)
        plan = make_plan(Situation(root, params, history, at_work, time.time()), versions)
        show(*table(plan.items))
        if yes:
            for folder in (checkpoints, root / STATE / "failed", root / PAGES, root / MEASURED):
                clear(folder)
            for item in plan.items:
                item.remove()
    for note in plan.notes:
        say(f"gc: {note}")
    return plan


def table(items: Sequence[Item]) -> list[str]:
    """Kind, number and bytes, a line each, with the first names below; the sum last."""
    if not items:
        return ["nothing to remove"]
    lines = [f"{'':<40} {'number':>9} {'bytes':>16}"]
    kinds = list(dict.fromkeys(item.kind for item in items))
    for kind in kinds:
        group = [item for item in items if item.kind == kind]
        names = [name for item in group for name in item.names]
        lines.append(f"{kind:<40} {len(names):>9,} {sum(item.num_bytes for item in group):>16,}")
        if len(group) > 1 or len(names) == 1:  # runs and folders have names for people, objects have not
            more = [f"... {len(names) - _SHOWN:,} more"] if len(names) > _SHOWN else []
            lines += [f"  {name}" for name in (*names[:_SHOWN], *more)]
    return [*lines, f"{'in all':<40} {'':>9} {sum(item.num_bytes for item in items):>16,}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 after an AlignError, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="align gc")
    parser.add_argument("--yes", action="store_true")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args(argv)
    try:
        plan = collect(Path.cwd(), load_params(Path(PARAMS_FILE), args.overrides), yes=args.yes)
    except AlignError as error:
        say(f"align: error: {error}")
        return 1
    except KeyboardInterrupt:
        say("align: interrupted; `align gc --yes` continues")
        return 130
    if plan.items:
        say("gc: removed" if args.yes else "gc: nothing is removed yet: add --yes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
