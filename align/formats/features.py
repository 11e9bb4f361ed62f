"""Keeps what was measured of evaluation images between runs: a network takes minutes for a thousand of them.

Kept outside of DVC's outs, in a folder for everything that decides the values: code, versions of libraries, networks,
limits. A value is a file with the name of its image's sha256. It begins with its own sha256, so a damaged one is
recognised, and its image is measured again. Files appear complete: any number of runs may share a folder.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from align.display.console import say
from align.durable.files import replaced, sweep
from align.durable.work import key_of
from align.project import provenance

T = TypeVar("T")
Images = Iterable[tuple[str, bytes]]

#: Images that are measured together, so that a killed run keeps most of its work.
ITEMS_AT_ONCE = 256
_DIGEST_BYTES = 32
#: What decodes, resizes and computes.
_LIBRARIES = ("numpy", "onnxruntime", "pillow", "simplejpeg")


@dataclass(frozen=True)
class Features(Generic[T]):
    """Values of one kind.

    Attributes:
        folder: of their files; None: nothing is kept.
        encode: a value -> bytes.
        decode: the reverse.
    """

    folder: Path | None
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]

    def look(self, measure: Callable[[Images], Iterable[tuple[str, T]]], images: Images) -> Iterator[tuple[str, T]]:
        """`measure(images)`, but measures only images without a kept value.

        Args:
            measure: from (name, bytes) to (name, value), in order; an image without a value is left out.
            images: names are unique.
        """
        if self.folder is None:
            yield from measure(images)
            return
        remaining, can_write = iter(images), True
        while block := list(islice(remaining, ITEMS_AT_ONCE)):
            files = {name: self.folder / hashlib.sha256(data).hexdigest() for name, data in block}
            kept = {name: data for name, file in files.items() if (data := _read(file)) is not None}
            new = dict(measure((name, data) for name, data in block if name not in kept))
            for name, value in new.items():
                can_write = can_write and _write(files[name], self.encode(value))
            for name in files:
                if name in new:
                    yield name, new[name]
                elif name in kept:
                    yield name, self.decode(kept[name])


def folder_of(root: Path | None, kind: str, module: str, decides: Sequence[Any]) -> Path | None:
    """The folder of a kind of values.

    Args:
        root: `store.features`; None: nothing is kept.
        kind: in plain letters.
        module: whose code computes the values.
        decides: everything else that decides them, as for `align.durable.work.key_of`.
    """
    if root is None:
        return None
    key = key_of(provenance.digest(module), [(name, version(name)) for name in _LIBRARIES], *decides)
    return root / f"{kind}-{key[:32]}"


def files_of(root: Path | None, image_ids: Set[str]) -> list[Path]:
    """The files of all kinds with values of some images, by their sha256s, below `store.features` if that exists."""
    folders = sorted(root.glob("*/")) if root is not None else []
    return [file for folder in folders for one in sorted(image_ids) if (file := folder / one).is_file()]


def _read(file: Path) -> bytes | None:
    """The bytes of a value; None if there are none, or they are damaged."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
        say(f"{file}: damaged, so its image is measured again")
        return None
    return zlib.decompress(data[_DIGEST_BYTES:])


def _write(file: Path, value: bytes) -> bool:
    """Whether it is kept."""
    data = zlib.compress(value, 1)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sweep(file.parent)
        with replaced(file, on_disk=False) as beside:
            beside.write_bytes(hashlib.sha256(data).digest() + data)
    except OSError as error:  # such as a full disk: the result does not need them
        say(f"warning: {file.parent}: what was measured of evaluation images is not kept ({error.strerror})")
        return False
    return True
