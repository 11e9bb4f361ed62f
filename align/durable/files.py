"""Writes files and folders complete or not at all; deterministic JSON; the sha256 of files and folders.

A folder that a stage replaces carries a mark. A folder without it belongs to a person, and nothing here removes it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from align.errors import AlignError, DataError

#: The mark in every folder that a stage replaces: {"made_by": the stage, "schema_version": 1}.
MARK = ".align.json"

#: Names of temporaries (`temporary_name`). A machine's name may be long and a file's name may have 255 bytes.
_HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:32] or "unknown"
_PROCESS = secrets.token_hex(4)
_NUMBERS = itertools.count()
_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.(?P<process>[0-9a-f]{8})-\d+\.(part|old)", re.DOTALL
)
_DAY_S = 24 * 3600
#: In the errors of the system, SQLite, Arrow and safetensors.
_FULL = re.compile("No space left on device|disk is full|Disk quota exceeded")


def to_json(value: Any) -> str:
    """Deterministic JSON text (sorted keys, UTF-8, trailing newline). Raises ValueError on NaN or infinity."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically: a temporary file next to it, os.replace, and fsync of both the file and the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with replaced(path) as beside:
        beside.write_bytes(data)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names what the block writes where a full disk ends it, by an OSError: neither write() nor most libraries do."""
    try:
        yield
    except Exception as error:
        named = isinstance(error, AlignError) or (isinstance(error, OSError) and error.filename is not None)
        if named or not _FULL.search(str(error)):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


@contextmanager
def replaced(path: Path, *, on_disk: bool = True) -> Iterator[Path]:
    """Yields a new name next to `path`: the file that the block writes there replaces it, unless the block fails.

    With `on_disk` the file and the folder are flushed, too, so that a power cut does not undo it.
    """
    beside = temporary_name(path)
    try:
        with naming(path):
            yield beside
        if on_disk:
            fsync(beside)
        os.replace(beside, path)
        if on_disk:
            fsync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


@lru_cache(maxsize=1024)
def sweep(folder: Path) -> None:
    """Removes the files that killed writers left in a folder, once per process: a folder may hold a million files."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            ours = entry.name.endswith(".part") and is_temporary(path := folder / entry.name)
            if ours and entry.is_file(follow_symlinks=False) and _is_dead(path):
                path.unlink(missing_ok=True)


def temporary_name(path: Path, ending: str = "part") -> Path:
    """A new name next to `path` for its replacement. It names the owner: machine, process, number."""
    return path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.{_PROCESS}-{next(_NUMBERS)}.{ending}")


def is_temporary(path: Path) -> bool:
    """Whether `temporary_name` made the name."""
    return _TEMPORARY.fullmatch(path.name) is not None


def without_temporary_names(path: Path) -> Path:
    """The path after the temporaries in it have replaced what they are named after."""
    return Path(*(match["name"] if (match := _TEMPORARY.fullmatch(part)) else part for part in path.parts))


