"""How `align ingest` ends: what it says, whether it failed, and what DVC is told.

It names the commonest reasons why pairs have no picture, and what the person can do.

Ingest writes the values with which data/raw was made into its manifest, and a retry takes them from there: other values
would undo what the first run got, such as a network that is refused now. Today's params.yaml counts only for how
patiently to ask. Which skipped pictures to ask for counts if a person names it on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from align.config.ingest import DownloadConfig, IngestConfig
from align.config.params import PARAMS_FILE, Params
from align.config.paths import PathsConfig
from align.display.console import say
from align.errors import ConfigError, DataError
from align.formats.policy import REFUSED
from align.formats.raw import ADDRESS_REFUSED, HOPELESS, MANIFEST, RESERVED, MadeWith, read_raw_manifest
from align.formats.statuses import SUCCESS
from align.ingest.report import IngestReport, not_read, read_as_stored
from align.pairs.text import MAX_CHARACTERS
from align.project import provenance
from align.services.dvc.commands import changes_of, record_outs
from align.services.dvc.outs import is_run_by_dvc, is_tracked, stage_of

#: The sections, and one parameter, that decide what is in data/raw.
DECIDING_VALUES = ("ingest", "download", "paths.archive")
#: Values that a retry takes as they are now. A failure that depends on them may pass, so each such picture is asked for
#: again: afterwards no pair of data/raw has an outcome that depends on the old value.
PATIENCE = frozenset(
    f"download.{key}"
    for key in (
        "max_connections", "max_connections_per_host", "max_requests_per_host_per_s", "connect_timeout_s", "timeout_s",
        "deadline_s", "max_bytes_in_flight", "num_retries", "max_failures_per_host", "backoff_s",
    )
)  # fmt: skip
#: Values that decide no row: a run with others resumes the work of one that was killed or failed.
DECIDING_NOTHING = PATIENCE | {"ingest.max_damaged_share", "ingest.reuse"}
#: A value that a retry takes if it is named: which skipped pictures to ask for.
SKIP_HOPELESS = "ingest.skip_hopeless"


def made_with(config: IngestConfig, download: DownloadConfig, archive: str) -> MadeWith:
    """The values of an ingest, for the manifest."""
    values = {"ingest": config.model_dump(mode="json"), "download": download.model_dump(mode="json")}
    return MadeWith(archive=archive, code=provenance.digest("align.ingest.examination"), **values)


def named_values(overrides: Iterable[str]) -> set[str]:
    """The parameters (`section.key`) that `--set` and `--profile` name."""
    return {".".join(override.partition("=")[0].split(".")[:2]) for override in overrides}


def values_of_retry(
    params: Params, named: Collection[str], raw: Path
) -> tuple[IngestConfig, DownloadConfig, MadeWith | None]:
    """The sections that a retry uses, and what the manifest says of data/raw afterwards (None: nobody knows).

    Args:
        params: of the command.
        named: its parameters that were given on the command line.
        raw: the folder.

    Raises:
        ConfigError: the command line names another value for what must stay as it was.
        FormatError: the manifest cannot be read.
    """
    current = made_with(params.section(IngestConfig), params.section(DownloadConfig), "")
    manifest = read_raw_manifest(raw)
    if manifest is None or manifest.made_with is None:
        say(f"ingest: {raw} does not say with which values it was made, so those of params.yaml hold")
        return params.section(IngestConfig), params.section(DownloadConfig), None
    stored, not_used = manifest.made_with, list[str]()
    sections = {}
    for section in ("ingest", "download"):
        old, new = getattr(stored, section), getattr(current, section)
        sections[section] = {key: old.get(key, value) for key, value in new.items()}  # a new key has its value of now
        for key in differing(sections[section], new):
            name = f"{section}.{key}"
            if name in DECIDING_NOTHING or (name == SKIP_HOPELESS and name in named):
                sections[section][key] = new[key]
            elif name not in named:
                not_used.append(name)
            else:
                raise ConfigError(
                    f"{raw} was made with another {name}, which a retry keeps; leave out `--set {name}`, or the "
                    "`--profile` that has it, or make data/raw with it: `align ingest`"
                )
    if not_used:
        say(f"ingest: {params.source} has other values, which a retry does not use: {', '.join(not_used)}")
    used = Params(sections, raw / MANIFEST)
    config, download = used.section(IngestConfig), used.section(DownloadConfig)
    # pictures that were fetched stay, even if no text of theirs can pass; only the opposite change holds for all of
    # data/raw
    skips = config.model_copy(update={"skip_hopeless": config.skip_hopeless and stored.ingest["skip_hopeless"]})
    result = made_with(skips, download, stored.archive)
    return config, download, result.model_copy(update={"code": stored.code if stored.code == result.code else None})


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys of either mapping that have another value, or none, in the other one."""
    keys = one.keys() | other.keys()
    return sorted(key for key in keys if (key in one, one.get(key)) != (key in other, other.get(key)))


