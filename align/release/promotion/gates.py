"""The gates of a promotion: lineage, verdict, bytes, chance, the comparison, health, history, a prediction."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

from ruamel.yaml.error import YAMLError

from align.config.evaluate import EvaluateConfig
from align.config.params import parse_yaml
from align.config.release import PromoteConfig, lower_bar
from align.display.shares import percent, points
from align.durable.files import sha256_folder
from align.errors import DataError, RefusedError
from align.formats.query_ranks import QueryRanks
from align.release.packaging.smoke import smoke
from align.release.promotion.decision import Compared, Gate, bound
from align.services.git import git
from align.services.tracking.registry import DATA_DIGEST, MODEL_DIGEST, ROLLED_BACK, ROLLED_BACK_BECAUSE, Version
from align.services.tracking.tracker import REVISION, Tracker
from align.statistics.intervals import interval

_LINEAGE = {"git revision": REVISION, "data": DATA_DIGEST, "model": MODEL_DIGEST, "verdict": "align.quality"}
#: Training stages, and the metrics by which each says at its last step how many signs are out of bounds, and which.
_TRAINING = ("pretrain", "finetune")
_ALARMS, _ALARM = "train/alarms", "train/alarm/"
#: The name of its row.
HEALTH = "health alarms"
_RUN_ID = re.compile("[0-9a-f]{32}")


def lineage(version: Version) -> Gate:
    """Whether the version says where it comes from."""
    missing = [what for what, tag in _LINEAGE.items() if not version.tags.get(tag)]
    revision = version.tags.get(REVISION, "")
    figure = f"not recorded: {', '.join(missing)}" if missing else f"complete, git {revision[:12]}"
    if revision.endswith("-dirty") and not missing:
        figure += ", whose files had been edited"
    return Gate("lineage", figure, f"{', '.join(_LINEAGE)} on the version", not missing)


def verdict(version: Version) -> Gate:
    """Whether the data passed its gates, or a person accepted what failed, by name."""
    found, accepted = version.tags.get("align.quality"), version.tags.get("align.quality_accepted")
    figure = "no verdict" if found is None else f"{found}; accepted: {accepted}" if accepted else found
    return Gate("data verdict", figure, "passed, or accepted by name", found == "passed")


def registered_bytes(version: Version, packaged: Path) -> Gate:
    """Whether the registry's files are those that were registered, and those that DVC recorded.

    Args:
        version: its tags name the digest and the git revision.
        packaged: the files, as downloaded.
    """
    bar = "the digest at registration, and DVC's where its dvc.lock is here"
    stated, found = version.tags.get(MODEL_DIGEST, ""), sha256_folder(packaged)
    if found != stated:
        return Gate("registered bytes", f"{found[:12]}, registered as {stated[:12] or 'nothing'}", bar, False)
    recorded = _dvc_digest(version.tags.get(REVISION, ""))
    if recorded is None:
        return Gate("registered bytes", f"{found[:12]} as registered; no dvc.lock of its revision here", bar, True)
    same = recorded == _dvc_digest_of(packaged)
    return Gate("registered bytes", f"{found[:12]} as registered; {'' if same else 'not '}as in dvc.lock", bar, same)


def _dvc_digest(revision: str) -> str | None:
    """DVC's digest of the packaged model in the dvc.lock of a revision; None if that is not known here."""
    if not re.fullmatch("[0-9a-f]{7,64}", revision):
        return None
    try:
        lock = parse_yaml(git(Path(), "show", f"{revision}:dvc.lock"))
        (out,) = lock["stages"]["package"]["outs"][:1]
        return str(out["md5"]).removesuffix(".dir")
    except (DataError, YAMLError, LookupError, TypeError, ValueError):
        return None


