"""Writes tars, for tests."""

import io
import tarfile
from pathlib import Path


def tar(path: Path, members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    """Writes a tar of these members, name -> bytes; returns its path."""
    with tarfile.open(path, "w", format=form) as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path
