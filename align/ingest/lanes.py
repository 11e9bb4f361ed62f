"""The tasks of `align ingest` that write shards: one for each lane, which asks the web and writes its shards in turn.

All addresses of a host are in one lane, so the bounds of a host hold for any number of machines, and its robots.txt is
asked for once. A host that is divided has at most as many lanes as it may have connections; they share its bounds.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from align.config.ingest import DownloadConfig
from align.display.console import say
from align.display.shares import percent
from align.durable.steps import Step, Work
from align.errors import DataError
from align.formats.raw import MadeWith
from align.ingest.fetching import Fetching, Web, write_fetched
from align.ingest.plan import MOVED, WRITTEN, Plan
from align.ingest.writer import write_raw_manifest
from align.ingest.writing import ShardCounts, Shards, write_archived
from align.interfaces.executor import Executor

_WHAT = "ingest: shards"


def write_from_source(work: Work, shards: Shards, executor: Executor) -> None:
    """Writes the shards of a plan whose pictures the source has: each is a task."""
    plan = shards.plan
    items = {plan.name(shard): shard for shard in range(plan.first, plan.end)}
    step = Step(WRITTEN, write_archived, _WHAT, resource=shards.opened)
    work.run(step, items, executor, _telling(work, plan))


def write_from_web(work: Work, shards: Shards, executor: Executor) -> None:
    """Writes the shards of a plan whose pictures the web has."""
    plan = shards.plan
    lanes = lanes_of(plan, shards.download, executor.num_at_once)
    items = {plan.name(shard): Fetching(shard, num_parts) for lane, num_parts in lanes for shard in lane}
    named = [[plan.name(shard) for shard in lane] for lane, _ in lanes]
    web = Web(shards, min(executor.num_at_once, len(lanes)))
    step = Step(WRITTEN, write_fetched, _WHAT, resource=web.opened)
    work.run(step, items, executor, _telling(work, plan), named)


def lanes_of(plan: Plan, download: DownloadConfig, num_at_once: int) -> list[tuple[list[int], int]]:
    """The shards of each task, and among how many tasks its hosts are divided; the longest first.

    Args:
        plan: the shards.
        download: the bounds.
        num_at_once: tasks that run at the same time.
    """
    most = min(download.max_connections_per_host, num_at_once)
    of_host = defaultdict[int, list[range]](list)
    first = plan.first
    for size, host in plan.lanes:
        of_host[host].append(range(first, first + size))
        first += size
    lanes = [([*shards], 1) for shards in of_host.pop(-1, ())]
    for parts in of_host.values():
        num = min(len(parts), most)
        lanes += [([*chain(*parts[number::num])], num) for number in range(num)]
    return sorted(lanes, key=lambda lane: -len(lane[0]))


def _telling(work: Work, plan: Plan) -> Callable[[ShardCounts], None]:
    """Says how far a round is, with each shard that is written."""
    num_left = len(work.lacking([f"{WRITTEN}/{name}" for name in plan.names]))
    if num_left < plan.end - plan.first:
        say(f"ingest: resuming: {plan.end - plan.first - num_left:,} of its {plan.end - plan.first:,} shards exist")
    start, sums = time.monotonic(), [0, 0, 0, 0]

    def tell(counts: ShardCounts) -> None:
        sums[:] = map(sum, zip(sums, (1, *counts), strict=True))
        num_done, num_pairs, num_pictures, num_not_fetched = sums
        skipped = f", {num_not_fetched:,} not fetched" if num_not_fetched else ""
        spent_s = time.monotonic() - start
        say(
            f"ingest: {num_done:,} of {num_left:,} shards, {num_pairs:,} pairs{skipped}, "
            f"{percent(num_pictures / max(1, num_pairs - num_not_fetched))} with a picture, "
            f"{num_pairs / max(spent_s, 1e-9):,.0f} pairs/s, {spent_s * (num_left / num_done - 1) / 60:,.1f} min left"
        )

    return tell


def publish(folder: Path, plans: Sequence[Plan], made: MadeWith) -> None:
    """Puts the files of all shards where data/raw has them, and writes its manifest.

    Raises:
        DataError: a pair of the plan is in no shard, or in two.
    """
    names = [name for plan in plans for name in plan.names]
    for name in names:
        for file in (folder / WRITTEN / name).iterdir():  # none, if a run was killed here
            if file.name != MOVED:
                os.replace(file, folder / file.name)
    num_pairs = sum(shard.num_pairs for shard in write_raw_manifest(folder, names, made).shards)
    if num_pairs != plans[0].num_pairs:
        raise DataError(
            f"{folder}: the shards have {num_pairs:,} pairs, and the source {plans[0].num_pairs:,}: remove this folder "
            "and run again"
        )
