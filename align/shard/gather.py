"""Makes the samples of an output shard: reads its images from the raw tars and resizes them to `image_px` square.

Threads read a few images ahead, by ranges of bytes; memory holds only those. Resizing is antialiased and bilinear and
does not keep the aspect, as in the paper (section 4.1; there 346 px). Transparency becomes white. The bytes of an
upright JPEG that is `image_px` square already are kept; the filter has checked that it decodes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image

from align.durable.processes import in_threads
from align.errors import CorruptError, DataError
from align.formats.shards import Sample
from align.pairs.picture import PictureError, decode, is_finished_jpeg

#: Reads a range of a raw tar: its name, first byte, number of bytes. Several threads call it.
Read = Callable[[str, int, int], bytes]


#: A sample without its image, and the range of a raw tar that is the image.
_Request = tuple[Sample, tuple[str, int, int]]


def gather(rows: pa.Table, read: Read, num_threads: int, image_px: int, jpeg_quality: int) -> Iterator[Sample]:
    """The samples of an output shard, from its rows of the plan (`align.shard.plan.read_rows`).

    Raises as `read`; also DataError if an image does not decode, and CorruptError if bytes of a tar are not those of
    the image that the filter decided on.
    """
    for sample in in_threads(partial(_fetch, read), _requests_of(rows), num_threads):
        try:
            yield replace(sample, image=resize(sample.image, image_px, jpeg_quality))
        except PictureError as error:
            what = f"image {sample.key} of a kept pair does not decode ({error})"
            raise DataError(f"{what}; run `align ingest` and `align filter` again") from None


def _requests_of(rows: pa.Table) -> Iterator[_Request]:
    """The images of some rows of a plan; place and key are those of its first pair."""
    positions = rows["position"].to_numpy()
    starts = np.flatnonzero(np.diff(positions, prepend=-1))
    keys, texts = rows["key"].to_pylist(), rows["text"].to_pylist()
    first = rows.select(["image_key", "image_id", "tar", "start", "num_bytes"]).take(pa.array(starts)).to_pydict()
    ends = [*starts[1:].tolist(), len(positions)]
    for begin, end, key, image_id, *span in zip(starts.tolist(), ends[: len(starts)], *first.values(), strict=True):
        yield Sample(key, image_id, b"", tuple(keys[begin:end]), tuple(texts[begin:end])), tuple(span)


def _fetch(read: Read, request: _Request) -> Sample:
    """The sample with the image as it came."""
    sample, span = request
    data = read(*span)
    if hashlib.sha256(data).hexdigest() != sample.image_id:
        raise CorruptError(
            f"{span[0]}.tar: the image {sample.key} is damaged: its sha256 is not {sample.image_id}; remove "
            "the tar, and get it back with `dvc checkout` or `align ingest`"
        )
    return replace(sample, image=data)


def resize(data: bytes, image_px: int, quality: int) -> bytes:
    """Image bytes of any format -> upright JPEG of `image_px` squared, aspect not kept, transparent pixels on white.

    Any number of pixels will do: the filter has passed the picture. Raises PictureError if the bytes do not decode.
    """
    if is_finished_jpeg(data, image_px):
        return data
    image = decode(data, max_pixels=sys.maxsize, hint_px=2 * image_px)  # a JPEG: at no more than twice the result
    resized = np.array(image.resize((image_px, image_px), Image.Resampling.BILINEAR))
    # 4:4:4, since halved colour resolution is visible at this size.
    return bytes(simplejpeg.encode_jpeg(resized, quality=quality, colorspace="RGB", colorsubsampling="444"))
