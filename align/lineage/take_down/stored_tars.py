"""The tars that the manifest.json of a data/raw or data/shards names, of any recorded version: path, sha256, size."""

from __future__ import annotations

import json
from pathlib import Path

from align.errors import FormatError
from align.formats.shards import MANIFEST


def stored_tars(folder: Path) -> dict[str, tuple[str, int]]:
    """Tar, relative to the folder -> (sha256, bytes); empty if it has no manifest.

    Raises:
        FormatError: it is the manifest of neither folder.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if "splits" in manifest:
            rows = [shard for split in manifest["splits"].values() for shard in split["shards"]]
            return {str(row["path"]): (str(row["sha256"]), int(row["num_bytes"])) for row in rows}
        return {f"{row['name']}.tar": (str(row["tar_sha256"]), int(row["tar_bytes"])) for row in manifest["shards"]}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{path}: no manifest that this code reads; make the folder again") from None
