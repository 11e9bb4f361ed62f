"""The whole list of what `align gc` removes, in the order in which it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from align.config import Params
from align.config.paths import PathsConfig
from align.config.promote import PromoteConfig
from align.config.register import RegisterConfig
from align.config.retention import RetentionConfig
from align.config.store import StoreConfig
from align.lineage.versions.data_versions import DataVersions
from align.services.store import Objects as Store
from align.services.tracking.address import has_store
from align.services.tracking.reader import reader
from align.services.tracking_retention import all_versions
from flows.retention import here
from flows.retention.cache import in_cache, in_remote, in_store
from flows.retention.claims import Claims, decided_data
from flows.retention.here import Times
from flows.retention.history import History, RunBranch
from flows.retention.item import Item
from flows.retention.live import Worker
from flows.retention.mlflow_runs import old_runs
from flows.retention.objects import Objects, read_journal, unneeded, write_journal
from flows.retention.run_cache import entries
from flows.run_context import STATE

JOURNAL = STATE / "gc.json"


@dataclass(frozen=True)
class Plan:
    """What goes, and what is not touched.

    Attributes:
        items: in the order of their removal.
        notes: for people: what is left alone, and why.
    """

    items: list[Item] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Situation:
    """What a plan starts from.

    Attributes:
        root: the checkout.
        params: of the checkout.
        history: its git repository.
        workers: who is at work.
        now: seconds since 1970.
    """

    root: Path
    params: Params
    history: History
    workers: list[Worker]
    now: float

    @property
    def config(self) -> RetentionConfig:
        """Section `retention`."""
        return self.params.section(RetentionConfig)

    @property
    def times(self) -> Times:
        """What is young enough to stay."""
        return Times(self.now, min((worker.since for worker in self.workers), default=None))


def make_plan(situation: Situation, versions: DataVersions) -> Plan:
    """Finds out what goes. Nothing is changed.

    Raises:
        ServiceError: MLflow does not answer, so nobody knows which versions are registered; or a remote does not.
    """
    root, params, config, times = situation.root, situation.params, situation.config, situation.times
    paths, store, history = params.section(PathsConfig), params.section(StoreConfig), situation.history
    tracker = reader() if has_store() else None
    claims = Claims(all_versions(tracker) if tracker else (), decided_data(root / paths.policy))
    old = history.runs(num_kept=config.num_runs, younger=times.before(config.days))
    branches = [] if situation.workers else claims.unclaimed(old, history, versions)
    kept = history.kept(branches, claims.commits(history))
    plan = Plan()
    plan.items.extend(here.worktrees(root, config, times))
    plan.items.extend(here.failed_runs(root, config, times))
    plan.items.extend(here.logs(root, config, times))
    plan.items.extend(here.checkpoints(root / paths.checkpoints, config, store, times))
    plan.items.extend(here.copies(store, config, times))
    plan.items.extend(here.promotions(root, config, params.section(PromoteConfig), times))
    if tracker:
        experiment, before = params.section(RegisterConfig).experiment, times.before(config.days)
        runs = old_runs(
            tracker, experiment, root, versions=claims.versions, commits=history.reachable(kept), before=before
        )
        plan.items.extend(runs)
    if (why := _untouchable(situation, versions)) is not None:
        plan.notes.append(why)
    else:
        _add_objects(plan, situation, versions, kept=kept, branches=branches, claims=claims)
    return plan


def _untouchable(situation: Situation, versions: DataVersions) -> str | None:
    """Why nothing of DVC's cache goes, and no branch of a run; None if it may."""
    if versions.cache is None:
        return "DVC keeps no data here"
    if not versions.cache.is_relative_to(situation.root.resolve()):
        return f"DVC's cache {versions.cache} is outside of this checkout, so others may need it: it stays as it is"
    if situation.workers:
        names = ", ".join(sorted({worker.who for worker in situation.workers}))
        return f"branches of runs and DVC's cache stay as they are: somebody is at work ({names})"
    return None


def _add_objects(
    plan: Plan,
    situation: Situation,
    versions: DataVersions,
    *,
    kept: Sequence[str],
    branches: Sequence[RunBranch],
    claims: Claims,
) -> None:
    """The branches, and what DVC's cache, its remotes and the store of tars have of them alone."""
    root, config, history, cache = situation.root, situation.config, situation.history, versions.cache
    assert cache is not None
    store = situation.params.section(StoreConfig)
    with_tars = config.stores and store.objects is not None
    records = [*history.records(kept), *history.working_records()]
    all_entries = entries(cache)
    young = [entry for entry in all_entries if entry.time >= situation.times.before(config.days)]
    objects = unneeded(
        versions,
        kept=records,
        gone=[record for branch in branches for record in history.records([branch.commit], history=False)],
        all_entries=all_entries,
        kept_entries=[*young, *claims.entries(all_entries, records, versions)],
        journal=read_journal(root / JOURNAL),
        with_tars=with_tars,
    )
    items = [Item("branches of runs", (one.name,), 0, partial(history.remove, one)) for one in branches]
    items += in_cache(cache, objects)
    remotes = versions.remotes()
    for name in config.remotes:
        if name in remotes:
            items += in_remote(root, name, objects)
        else:
            plan.notes.append(f"retention.remotes: DVC has no remote '{name}' here")
    if others := sorted(set(remotes) - set(config.remotes)):
        plan.notes.append(f"DVC's remotes {', '.join(others)} stay as they are: retention.remotes does not name them")
    if with_tars:
        items += in_store(Store(store), objects)
    plan.items.extend(_journaled(items, root / JOURNAL, objects))
    for version in claims.unknown(all_entries, records, versions):
        plan.notes.append(f"nothing here tells which data {version.name} version {version.number} needs")


def _journaled(items: list[Item], file: Path, objects: Objects) -> list[Item]:
    """The items, the choice written down before the first and deleted after the last.

    Once a branch or an entry is gone, nothing else names the objects that it alone had.
    """
    if not items:
        return []

    def first() -> None:
        write_journal(file, objects)
        begin.remove()

    def last() -> None:
        end.remove()
        file.unlink(missing_ok=True)

    begin = items[0]
    items = [replace(begin, remove=first), *items[1:]]
    end = items[-1]
    return [*items[:-1], replace(end, remove=last)]
