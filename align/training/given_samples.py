"""Tars that others made (webdataset, img2dataset): which of their samples can be trained on, and where they are.

Members of one name are a sample. Its texts are in its JSON, if that lists several, else in the first member with one of
TEXT_EXTENSIONS, else in the JSON. A picture is one by its header; training replaces what does not decode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import BinaryIO

from align.formats.img2dataset import IMAGE_EXTENSIONS
from align.formats.sample_texts import MAX_TEXT_BYTES, TEXT_EXTENSIONS, sample_name, texts_in
from align.formats.tar_members import DamagedTar, Member, read_members
from align.pairs.picture import MAX_PIXELS, PictureError, decode_pixels, read_header

_MAX_PICTURE_BYTES = 64 << 20
#: Why a sample is left out.
NO_PICTURE, NO_TEXT, TOO_LARGE = "no picture", "no text", "a member that is too large or no plain file"
NOT_DECODED, DAMAGED = "a picture that cannot be decoded", "the rest of a tar that is cut off or damaged"

#: A member and its bytes.
Part = tuple[Member, bytes]


def given_samples(
    file: BinaryIO, held_out: Callable[[str], bool], left_out: Counter[str]
) -> Iterator[tuple[bool, Part, Part]]:
    """Of each sample with both, in order: whether it is held out, its picture (of any size and format), its texts.

    Args:
        file: the tar, which is read forwards, each byte once.
        held_out: by the key of a sample; then its picture is decoded, since all that is measured needs the same ones.
        left_out: counts what is left out, by reason.
    """
    for key, members in groupby(_members(file, left_out), lambda member: sample_name(member.name)[0]):
        found: dict[str, Part] = {}
        for member in members:
            extension = sample_name(member.name)[1]
            kind = "picture" if extension in IMAGE_EXTENSIONS else extension
            if kind not in ("picture", "json", *TEXT_EXTENSIONS):
                continue
            if member.problem or member.size > (_MAX_PICTURE_BYTES if kind == "picture" else MAX_TEXT_BYTES):
                left_out[TOO_LARGE] += 1
                continue
            file.seek(member.offset)
            found[kind] = member, file.read(member.size)
        picture, texts = found.get("picture"), _texts(found)
        if picture and texts and _is_picture(picture[1], whole=(is_held_out := held_out(key))):
            yield is_held_out, picture, texts
        elif found:  # else it is no part of a pair, such as a list of classes
            left_out[NO_PICTURE if picture is None else NO_TEXT if texts is None else NOT_DECODED] += 1


def _is_picture(data: bytes, *, whole: bool) -> bool:
    try:
        header = read_header(data)
        if whole:
            decode_pixels(data, 8, max_pixels=MAX_PIXELS)
    except PictureError:
        return False
    return header.width_px * header.height_px <= MAX_PIXELS


def _texts(found: dict[str, Part]) -> Part | None:
    """The member with the texts of a sample."""
    texts = {kind: texts_in(found[kind][1]) for kind in (*TEXT_EXTENSIONS, "json") if kind in found}
    kind = "json" if len(texts.get("json", ())) > 1 else next((one for one in texts if texts[one]), None)
    return found[kind] if kind else None


def _members(file: BinaryIO, left_out: Counter[str]) -> Iterator[Member]:
    try:
        yield from read_members(file)
    except DamagedTar:
        left_out[DAMAGED] += 1
