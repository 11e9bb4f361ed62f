"""The ranks of a version on today's sets: from its run, or by measuring its registered model now.

Every version's run has the `ranks.parquet` of its evaluation. They count if its sets are those of the checkout.
Otherwise, and for versions that were registered before ranks were kept, `align evaluate` measures the model's
registered bytes. It runs as a program, writes nothing into the checkout's reports, and its result is kept under
`.align/`, so that the same model is measured on the same sets once.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.display.console import say
from align.durable.files import sha256_folder
from align.errors import DataError
from align.formats.evaluation_sets.named import named_sets
from align.formats.measured_sets import evaluation_digest, set_digests, shards_test_set
from align.formats.model_folder import CONFIG
from align.formats.query_ranks import RANKS, QueryRanks, read_ranks
from align.formats.shards import MANIFEST
from align.services.files.files import StoreFiles
from align.services.s3.store import fetcher
from align.services.tracking.registry import MODEL_DIGEST, Version
from align.services.tracking.tracker import Tracker

#: Below the working directory: the page of each promotion, and what was measured for one.
PAGES = Path(".align/promotions")
MEASURED = PAGES / "measured"
_IN_RUN = f"reports/evaluation/{RANKS}"


@dataclass(frozen=True)
class Evidence:
    """The ranks of a version, and where they come from, in words."""

    ranks: QueryRanks
    origin: str


def todays_sets(params: Params) -> dict[str, str]:
    """Set -> digest, of the sets that are here. A folder or split that is not here, as in a fresh clone, has none.

    Raises:
        DataError, CorruptError, FormatError: a set that is here is damaged.
    """
    paths = params.section(PathsConfig)
    store = params.section(StoreConfig)
    sets = named_sets(paths.evaluation, StoreFiles(store)) if paths.evaluation.exists() else []
    number = params.section(EvaluateConfig).max_test_images
    if number and (paths.shards / MANIFEST).is_file():
        sets += shards_test_set(paths.shards, number, fetcher(store))
    return set_digests(sets)


def wanted_sets(names: Iterable[str], today: Mapping[str, str], candidate: QueryRanks | None) -> dict[str, str]:
    """Set -> the digest by which both versions must be measured: today's, or the candidate's if the set is not here.

    Raises:
        DataError: a set is neither here nor was the candidate measured on it.
    """
    found = {}
    for name in sorted(set(names)):
        digest = today.get(name) or (candidate.sets.get(name) if candidate else None)
        if digest is None:
            known = ", ".join(sorted(today)) or "none"
            raise DataError(
                f"promote.metrics names the set '{name}', which is not here, and on which the candidate was not "
                f"measured (sets here: {known}); bring it here (`dvc pull`), or correct promote.metrics"
            )
        found[name] = digest
    return found


def from_run(version: Version, tracker: Tracker) -> QueryRanks | None:
    """The ranks that the version's run has; None if it has none, or a file that this code does not read."""
    with tempfile.TemporaryDirectory(prefix="align-promote-") as scratch:
        file = tracker.artifact(version.run_id, _IN_RUN, Path(scratch))
        if file is None:
            return None
        try:
            return read_ranks(file)
        except DataError as error:
            say(f"promote: version {version.number}: its ranks are not used: {error}")
            return None


def has(ranks: QueryRanks | None, wanted: Mapping[str, str]) -> bool:
    """Whether a model was measured by these sets."""
    return ranks is not None and all(ranks.sets.get(name) == digest for name, digest in wanted.items())


def evidence(
    version: Version,
    recorded: QueryRanks | None,
    wanted: Mapping[str, str],
    *,
    tracker: Tracker,
    today: Mapping[str, str],
    command: Sequence[str],
) -> Evidence:
    """A version's ranks by the sets that are wanted.

    Args:
        version: to be judged.
        recorded: the ranks of its run.
        wanted: set -> digest.
        tracker: MLflow.
        today: the sets that are here.
        command: the options of `align evaluate` that make it read the parameters of this command.

    Raises:
        DataError: it has to be measured, and a set that is wanted is not here, or the model cannot be measured.
        ServiceError: MLflow is unavailable, or does not have the model.
    """
    if has(recorded, wanted):
        assert recorded is not None
        return Evidence(recorded, f"version {version.number}: as its run was measured")
    if gone := sorted(set(wanted) - set(today)):
        raise DataError(
            f"version {version.number} has to be measured on the set '{gone[0]}' of today, which is not here; bring "
            "it here (`dvc pull`), or take sets into promote.metrics that are"
        )
    with tempfile.TemporaryDirectory(prefix="align-promote-") as scratch:
        digest = version.tags.get(MODEL_DIGEST)
        packaged: Path | None = None
        if digest is None:  # registered by other means
            packaged = tracker.model_files(version, Path(scratch))
            digest = sha256_folder(packaged)
        kept = MEASURED / f"{digest[:16]}-{evaluation_digest(today)[:16]}"
        ranks = _kept(kept)
        if not has(ranks, wanted):
            why = "on other sets" if recorded else "without its ranks being kept"
            say(f"promote: version {version.number} was measured {why}; measuring its registered model on today's sets")
            packaged = packaged or tracker.model_files(version, Path(scratch))
            _measure(model_folder(packaged, version), kept, command)
            ranks = _kept(kept)
    if not has(ranks, wanted):
        raise DataError(f"{kept}: the sets changed while they were measured; repeat the command")
    assert ranks is not None
    return Evidence(ranks, f"version {version.number}: its registered model was measured on today's sets")


def _kept(folder: Path) -> QueryRanks | None:
    try:
        return read_ranks(folder / RANKS)
    except DataError:  # none yet, damaged, or of another version of this code
        return None


def model_folder(packaged: Path, version: Version) -> Path:
    """The model folder among a version's files. Raises DataError if there is none."""
    found = sorted(packaged.glob(f"artifacts/*/{CONFIG}"))
    if len(found) != 1:
        raise DataError(f"version {version.number}: its registered files hold no model folder that this code reads")
    return found[0].parent


def _measure(model: Path, out: Path, options: Sequence[str]) -> None:
    """Runs `align evaluate`, whose progress is shown. Raises DataError with its last line if it fails."""
    program = [sys.executable, "-m", "align.cli", "evaluate", "--model", str(model), "--reports", str(out), *options]
    out.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        last = ""
        try:
            for line in child.stderr:
                last = line.rstrip() or last
                say(line.rstrip())
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        raise DataError(f"the model could not be measured: {last.removeprefix('align: error: ')}")
