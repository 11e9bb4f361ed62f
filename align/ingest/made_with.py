"""The values with which data/raw was made: ingest writes them into its manifest, and a retry takes them from there.

A retry with other values would undo what the first run got: a network that is refused now, a name that a host bars. So
params.yaml's values of that day do not count, except those that only say how patiently to ask. Which skipped pictures
to ask for counts if a person names it on the command line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from align.config.download import DownloadConfig
from align.config.ingest import IngestConfig
from align.config.params import Params
from align.display.console import say
from align.errors import ConfigError
from align.formats.raw import MANIFEST, MadeWith, read_raw_manifest

#: The sections, and one parameter, that decide what is in data/raw.
DECIDING_VALUES = ("ingest", "download", "paths.archive")
#: Values that a retry takes as they are now. A failure that depends on them may pass, so each such picture is asked for
#: again: afterwards no pair of data/raw has an outcome that depends on the old value.
PATIENCE = frozenset({
    "download.max_connections",
    "download.max_connections_per_host",
    "download.max_requests_per_host_per_s",
    "download.connect_timeout_s",
    "download.timeout_s",
    "download.deadline_s",
    "download.max_bytes_in_flight",
    "download.num_retries",
    "download.max_failures_per_host",
    "download.backoff_s",
})  # fmt: skip
#: A value that a retry takes if it is named: which skipped pictures to ask for.
SKIP_HOPELESS = "ingest.skip_hopeless"


def made_with(config: IngestConfig, download: DownloadConfig, archive: str) -> MadeWith:
    """The values of an ingest, for the manifest."""
    return MadeWith(archive=archive, ingest=config.model_dump(mode="json"), download=download.model_dump(mode="json"))


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
            if name in PATIENCE or (name == SKIP_HOPELESS and name in named):
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
    return config, download, made_with(skips, download, stored.archive)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys of either mapping that have another value, or none, in the other one."""
    keys = one.keys() | other.keys()
    return sorted(key for key in keys if (key in one, one.get(key)) != (key in other, other.get(key)))