def _dvc_digest_of(folder: Path) -> str:
    """The md5 by which DVC names a folder: of the list of its files' md5s."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = [{"md5": _md5(path.read_bytes()), "relpath": path.relative_to(folder).as_posix()} for path in files]
    text = json.dumps(sorted(listed, key=lambda one: one["relpath"]), sort_keys=True)
    return _md5(text.encode())


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def above_chance(config: PromoteConfig, evaluate: EvaluateConfig, ranks: QueryRanks) -> list[Gate]:
    """For each metric: whether its lower 95 % bound is well above a random order's value."""
    rows, times = [], math.inf
    for metric in config.metrics:
        low, _ = interval(ranks.scored(metric), num_resamples=evaluate.num_resamples, seed=evaluate.seed)
        chance = ranks.chance(metric)
        bar, times = config.min_times_chance * chance, min(times, low / chance)
        needed = f"{config.min_times_chance:g} x chance = {percent(bar)}"
        rows.append(Gate(f"above chance: {metric}", f"lower 95 % bound {percent(low)}", needed, low >= bar))
    way_out = lower_bar(f"{math.floor(100 * times) / 100:g}") if times > 1 else "it may be a random order: train longer"
    return [replace(row, way_out="" if row.passed else way_out) for row in rows]


def better(config: PromoteConfig, compared: Compared, champion: int) -> Gate:
    """Whether the candidate is better than the champion by the margin, with confidence."""
    one = compared.difference
    figure = f"{points(one.value)} points, {config.confidence:.0%} lower bound {bound(one.low)}"
    return Gate(
        f"better than version {champion}", figure, f"bound above {points(config.margin)}", one.low > config.margin
    )


def no_slice_worse(config: PromoteConfig, compared: Compared) -> Gate:
    """Whether some part of the evaluation is worse than the champion's by the margin, with confidence."""
    told = [one for one in compared.slices if one.difference is not None]
    worse = [one for one in told if one.worse]
    if worse:
        figure = "; ".join(f"{one.name} {points(one.difference.value)} points" for one in worse if one.difference)
    else:
        few = len(compared.slices) - len(told)
        figure = f"none of {len(told)}" + (f"; {few} with too few concepts to tell" if few else "")
    bar = f"none worse by more than {100 * config.slice_margin:g} points"
    return Gate("no slice worse", figure, bar, not worse)


def health(version: Version, tracker: Tracker) -> Gate:
    """Whether training ended with all signs of its health within their bounds.

    Training logs to MLflow live which are not. For a stage from DVC's cache, the run that trained has logged it.
    """
    found: dict[str, str] = {}
    runs = [version.run_id]
    if _RUN_ID.fullmatch(source := tracker.run(version.run_id).tags.get("cached_from", "")):
        runs.append(source)
    for run_id in runs:
        try:
            metrics = tracker.run(run_id).metrics
        except RefusedError:  # deleted
            continue
        for stage in _TRAINING:
            if (number := metrics.get(f"{stage}/{_ALARMS}")) is not None:
                # the count decides: of a run that was resumed, a sign may be as it was when the run stopped
                signs = sorted(name.partition(_ALARM)[2] for name in metrics if name.startswith(f"{stage}/{_ALARM}"))
                names = [sign for sign in signs if metrics[f"{stage}/{_ALARM}{sign}"]] or [f"{number:g} signs"]
                found.setdefault(stage, " and ".join(names) if number else "")
    bad = [f"{stage} ended with {signs} out of bounds" for stage, signs in sorted(found.items()) if signs]
    clear = f"none at the end of {' and '.join(sorted(found))}" if found else "no training told this MLflow"
    return Gate(HEALTH, ", ".join(bad) or clear, "none", not bad if found else None)


def not_rolled_back(version: Version) -> Gate:
    """A version that was taken back is not promoted again until its tag is removed."""
    since = version.tags.get(ROLLED_BACK)
    figure = "never" if since is None else f"at {since}: {version.tags.get(ROLLED_BACK_BECAUSE, '')}"
    return Gate("rolled back", figure, f"never; remove its tag {ROLLED_BACK} to allow its promotion", since is None)


def prediction(packaged: Path) -> Gate:
    """Whether the registry's own bytes load, and embed a text and a picture."""
    done = smoke(packaged)
    return Gate("smoke prediction", done.figure, "finite, of length 1", done.passed)
