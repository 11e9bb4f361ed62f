"""What `align forget` prints: the models that saw the pairs; what a purge would remove, removed, leaves alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

import pyarrow as pa

from align.config.paths import PathsConfig
from align.config.suite import is_suite
from align.errors import DataError
from align.formats.indexed_images import ITEMS
from align.formats.policy import OPTED_OUT, OptedOut
from align.formats.raw import image_spans
from align.lineage.take_down.purge import PurgeResult
from align.lineage.take_down.purge_plan import PurgePlan
from align.lineage.versions.shard_samples import index_shows
from align.lineage.versions.who_saw import SeenBy

#: Where the local stack keeps its state (`infra/local.py`), and the page that the README has users write.
_PREFECT, _LOGS, _OWN_PAGES = Path(".align/prefect"), Path(".align/logs"), (Path("hits.html"),)
_FAILED = Path(".align/failed")  # see flows/checkout/failed_runs.py
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


def plan_lines(plan: PurgePlan, raw: str, remotes: Iterable[str]) -> Iterator[str]:
    """What a purge would remove."""
    num_texts = plan.pairs.num_pairs if plan.pairs.texts else 0
    yield f"to go: {len(plan.pairs.gone):,} pictures of {raw}, and the texts of {num_texts:,} pairs"
    for (path, md5), why in sorted(plan.doomed.versions.items()):
        yield f"to go: {path} {md5[:8]} ({why})"
    num_objects = len(plan.doomed.to_remove())
    yield f"to go: at most {num_objects:,} objects of DVC's cache and of each remote ({', '.join(remotes) or 'none'})"


def result_line(result: PurgeResult) -> str:
    """What was removed from one place, and what is left there."""
    return f"{result.where}: {result.removed}" + (f"; LEFT: {result.left}" if result.left else "")


def remaining_lines(
    paths: PathsConfig, models: Iterable[SeenBy], image_ids: Set[str], opted_out: OptedOut
) -> Iterator[str]:
    """Places with pictures, texts or addresses that a purge does not touch, and what ends them.

    Args:
        paths: section `paths`.
        models: that saw the pairs.
        image_ids: sha256s of the pictures, to find them in evaluation sets.
        opted_out: the policy, to find addresses.
    """
    yield "not touched by a purge, with what ends it:"
    policy = (paths.policy / OPTED_OUT).as_posix()
    yield f"  {policy} and git's history of it; rows of {paths.raw} and {paths.filtered}: addresses, no texts"
    yield "    stay: by them the pictures are refused"
    yield f"  {paths.archive}: the source; ingest skips the pairs, but has to read it"
    yield "    ends with: removing them from it, then `dvc repro --force --single-item ingest`"
    yield from _evaluation_lines(paths.evaluation, image_ids)
    if _PREFECT.is_dir():
        yield f"  {_PREFECT}, {_LOGS}: Prefect's database and logs; figures, searches and addresses of earlier runs"
        yield f"    ends with: `make down && rm -rf {_PREFECT} {_LOGS}`"
    if _FAILED.is_dir():
        yield f"  {_FAILED}: reports of failed runs, with pictures"
        yield f"    ends with: `rm -rf {_FAILED}`"
    if _SERVED.is_dir():
        yield f"  {_SERVED}: champions that were served, with their indexes: small pictures, texts, addresses"
        yield f"    ends with: `rm -rf {_SERVED}`"
    yield from _ready_lines(frozenset(image_ids), opted_out)
    if runs := sorted({model.run_id for model in models}):
        others = "and runs that ended before they recorded their data"
        what = "`reports`, models trained on the pairs, indexes with small pictures, texts and addresses"
        yield f"  MLflow, runs {', '.join(runs)}, {others}: {what}"
        end = "export MLFLOW_TRACKING_URI=sqlite:///mlflow.db; mlflow runs delete --run-id RUN; mlflow gc --run-ids RUN"
        yield f"    ends with, for each RUN older than this purge: `{end}` (a server's database: on its machine)"
    for page in _OWN_PAGES:
        if page.is_file():
            yield f"  {page}: a page of a search"
            yield f"    ends with: `rm {page}`"
    yield "  elsewhere: files of search --html, diff --html and embed --out, clones, backups, earlier evaluation sets,"
    yield "    old versions in a bucket"
    yield "    end where they are; in a clone with `align forget --purge --yes`"


def _ready_lines(image_ids: frozenset[str], opted_out: OptedOut) -> Iterator[str]:
    index = _READY / "index"
    if not (index / ITEMS).is_file():
        return
    try:
        if not index_shows(index, image_ids, opted_out):
            return
        yield f"  {_READY} and git's history of it: small pictures, texts and addresses"
    except (DataError, OSError, pa.ArrowException):
        yield f"  {_READY}: cannot be read, so perhaps some of the pictures"
    yield f"    ends with: `align ready` after the next run, or `rm -r {_READY}`; git's history where it is kept"


def _evaluation_lines(folder: Path, image_ids: Set[str]) -> Iterator[str]:
    others = False
    if is_suite(folder):
        yield f"  {folder}: the evaluation sets that it names are not searched"
        yield "    end with: removing the pictures where they lie"
    for tar in sorted(folder.glob("*.tar")) if image_ids else ():
        number = 0
        try:
            with tar.open("rb") as file:
                for _, offset, size in image_spans(file, str(tar)):
                    file.seek(offset)
                    number += hashlib.sha256(file.read(size)).hexdigest() in image_ids
        except (DataError, OSError):
            yield f"  {tar}: cannot be read, so perhaps some of the pictures"
            yield f"    ends with: `rm {tar}`, then making the set again"
            continue
        others |= not number
        if number:
            yield f"  {tar}: {number:,} of the pictures, with their captions"
            yield (
                "    ends with: removing them from what the set was made of, then "
                f"`align make_set {tar.stem} --from ... --replace`"
            )
    if others:
        yield f"  other sets in {folder}: copies in another size (`make_set --resize`) are not recognised"
        yield "    end in the same way"
