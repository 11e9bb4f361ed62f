"""forget: take-downs. Records for good what people ask to forget, and purges its bytes on request.

Recorded in data/policy/opted_out.csv, which `align ingest` and `align filter` obey; the next `dvc repro` drops the
pairs (reason `opted_out`) and makes everything after them again. Every ingest numbers keys again, so a key is recorded
as the address and the sha256 of its picture, or only the sha256 for a file, which has no address.

`--purge` removes the pictures themselves and the texts of their pairs: from data/raw, data/filtered, data/shards,
data/index and reports, from every earlier version of these that git or DVC's run cache records (local cache and all
remotes), and from the store of tars; and what was measured of them from store.features. That ends those versions: they
can no longer be checked out. The command names each place, with what was removed and what could not be, and then the
places that it does not touch, each with what ends it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from align.config import Params
from align.config.paths import PathsConfig
from align.config.register import RegisterConfig
from align.config.serve import ServeConfig
from align.config.store import StoreConfig
from align.display.console import say, show
from align.durable.files import sha256_file
from align.errors import DataError
from align.formats.features import files_of
from align.formats.policy import OPTED_OUT, Entry, OptedOut, read_opted_out, write_opted_out
from align.lineage.take_down.opted_out_pairs import opted_out_pairs
from align.lineage.take_down.purge import purge
from align.lineage.take_down.purge_plan import PurgePlan, plan_purge
from align.lineage.take_down.requests import near_addresses, read_requests
from align.lineage.take_down.text import model_lines, plan_lines, remaining_lines, result_line
from align.lineage.versions.data_versions import DataVersions
from align.lineage.versions.shard_samples import count_pairs
from align.lineage.versions.who_saw import who_saw
from align.services.running_search import take_down_lines
from align.services.s3.store import fetcher

#: How long a service may need to mask its index, in addition to the time between two of its looks.
_MASKING_S = 15.0


def main(params: Params, args: argparse.Namespace) -> None:
    """`align forget`: record, say which models saw the pairs, and purge on request.

    Raises:
        DataError: no request is given, a line is bad, --yes is missing, or something could not be purged.
    """
    paths, store = params.section(PathsConfig), params.section(StoreConfig)
    files = {kind: path for kind in ("keys", "urls", "hosts") if (path := getattr(args, kind)) is not None}
    if not files and not args.purge:
        raise DataError("nothing to forget: give --keys, --urls or --hosts FILE, or --purge for what is recorded")
    requests = read_requests(files, paths.raw, args.reason)
    opted_out, num_new = record(paths.policy, requests)
    requested = OptedOut(requests) if files else opted_out
    file = paths.policy / OPTED_OUT
    show(_recorded(file, requested, num_new if files else None))
    for line in near_addresses(paths.raw, requested) if files.keys() - {"keys"} else ():
        say(f"forget: {line}")
    if file.is_file():
        for line in take_down_lines(sha256_file(file), params.section(ServeConfig).poll_s + _MASKING_S):
            say(f"forget: {line}")
    with tempfile.TemporaryDirectory(prefix="align-") as scratch:
        versions = DataVersions(Path.cwd(), Path(scratch))
        pairs = opted_out_pairs(paths.raw, requested)
        show(
            f"{paths.raw}: {pairs.num_pairs:,} pairs, {len(pairs.image_ids):,} pictures; {pairs.num_held:,} with bytes"
        )
        image_ids = pairs.image_ids | {entry.value for entry in requested.entries if entry.kind == "image_id"}
        count = partial(count_pairs, image_ids=image_ids, fetch=fetcher(store))
        answer = who_saw(params.section(RegisterConfig), paths.shards, versions, count)
        models = (*answer.models, *answer.runs)
        show(*model_lines(models))
        if answer.problem:
            say(f"forget: models: {answer.problem}")
        if args.purge:
            plan = plan_purge(versions, opted_out, paths, fetcher(store))
            remaining = remaining_lines(paths, models, plan.image_ids, opted_out)
            if not args.yes:
                show(*plan_lines(plan, str(paths.raw), versions.remotes()))
                if num := len(files_of(store.features, plan.image_ids)):
                    show(f"to go: {num:,} files of {store.features}, with values measured of evaluation images")
                show(*remaining)
                raise DataError("nothing is purged yet: add --yes to end the versions named above for good")
            _purge(versions, plan, paths, store, remaining)
    say("forget: next: commit the policy; `dvc repro` drops the pairs and reruns what depends on them, models too")
    if not args.purge and pairs.num_held:
        say("forget: their bytes are still here and in DVC's cache; `align forget --purge` removes them")


def record(policy: Path, requests: Iterable[Entry]) -> tuple[OptedOut, int]:
    """Adds the entries to the policy; returns it, and how many were new. Recording twice changes nothing."""
    before = read_opted_out(policy)
    after = OptedOut([*before.entries, *requests])
    num_new = len(after.entries) - len(before.entries)
    if num_new:
        write_opted_out(policy, after)
    return after, num_new


def _recorded(file: Path, requested: OptedOut, num_new: int | None) -> str:
    num_entries = len(requested.entries)
    if num_new is None:
        return f"{num_entries} entries in {file}"
    return f"{num_new} new entries in {file}, {num_entries - num_new} were recorded before"


def _purge(
    versions: DataVersions, plan: PurgePlan, paths: PathsConfig, store: StoreConfig, remaining: Iterable[str]
) -> None:
    results = []
    for result in purge(versions, plan, paths, store):
        results.append(result)
        show(result_line(result))
    if plan.pairs.shared:
        say(f"forget: {len(plan.pairs.shared):,} pictures stay: other pairs, which nobody asked to forget, show them")
    show(*remaining)
    left = [result.where for result in results if result.left]
    if left:
        raise DataError(
            f"not everything is gone: {', '.join(left)}; fix that and run `align forget --purge --yes` again"
        )
    show("nothing is left in the places named" if results else "nothing had to go")
