"""Writes and reads tars, for tests."""

import io
import tarfile


def tar(path, members, form=tarfile.USTAR_FORMAT):
    """Writes a tar of these members, name -> bytes; returns its path."""
    with tarfile.open(path, "w", format=form) as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def samples(tar):
    """Key -> suffix -> bytes."""
    found = {}
    with tarfile.open(tar) as opened:
        for member in opened:
            key, _, suffix = member.name.rpartition(".")
            file = opened.extractfile(member)
            found.setdefault(key, {})[suffix] = file.read()
    return found
