"""Copies of training checkpoints in an object store (`store.checkpoints`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from align.config.store import StoreConfig
from align.errors import DataError
from align.files import fsync, temporary_name
from align.services import store_client
from align.services.locations import split_uri


@dataclass(frozen=True)
class CheckpointMirror:
    """Implements `align.protocols.store.Mirror`. Picklable: each rank has its own.

    Attributes:
        config: how to reach the server.
        location: s3://bucket/prefix.
    """

    config: StoreConfig
    location: str

    def put(self, path: Path, name: str) -> None:
        """Uploads a file, unless the store has it already: a step's checkpoint is the same each time."""
        store_client.upload(self.config, path, self._uri(name))

    def names(self, run: str) -> list[str]:
        """The names of a run's files, in order."""
        return list(self.sizes(run))

    def sizes(self, run: str) -> dict[str, int]:
        """The names of a run's files, in order -> bytes."""
        bucket, key = split_uri(self._uri(f"{run}/"))
        found = store_client.list_stats(self.config, bucket, key)
        names = ((name.removeprefix(key), status.num_bytes) for name, status in found)
        return {name: num_bytes for name, num_bytes in names if "/" not in name}  # it becomes the name of a file

    def get(self, name: str, path: Path) -> None:
        """Downloads a file, whole or not at all."""
        part = temporary_name(path)
        try:
            with part.open("wb") as file:
                if store_client.download(self.config, self._uri(name), file) is None:
                    raise DataError(f"{self._uri(name)}: has been deleted meanwhile; run again")
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
    """The mirror at `store.checkpoints`, or None if that is null."""
    return None if config.checkpoints is None else CheckpointMirror(config, config.checkpoints)