#: Reasons, and damaged files, that the last lines name.
_MOST = 3
_RETRY = "may pass: `align ingest --retry-failed`"
_MORE_TIME = f"{_RETRY}, with a larger download.timeout_s if the servers are slow"
_BROKEN = "the file at that address is broken, or no picture"
#: Code of an error_message -> what to set or do.
_REMEDIES = {
    ADDRESS_REFUSED: "of a private network: name it in download.allow_networks if it is yours, then `align ingest`",
    "robots.txt": "the host forbids it; download.obey_robots and download.user_agent say how we ask",
    "X-Robots-Tag": "the host forbids it; download.obey_robots and download.user_agent say how we ask",
    RESERVED: "its page or site forbids it; download.obey_robots",
    "robots.txt unreachable": _RETRY,
    "timed out": _MORE_TIME,
    "DNS failure": f"{_RETRY}; all of them: is this machine online?",
    "connection refused": _RETRY,
    "connection lost": _RETRY,
    "cannot connect": f"{_RETRY}; all of them: is this machine online?",
    "truncated": _RETRY,
    "too large": "download.max_image_bytes",
    "too many pixels": "ingest.max_image_pixels",
    "too many redirects": "download.max_redirects",
    "not in archive": "the archive has no such picture; ingest.images_from: archive_then_web asks the web for it",
    "invalid URL": "is ingest.columns.url the column of the addresses?",
    "not a picture that we decode": _BROKEN,
    "empty body": _BROKEN,
    REFUSED: "taken down: data/policy/opted_out.csv",
}
_MAY_PASS = re.compile(r"HTTP (408|425|429|5(?!01|05)\d\d)")


def remedy(reason: str) -> str | None:
    """What to set or do about a reason; None if nothing helps, as for a 404."""
    if _MAY_PASS.fullmatch(reason):
        return _RETRY
    return _REMEDIES.get(reason)


def commonest(errors: Mapping[str, int], where: str) -> list[str]:
    """The commonest reasons, each with its number and what to do, and how many others there are.

    Pairs that were left out on purpose are not among them.

    Args:
        errors: pairs per reason.
        where: names the page that lists them all.
    """
    failed = [(num, reason) for reason, num in errors.items() if reason != HOPELESS]
    failed.sort(key=lambda one: (-one[0], one[1]))
    lines = []
    for num, reason in failed[:_MOST]:
        todo = remedy(reason)
        lines.append(f"without a picture: {reason}: {num:,}" + (f" ({todo})" if todo else ""))
    if rest := failed[_MOST:]:
        lines.append(f"without a picture: {len(rest)} other reason(s): {sum(num for num, _ in rest):,}; all in {where}")
    return lines


_KEEP = "`dvc commit --force {stage}` keeps it"
_FETCHES = "without that, `dvc repro` removes it and fetches everything again"


def say_result(report: IngestReport, folder: Path) -> None:
    """The last lines; `folder` has the report."""
    num_failed = report.num_to_fetch - report.statuses.get(SUCCESS, 0)
    say(
        f"ingest: {report.num_pairs:,} pairs of {report.num_images:,} images from {report.num_pages:,} pages; "
        f"{num_failed:,} without a picture, {report.num_retryable:,} of these can be retried"
    )
    if report.num_not_fetched:
        say(
            f"ingest: {report.num_not_fetched:,} not fetched: no text of their picture can pass the filter "
            "(ingest.skip_hopeless)"
        )
    for what, number in not_read(report):
        say(f"ingest: warning: {what}: {number:,}")
    for damaged in report.files_damaged[:_MOST]:
        say(f"ingest: warning: {damaged}")
    for what, number in read_as_stored(report):
        say(f"ingest: {what}, read as they are stored: {number:,}")
    if texts_cut := report.counts.get("texts_cut"):
        say(f"ingest: {texts_cut:,} texts cut at {MAX_CHARACTERS:,} characters; `align filter` drops them")
    if report.files_quarantined:
        files = ", ".join(report.files_quarantined)
        say(f"ingest: warning: {len(report.files_quarantined)} file(s) left out, as reading killed a worker: {files}")
    for line in commonest(report.errors, str(folder / "report.html")):
        say(f"ingest: {line}")


