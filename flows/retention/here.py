"""What lies in the checkout beside DVC's cache: worktrees of dead runs, failed runs, logs, checkpoints, copies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from align.config.promote import PromoteConfig
from align.config.retention import RetentionConfig
from align.config.store import StoreConfig
from align.console import say
from align.errors import LockedError
from align.files import marked
from align.release.evidence import MEASURED, PAGES
from align.run import running_services
from align.services.store_mirror import CheckpointMirror, checkpoint_mirror
from flows.failed_runs import MADE_BY
from flows.leftovers import clear, taken_worktrees
from flows.retention.item import Item, dispose, newest, size_of
from flows.retention.live import LOCKS, free
from flows.run_context import STATE

#: The folder of a training run: a digest of its values, one of its code (align/checkpoint.py).
_RUN_KEY = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}")
#: In it once the training has ended.
_FINISHED = "speed.json"
#: The folders of promotions (align/release/promote.py), and of measurements for them: digests of a model and of sets.
_PAGES, _MEASURED = re.compile(r"\d{8}T\d{6}Z-version-\d+"), re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")
_DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class Times:
    """What is young enough to stay.

    Attributes:
        now: seconds since 1970.
        live_since: the start of the oldest run that is at work; None: there is none.
    """

    now: float
    live_since: float | None

    def before(self, days: float) -> float:
        """What was written later stays."""
        return min(self.now - days * _DAY_S, self.now if self.live_since is None else self.live_since)


def worktrees(root: Path, config: RetentionConfig, times: Times) -> Iterator[Item]:
    """Worktrees of runs that were killed: nobody holds their lock. What they reported is kept, as by a repair."""
    taken = taken_worktrees(root)
    for path in sorted((root / STATE / "worktrees").glob("*")):
        lock = root / LOCKS / path.name
        if path.name in taken:
            continue
        with free(lock) as dead:
            if dead and path.is_dir() and (lock.is_file() or path.stat().st_mtime < times.before(config.days)):
                yield Item("worktrees of dead runs", (path.name,), size_of(path), partial(_worktree, root, path, lock))


def _worktree(root: Path, path: Path, lock: Path) -> None:
    with free(lock) as dead:
        if dead:
            try:
                clear(root, path, say)
            except LockedError as error:  # what it had started still works
                say(f"{error}: left for the next time")


def failed_runs(root: Path, config: RetentionConfig, times: Times) -> Iterator[Item]:
    """Reports and logs of failed runs."""
    for path in sorted((root / STATE / "failed").glob("*")):
        if marked(path) == MADE_BY and path.stat().st_mtime < times.before(config.days):
            yield Item("failed runs", (path.name,), size_of(path), partial(dispose, path))


def logs(root: Path, config: RetentionConfig, times: Times) -> Iterator[Item]:
    """Logs of servers that do not run."""
    running = running_services(root)
    for path in sorted((root / STATE / "logs").glob("*.log")):
        if path.stem not in running and path.stat().st_mtime < times.before(config.days):
            yield Item("logs", (path.name,), size_of(path), partial(path.unlink, missing_ok=True))


def checkpoints(folder: Path, config: RetentionConfig, store: StoreConfig, times: Times) -> Iterator[Item]:
    """Checkpoints of training runs: of finished ones, and of others that nobody has resumed for long.

    While a run is at work, unfinished ones stay: it may be about to resume one. With `config.stores`, their copies in
    the store go, too.

    Raises:
        ServiceError: the store of copies does not answer.
        DataError: its bucket does not exist.
    """
    mirror = checkpoint_mirror(store) if config.stores else None
    for path in sorted(folder.glob("*")):
        if not (_RUN_KEY.fullmatch(path.name) and path.is_dir() and not path.is_symlink()):
            continue
        finished = (path / _FINISHED).is_file()
        if not finished and times.live_since is not None:
            continue
        with free(path / "lock") as idle:
            if idle and newest(path) < times.before(config.finished_days if finished else config.days):
                kind = "checkpoints of finished trainings" if finished else "checkpoints of unfinished trainings"
                num_bytes = size_of(path) + sum(mirror.sizes(path.name).values() if mirror else ())
                yield Item(kind, (path.name,), num_bytes, partial(_checkpoints, path, mirror))


def _checkpoints(path: Path, mirror: CheckpointMirror | None) -> None:
    with free(path / "lock") as idle:
        if not idle:
            return
        if mirror:  # first, while the folder still says that there is something
            for name in mirror.names(path.name):
                mirror.delete(f"{path.name}/{name}")
        dispose(path)


def promotions(root: Path, config: RetentionConfig, promote: PromoteConfig, times: Times) -> Iterator[Item]:
    """Pages of promotions, which MLflow keeps too, and measurements of registered models for them.

    A person who approves a promotion has the version judged again, by the same measurement: so what may wait for an
    answer stays, however few `config.days` are. A measurement is as young as its last use (`align.release.evidence`).
    """
    before = times.before(max(config.days, promote.approval_timeout_h / 24))
    folders = [(path, _PAGES) for path in (root / PAGES).glob("*")] + [
        (path, _MEASURED) for path in (root / MEASURED).glob("*")
    ]
    for path, named in sorted(folders):
        if named.fullmatch(path.name) and path.is_dir() and not path.is_symlink() and newest(path) < before:
            yield Item("promotions", (path.name,), size_of(path), partial(dispose, path))


def copies(store: StoreConfig, config: RetentionConfig, times: Times) -> Iterator[Item]:
    """Checked copies of objects of a store: fetched again when they are read."""
    files = sorted((store.cache / "objects").glob("*/*.tar"))
    old = [path for path in files if path.stat().st_mtime < times.before(config.days)]
    if old and times.live_since is None:
        yield Item("copies of stored tars", tuple(path.name for path in old), sum(map(size_of, old)), lambda: _all(old))


def _all(files: list[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)
