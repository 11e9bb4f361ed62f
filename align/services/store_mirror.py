"""Copies of training checkpoints in an object store (`store.checkpoints`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from align.config.store import StoreConfig
from align.errors import DataError
from align.files import fsync
from align.services import store_client


@dataclass(frozen=True)
class CheckpointMirror:
    """See `align.protocols.store.Mirror`. Can be pickled: each rank has one.

    Attributes:
        config: how to reach the server.
        location: s3://bucket/prefix.
    """

    config: StoreConfig
    location: str

    def put(self, path: Path, name: str) -> None:
        """Stores a file; an existing one stays as it is, since a step's checkpoint is the same each time."""
        store_client.upload(self.config, path, self._uri(name))

    def names(self, run: str) -> list[str]:
        """Names of a run's files, sorted."""
        bucket, key = store_client.split_uri(self._uri(f"{run}/"))
        return [name.removeprefix(key) for name in store_client.list_objects(self.config, bucket, key)]

    def get(self, name: str, path: Path) -> None:
        """Copies a file here, whole or not at all."""
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                if store_client.download(self.config, self._uri(name), file) is None:
                    raise DataError(f"{self._uri(name)}: removed while it was needed; run again")
            fsync(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Deletes a file."""
        store_client.remove(self.config, self._uri(name))

    def _uri(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/{name}"


def checkpoint_mirror(config: StoreConfig) -> CheckpointMirror | None:
    """The mirror that `store.checkpoints` names; None if it names none."""
    return None if config.checkpoints is None else CheckpointMirror(config, config.checkpoints)
