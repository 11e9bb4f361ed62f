"""opt_out: take-downs. Records for good what people opted out, and purges its bytes on request.

Recorded in data/policy/opted_out.csv, which `align ingest` and `align filter` obey; the next `dvc repro` drops the
pairs (reason `opted_out`) and makes everything after them again. Every ingest numbers keys again, so a key is recorded
as the address and the sha256 of its picture, or only the sha256 for a file, which has no address.

`--purge` removes the pictures themselves and the texts of their pairs: from data/raw, data/filtered, data/shards,
data/index and reports, from every object of DVC's cache and remotes that shows one, and from the store of tars; and
what was measured of them from store.features. Versions that lose something can no longer be checked out whole; their
models stay, and the command names those that saw the pairs. It names each place, with what was removed and what could
not be, and then the places that it does not touch, each with what ends it.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from align.config import Params
from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.config.serve import ServeConfig
from align.config.suite import is_suite
from align.display.console import say, show
from align.durable.files import sha256_file
from align.errors import DataError
from align.formats.acceptances import read_acceptances
from align.formats.features import files_of
from align.formats.indexed_images import ITEMS
from align.formats.policy import OPTED_OUT, Entry, OptedOut, read_opted_out, write_opted_out
from align.formats.raw import image_spans
from align.formats.verdict import judged_data
from align.lineage.take_down.look_into import Wanted, look_into
from align.lineage.take_down.opted_out_pairs import opted_out_pairs
from align.lineage.take_down.purge import Plan, plan_purge, purge, words
from align.lineage.take_down.requests import read_requests, without_pairs
from align.lineage.versions.at_revision import Revisions
from align.lineage.versions.registered import Registered
from align.lineage.versions.shard_samples import count_pairs
from align.lineage.versions.who_saw import SeenBy, who_saw
from align.services.dvc.stores import ObjectStore, object_stores
from align.services.running_search import take_down_lines
from align.services.s3.store import fetcher

#: Where the local stack keeps its state (`infra/local.py`), and the page that the README has users write.
_PREFECT, _LOGS, _OWN_PAGES = Path(".align/prefect"), Path(".align/logs"), (Path("hits.html"),)
_WORKTREES = Path(".align/worktrees")  # of failed runs, see flows/checkout/worktree.py
#: Copies of data/index: of served champions (`align.search.service.fetched`), and the one that `align ready` writes.
_SERVED, _READY = Path(".align/served"), Path("data/sample/ready")


def model_lines(models: Iterable[SeenBy]) -> Iterator[str]:
    """One line per version, or run without one: how many of the pairs it saw, and where that is known from."""
    for model in models:
        if model.seen is None:
            what = "unknown"
        else:
            num_trained = model.seen.get("train", 0)
            num_held_out = sum(model.seen.values()) - num_trained
            what = f"trained on {num_trained:,} of the pairs"
            what += f", measured on {num_held_out:,}" if num_held_out else ""
        yield f"{model.title}: {what}; {model.why}"


def plan_lines(plan: Plan, raw: str, stores: Iterable[ObjectStore]) -> Iterator[str]:
    """What a purge would remove."""
    num_texts = plan.pairs.num_pairs if plan.pairs.texts else 0
    yield f"to go: {len(plan.pairs.gone):,} pictures of {raw}, and the texts of {num_texts:,} pairs"
    yield from (f"to go: {folder}, which `dvc repro` makes again" for folder in plan.folders)
    if plan.pages:
        yield f"to go: {len(plan.pages):,} pages and pictures of reports"
    if plan.tars:
        yield f"to go: {len(plan.tars):,} tars of store.objects"
    for store in stores:
        yield f"to go: {store.name}: {words(Counter(plan.found.here.get(store.name, {}).values()))}"


def remaining_lines(paths: PathsConfig, models: Iterable[SeenBy], wanted: Wanted) -> Iterator[str]:
    """Places with pictures, texts or addresses that a purge does not touch, and what ends them.

    Args:
        paths: section `paths`.
        models: that saw the pairs.
        wanted: what was looked for.
    """
    yield "not touched by a purge, with what ends it:"
    for place, end in _places(paths, models, wanted):
        yield f"  {place}"
        yield f"    {end}"


def _places(paths: PathsConfig, models: Iterable[SeenBy], wanted: Wanted) -> Iterator[tuple[str, str]]:
    policy = (paths.policy / OPTED_OUT).as_posix()
    yield (
        f"{policy} and git's history of it; rows of {paths.raw} and {paths.filtered}: addresses, no texts",
        "stay: by them the pictures are refused",
    )
    yield (
        f"{paths.archive}: the source; ingest skips the pairs, but has to read it",
        "ends with: removing them from it, then `dvc repro --force --single-item ingest`",
    )
    yield from _evaluation_sets(paths.evaluation, wanted.image_ids)
    if _PREFECT.is_dir():
        what = "Prefect's database and logs; figures, searches and addresses of earlier runs"
        yield f"{_PREFECT}, {_LOGS}: {what}", f"ends with: `make down && rm -rf {_PREFECT} {_LOGS}`"
    if any(_WORKTREES.glob("*")):
        what = "data and reports of failed runs, with pictures"
        yield f"{_WORKTREES}: {what}", f"ends with: `rm -rf {_WORKTREES} && git worktree prune`"
    if _SERVED.is_dir():
        what = "champions that were served, with their indexes: small pictures, texts, addresses"
        yield f"{_SERVED}: {what}", f"ends with: `rm -rf {_SERVED}`"
    items = _READY / "index" / ITEMS
    if items.is_file() and look_into(items, wanted):
        yield (
            f"{_READY} and git's history of it: small pictures, texts and addresses",
            f"ends with: `align ready` after the next run, or `rm -r {_READY}`; git's history where it is kept",
        )
    if runs := sorted({model.run_id for model in models}):
        others = "and runs that ended before they recorded their data"
        what = "`reports`, models trained on the pairs, indexes with small pictures, texts and addresses"
        end = "export MLFLOW_TRACKING_URI=sqlite:///mlflow.db; mlflow runs delete --run-id RUN; mlflow gc --run-ids RUN"
        yield (
            f"MLflow, runs {', '.join(runs)}, {others}: {what}",
            f"ends with, for each RUN older than this purge: `{end}` (a server's database: on its machine)",
        )
    for page in _OWN_PAGES:
        if page.is_file():
            yield f"{page}: a page of a search", f"ends with: `rm {page}`"
    yield (
        "elsewhere: files of search --html, diff --html and embed --out, clones, backups, old versions in a bucket",
        "end where they are; in a clone with `align opt_out --purge --yes`",
    )


def _evaluation_sets(folder: Path, image_ids: Set[str]) -> Iterator[tuple[str, str]]:
    others = False
    if is_suite(folder):
        how = "end with: removing the pictures where they lie"
        yield f"{folder}: the evaluation sets that it names are not searched", how
    for tar in sorted(folder.glob("*.tar")) if image_ids else ():
        number = 0
        try:
            with tar.open("rb") as file:
                for _, offset, size in image_spans(file, str(tar)):
                    file.seek(offset)
                    number += hashlib.sha256(file.read(size)).hexdigest() in image_ids
        except (DataError, OSError):
            again = f"ends with: `rm {tar}`, then making the set again"
            yield f"{tar}: cannot be read, so perhaps some of the pictures", again
            continue
        others |= not number
        if number:
            again = "ends with: removing them from what the set was made of, then making it again"
            yield f"{tar}: {number:,} of the pictures, with their captions", again
    if others:
        yield f"other sets in {folder}: copies in another size are not recognised", "end in the same way"


#: How long a service may need to mask its index, in addition to the time between two of its looks.
_MASKING_S = 15.0


def main(params: Params, args: argparse.Namespace) -> None:
    """`align opt_out`: record, say which models saw the pairs, and purge on request.

    Raises:
        DataError: no request is given, a line is bad, --yes is missing, or something could not be purged.
    """
    paths, store = params.section(PathsConfig), params.section(StoreConfig)
    files = {kind: path for kind in ("keys", "urls", "hosts") if (path := getattr(args, kind)) is not None}
    if not files and not args.purge:
        raise DataError("nothing to opt out: give --keys, --urls or --hosts FILE, or --purge for what is recorded")
    requests = read_requests(files, paths.raw, args.reason)
    opted_out, num_new = record(paths.policy, requests)
    requested = OptedOut(requests) if files else opted_out
    file = paths.policy / OPTED_OUT
    num_entries = len(requested.entries)
    new = f"{num_new} new entries in {file}, {num_entries - num_new} were recorded before"
    show(new if files else f"{num_entries} entries in {file}")
    for line in without_pairs(paths.raw, requested) if files.keys() - {"keys"} else ():
        say(f"opt_out: {line}")
    if file.is_file():
        for line in take_down_lines(sha256_file(file), params.section(ServeConfig).poll_s + _MASKING_S):
            say(f"opt_out: {line}")
    pairs = opted_out_pairs(paths.raw, requested)
    show(f"{paths.raw}: {pairs.num_pairs:,} pairs, {len(pairs.image_ids):,} pictures; {pairs.num_held:,} with bytes")
    image_ids = pairs.image_ids | {entry.value for entry in requested.entries if entry.kind == "image_id"}
    count = partial(count_pairs, image_ids=image_ids, fetch=fetcher(store))
    config = params.section(RegisterConfig)
    registered = Registered(config.model_name, config.experiment)
    with tempfile.TemporaryDirectory(prefix="align-") as scratch:
        models = who_saw(registered, paths.shards, Revisions(Path.cwd(), Path(scratch)), count)
    show(*model_lines(models))
    if registered.problem:
        say(f"opt_out: models: {registered.problem}")
    if args.purge:
        untracked: AbstractContextManager[tuple[list[ObjectStore], dict[str, str]]] = nullcontext(([], {}))
        with object_stores(Path.cwd()) if Path(".dvc").is_dir() else untracked as (stores, unreachable):
            plan = plan_purge(opted_out, paths, store, stores)
            remaining = list(remaining_lines(paths, models, plan.found.wanted))
            if not args.yes:
                show(*plan_lines(plan, str(paths.raw), stores))
                if num := len(files_of(store.features, plan.found.wanted.image_ids)):
                    show(f"to go: {num:,} files of {store.features}, with values measured of evaluation images")
                show(*(f"not searched: {name}: {why}" for name, why in unreachable.items()), *remaining)
                raise DataError("nothing is purged yet: add --yes to remove for good what is named above")
            _purge(plan, paths, store, stores, unreachable, remaining)
    accepted, judged = read_acceptances(paths.policy), judged_data(paths.reports)
    if due := [one.signed for one in accepted if one.data in judged and pairs.num_pairs]:
        say(f"opt_out: accepted for the data before, to be accepted again if its gate still fails: {'; '.join(due)}")
    say("opt_out: next: commit the policy; `dvc repro` drops the pairs and reruns what depends on them, models too")
    if not args.purge and pairs.num_held:
        say("opt_out: their bytes are still here and in DVC's cache; `align opt_out --purge` removes them")


def record(policy: Path, requests: Iterable[Entry]) -> tuple[OptedOut, int]:
    """Adds the entries to the policy; returns it, and how many were new. Recording twice changes nothing."""
    before = read_opted_out(policy)
    after = OptedOut([*before.entries, *requests])
    num_new = len(after.entries) - len(before.entries)
    if num_new:
        write_opted_out(policy, after)
    return after, num_new


def _purge(
    plan: Plan, paths: PathsConfig, store: StoreConfig, stores: list[ObjectStore], unreachable: Mapping[str, str],
    remaining: Iterable[str],
) -> None:  # fmt: skip
    results = []
    for result in purge(plan, paths, store, stores, unreachable):
        results.append(result)
        show(f"{result.where}: {result.removed}" + (f"; LEFT: {result.left}" if result.left else ""))
    if plan.pairs.shared:
        say(f"opt_out: {len(plan.pairs.shared):,} pictures stay: other pairs, which nobody opted out, show them")
    show(*remaining)
    if left := [result.where for result in results if result.left]:
        raise DataError(
            f"not everything is gone: {', '.join(left)}; fix that and run `align opt_out --purge --yes` again"
        )
    show("nothing is left in the places named" if results else "nothing had to go")
