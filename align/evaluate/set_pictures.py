"""Reads the pictures of an evaluation set, and finds those that are missing, broken or repeated."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from align.display.console import track
from align.durable.processes import in_threads
from align.evaluate.set_sources import Faults, Listed
from align.formats.evaluation_set import EvaluationImage, Split, Spool
from align.pairs.picture import PictureError, decode, read_header, shrink

#: Characters of a key.
_MAX_SLUG = 80
#: A JPEG may be decoded at a fraction of its size to see whether it decodes.
_HINT_PX = 256


@dataclass(frozen=True)
class Limits:
    """Bounds of one picture, and what is done to larger ones.

    Attributes:
        max_bytes: of its file.
        max_pixels: by its header.
        resize_px: pictures with a longer shorter side are shrunk to it; None: bytes as they are.
        jpeg_quality: of shrunk pictures.
    """

    max_bytes: int
    max_pixels: int
    resize_px: int | None
    jpeg_quality: int


@dataclass(frozen=True)
class _Looked:
    """A picture's bytes, or what is wrong with it."""

    data: bytes = b""
    fault: str | None = None
    why: str = ""


def read_pictures(
    listed: Sequence[tuple[Listed, Split]], limits: Limits, faults: Faults, spool: Spool
) -> list[EvaluationImage]:
    """The items without fault, in order; the others are added to `faults`. Equal pictures are joined to one.

    The pictures of the items go to `spool`, in the same order.
    """
    look = partial(_look, limits=limits)
    looked = in_threads(look, (one.path for one, _ in listed), os.cpu_count() or 1)
    first: dict[bytes, tuple[Listed, Split, int]] = {}  # by content; the position in `images`
    keys: set[str] = set()
    images: list[EvaluationImage] = []
    for (one, split), result in zip(listed, track(looked, what="make_set: pictures", total=len(listed)), strict=True):
        if result.fault is not None:
            faults.add(result.fault, f"{one.name}: {result.why}" if result.why else one.name)
            continue
        texts = tuple(one.texts) or ((one.label,) if one.label is not None else ())
        if not texts:
            continue  # at fault already
        other, other_split, position = first.setdefault(hashlib.sha256(result.data).digest(), (one, split, len(images)))
        if other is not one:
            if (other.label, other_split) == (one.label, split) and _is_one_concept(one, other):
                joined = dict.fromkeys((*images[position].texts, *texts))
                images[position] = replace(images[position], texts=tuple(joined))
                faults.joined.append(f"{one.name} = {other.name}")
            else:
                faults.add("equal to one of another class, concept or split", f"{one.name} = {other.name}")
            continue
        spool.add(result.data)
        images.append(EvaluationImage(_key(one.name, keys), one.concept, texts, one.label, None, split))
    return images


def _is_one_concept(one: Listed, other: Listed) -> bool:
    """Whether equal pictures may be one: nobody said that they show different things."""
    return one.concept == other.concept or (one.concept == one.name and other.concept == other.name)


def _look(path: Path, limits: Limits) -> _Looked:
    try:
        if not path.is_file():
            return _Looked(fault="missing")
        if path.stat().st_size > limits.max_bytes:
            return _Looked(fault=f"larger than {limits.max_bytes >> 20} MiB (ingest.max_record_bytes)")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        return _Looked(fault="unreadable", why=str(getattr(error, "strerror", None) or error))
    try:
        header = read_header(data)
        if limits.resize_px is not None and min(header.width_px, header.height_px) > limits.resize_px:
            data = shrink(data, limits.resize_px, limits.jpeg_quality, limits.max_pixels)[0]
        else:
            decode(data, max_pixels=limits.max_pixels, hint_px=_HINT_PX)
    except PictureError as error:
        return _Looked(fault="undecodable", why=str(error))
    return _Looked(data)


def _key(name: str, taken: set[str]) -> str:
    """A key that is like the picture's name, ASCII, and not taken."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", name.rpartition(".")[0] or name)[-_MAX_SLUG:]
    key, number = slug, 1
    while key in taken:
        number += 1
        key = f"{slug}_{number}"
    taken.add(key)
    return key