@contextmanager
def replace_directory(path: Path, made_by: str | None) -> Iterator[Path]:
    """Yields an empty folder that replaces `path` when the block succeeds, and is removed when it fails.

    The folder at `path` is the complete old one or the complete new one at any moment, even after a kill. The next run
    removes what a killed run left.

    Args:
        path: absent, empty, or made by the same stage; nothing else is replaced (see `require_replaceable`).
        made_by: the stage or command, for the mark; None: it gets no mark, and is a person's from then on.

    Raises:
        DataError: `path` may not be replaced.
    """
    path = Path(path)
    require_replaceable(path, made_by)
    make_parent(path)
    clear_leftovers(path)
    part = temporary_name(path)
    part.mkdir()
    try:
        with naming(path):
            yield part
        if made_by is not None:
            mark(part, made_by)
        fsync_all(part)
        require_replaceable(path, made_by)  # the block may have taken hours
        swap(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def mark(folder: Path, made_by: str) -> None:
    """Marks a folder as one that this stage makes, and may therefore replace."""
    write_text(folder / MARK, to_json({"schema_version": 1, "made_by": made_by}))


def marked(folder: Path) -> str | None:
    """The stage that made a folder, by its mark; None without one."""
    try:
        value = json.loads((folder / MARK).read_bytes())
        return str(value["made_by"]) if value["schema_version"] == 1 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def require_replaceable(path: Path, made_by: str | None) -> None:
    """Checks that replacing the folder `path` destroys nobody's work. It changes nothing.

    Args:
        path: the folder.
        made_by: the stage that replaces it; None if the new folder holds everything of the old one.

    Raises:
        DataError: `path` is a file, a link, a mount point, the working directory or one around it, lies in a folder
            that a stage replaces, cannot be written, or has content without the mark of this stage.
    """
    other = "move or remove it yourself, or choose another folder"
    if path.is_symlink():
        raise DataError(f"{path}: a symbolic link to {path.readlink()} is not replaced; give the folder itself")
    if path.exists() and not path.is_dir():
        raise DataError(f"{path}: is a file, not a folder; {other}")
    real = path.resolve()
    if Path.cwd().is_relative_to(real):
        raise DataError(f"{path}: the working directory, or a folder around it, is not replaced; choose another folder")
    if os.path.ismount(real):
        raise DataError(f"{path}: a mount point cannot be replaced; choose a folder in it")
    for around in real.parents:
        if (maker := marked(around)) is not None:
            raise DataError(f"{path}: lies in {around}, which `align {maker}` replaces whole; choose another folder")
    nearest = next(folder for folder in real.parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise DataError(f"{path}: {nearest} cannot be written to; choose another folder, or change its permissions")
    if made_by is None or not path.exists() or not any(path.iterdir()) or marked(path) == made_by:
        return
    maker = marked(path)
    why = f"has content, and no {MARK} that says that align made it" if maker is None else f"`align {maker}` made it"
    raise DataError(f"{path}: {why}, so {made_by} does not replace it; {other}")


def make_parent(path: Path) -> None:
    """Makes the folder that `path` will be in. Raises DataError if that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"{path}: {error.filename} cannot be made: {error.strerror}; choose another folder") from None


def require_apart(out: Path, *inputs: Path) -> None:
    """Raises DataError if a folder that is replaced is one of the inputs, lies in one, or contains one."""
    for path in inputs:
        one, other = out.resolve(), path.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise DataError(f"{out}: would replace, or lie in, the input {path}; choose another folder")


def swap(new: Path, path: Path) -> None:
    """Puts the folder `new`, which is on disk, at `path`; the old folder is at `new` afterwards.

    Linux exchanges the two in one step. Elsewhere, and on a file system that cannot, a kill between two renames can
    leave nothing at `path`: `clear_leftovers` then puts the old folder back.
    """
    try:
        if not path.exists():
            os.replace(new, path)
        elif not _exchange(new, path):
            _replace_in_two_steps(new, path)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        raise DataError(f"{path}: a mount point cannot be replaced; choose a folder in it") from None
    fsync(path.parent)


def _replace_in_two_steps(new: Path, path: Path) -> None:
    old = temporary_name(path, "old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    fsync(path.parent)
    os.replace(old, new)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False if that is impossible."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def leftovers(path: Path) -> list[Path]:
    """The temporaries of `path` that are still there."""
    if not path.parent.is_dir():
        return []
    names = ((entry, _TEMPORARY.fullmatch(entry)) for entry in sorted(entry.name for entry in path.parent.iterdir()))
    return [path.with_name(entry) for entry, match in names if match and match["name"] == path.name]


def clear_leftovers(path: Path) -> None:
    """Removes what dead processes left next to `path`, and puts `path` back if a kill in a replacement removed it."""
    for entry in filter(_is_dead, leftovers(path)):
        if entry.suffix == ".old" and not path.exists():
            with suppress(FileNotFoundError):  # another process was first
                os.replace(entry, path)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _is_dead(entry: Path) -> bool:
    """Whether the process that made a temporary has ended; one of another machine counts as ended after a day."""
    match = _TEMPORARY.fullmatch(entry.name)
    assert match is not None
    if match["host"] != _HOST:
        try:
            return time.time() - entry.lstat().st_ctime > _DAY_S
        except FileNotFoundError:
            return False
    if int(match["pid"]) == os.getpid():
        return match["process"] != _PROCESS  # an earlier process with our number
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is someone else's
        pass
    return False


def fsync(path: Path) -> None:
    """Flushes a file (or a folder's entries) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_all(folder: Path) -> None:
    """Flushes a folder, with everything in it, to disk."""
    for each in (*folder.rglob("*"), folder):
        if each.is_dir() or each.is_file():
            fsync(each)


def require_utf8(name: str) -> None:
    """Raises DataError if a file's name is not UTF-8, so that no table can hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        spelt = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise DataError(f"{spelt}: the name is not UTF-8, so no table can hold it; rename it") from None


def link(source: str | Path, target: str | Path) -> None:
    """Puts a hard link to a file at `target`; a copy, where they are on two disks or there are no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """Hex sha256 over the names and sha256s of a folder's files, in order of their names.

    Byte code and the mark are left out.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent.name != "__pycache__" and path.name != MARK:
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()