def require_a_picture(report: IngestReport, raw: Path) -> None:
    """Fails if no pair has a picture, after everything is written, so that a retry can ask again.

    DVC then does not keep this data/raw, and no later stage runs.

    Raises:
        DataError: no pair has a picture.
    """
    if report.statuses.get(SUCCESS, 0):
        return
    todo = "`align ingest --retry-failed` asks again" if report.num_retryable else "see above for the reasons"
    raise DataError(f"{raw}: none of its {report.num_pairs:,} pairs has a picture; {todo}")


def unknown_to_dvc(raw: Path, *, with_outs: bool) -> list[str]:
    """What DVC does not know of data/raw (`with_outs`) and of its sources; empty if DVC does not keep data/raw.

    A retry reads neither the archive nor the code that read it. If DVC knows that these made this data/raw, they also
    make the one after the retry, as long as they stay the same.
    """
    stage = _stage_to_tell(raw)
    if stage is None:
        return []
    try:
        changes = changes_of(Path(), stage)
    except DataError as error:
        return [str(error)]
    outs = changes.outs if with_outs else frozenset[str]()
    return sorted({*changes.other, *outs, *changes.deps} - {PARAMS_FILE})  # whose values the manifest has


def tell_dvc(params: Params, outs: Mapping[str, Path], unknown: list[str], changed: list[str]) -> None:
    """Tells DVC of a data/raw that was made outside of it, or says why not and what to do.

    The values are those of params.yaml (`align.services.dvc.outs.require_stated_values`), unless a retry kept others.

    Args:
        params: of the command.
        outs: what the command wrote: `raw` and `reports`.
        unknown: of a retry, what DVC did not know before.
        changed: what of the source changed while the command ran.
    """
    raw = outs["raw"]
    stage = _stage_to_tell(raw)
    if stage is None:
        return
    keep = _KEEP.format(stage=stage)
    if why := _not_as_stated(params, outs, stage):
        say(f"ingest: DVC is not told of this {raw}: {why}; {_FETCHES}")
        return
    if unknown:
        say(
            f"ingest: DVC is not told of this {raw}: before the retry it did not know {', '.join(unknown)}; {keep} if "
            f"{params.section(PathsConfig).archive} still has the same pairs; {_FETCHES}"
        )
        return
    if changed:
        say(
            f"ingest: DVC is not told of this {raw}: {', '.join(changed)} changed while it was made; run `align "
            f"ingest` again for what is there now; {_FETCHES}"
        )
        return
    say(f"ingest: telling DVC of this {raw}: `dvc commit --force {stage}`")
    try:
        record_outs(Path(), stage)
    except DataError as error:
        say(f"ingest: warning: {error}; DVC does not know this {raw} yet: {keep}; {_FETCHES}")


def _stage_to_tell(raw: Path) -> str | None:
    """The stage of dvc.yaml whose out this is; None if DVC itself runs the command, or has no such out."""
    return None if is_run_by_dvc() or not is_tracked() else stage_of(raw)


def _not_as_stated(params: Params, outs: Mapping[str, Path], stage: str) -> str | None:
    """Why the outs are not what DVC would take them for, or None."""
    if stage_of(outs["reports"]) != stage:
        return f"its report is elsewhere ({outs['reports']})"
    manifest = read_raw_manifest(outs["raw"])
    if manifest is None or manifest.made_with is None:
        return f"it does not say with which values it was made; `dvc commit --force {stage}` keeps it if you know"
    archive = params.section(PathsConfig).archive
    stated = made_with(params.section(IngestConfig), params.section(DownloadConfig), archive)
    other = [] if manifest.made_with.archive == archive else ["paths.archive"]
    for section in ("ingest", "download"):
        keys = differing(getattr(manifest.made_with, section), getattr(stated, section))
        other += [f"{section}.{key}" for key in keys]
    if not other:
        return None
    return (
        f"its manifest.json has other values than {params.source}: {', '.join(other)}; put them there and run `align "
        "ingest --retry-failed` again"
    )
