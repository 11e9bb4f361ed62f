"""An output shard's samples: its images read from wherever they lie in the raw tars, and made `image_px` square.

Images are read by offset, some at a time, in the order in which they lie; memory holds those few. Resizing is
antialiased and bilinear, without keeping the aspect, as the paper does (section 4.1; there 346 px); transparency
becomes white. A JPEG that is `image_px` square already stays the bytes that it is.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image

from align.errors import CorruptError, DataError
from align.formats.shards import Sample
from align.pairs.picture import PictureError, decode

#: Images read at a time.
_AT_ONCE = 64
#: Raw tars held open.
_OPEN = 128


class _Wanted(NamedTuple):
    """A sample but for its image, and where that lies."""

    key: str
    image_id: str
    keys: tuple[str, ...]
    texts: tuple[str, ...]
    tar: int
    offset: int
    size: int


class RawTars:
    """Reads bytes of raw tars by their number. A context manager.

    Args:
        local: paths by number; None where the tar lies elsewhere.
        fetch: (tar number, offset, bytes) -> the bytes, for those that lie elsewhere; called from several threads.
        num_threads: of `fetch`.
    """

    def __init__(
        self, local: Sequence[str | None], fetch: Callable[[int, int, int], bytes] | None, num_threads: int
    ) -> None:
        self._local, self._fetch, self._num_threads = local, fetch, num_threads
        self._files: dict[int, int] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> RawTars:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def ask(self, wanted: Sequence[_Wanted]) -> Iterator[bytes]:
        """The images' bytes. They are on their way from now on, in the order in which they lie; each is read when it is
        taken from the iterator.

        Raises:
            CorruptError: a tar ends too early, or bytes from elsewhere are not those of the image.
            DataError, ServiceError: as `fetch`.
        """
        coming: dict[int, Future[bytes]] = {}
        for index, one in sorted(enumerate(wanted), key=lambda item: (item[1].tar, item[1].offset)):
            if self._local[one.tar] is None:
                self._pool = self._pool or ThreadPoolExecutor(self._num_threads, thread_name_prefix="gather")
                coming[index] = self._pool.submit(self._read_far, one)
            else:
                os.posix_fadvise(self._descriptor(one.tar), one.offset, one.size, os.POSIX_FADV_WILLNEED)
        return (
            coming[index].result() if index in coming else self._read_local(one) for index, one in enumerate(wanted)
        )

    def _descriptor(self, tar: int) -> int:
        descriptor = self._files.get(tar)
        if descriptor is None:
            if len(self._files) >= _OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            descriptor = self._files[tar] = os.open(str(self._local[tar]), os.O_RDONLY)
        return descriptor

    def _read_local(self, one: _Wanted) -> bytes:
        data = os.pread(self._descriptor(one.tar), one.size, one.offset)
        if len(data) != one.size:
            raise CorruptError(f"{self._local[one.tar]}: ends before the image {one.key}; run `align ingest` again")
        return data

    def _read_far(self, one: _Wanted) -> bytes:
        assert self._fetch is not None
        data = self._fetch(one.tar, one.offset, one.size)
        if hashlib.sha256(data).hexdigest() != one.image_id:
            raise CorruptError(
                f"image {one.key} in the object store: its sha256 is not {one.image_id}; the object is damaged: "
                "remove it and run `align ingest` again"
            )
        return data


def gather(rows: pa.Table, tars: RawTars, image_px: int, jpeg_quality: int) -> Iterator[Sample]:
    """The samples of an output shard.

    Args:
        rows: of the plan (`align.shard.plan.Plan.rows`).
        tars: where the images are read.
        image_px: side of the images that come out.
        jpeg_quality: of those that are resized.

    Raises:
        DataError: an image does not decode.
        CorruptError, ServiceError: as `RawTars.read`.
    """
    images = _wanted(rows)
    windows = iter(lambda: list(islice(images, _AT_ONCE)), [])
    waiting: list[_Wanted] = []
    coming: Iterator[bytes] = iter(())
    for window in chain(windows, [[]]):
        next_ones = tars.ask(window)
        yield from _samples(waiting, coming, image_px, jpeg_quality)
        waiting, coming = window, next_ones


def _wanted(rows: pa.Table) -> Iterator[_Wanted]:
    """One an image; where it lies, and its key, are those of its first pair."""
    ranks = rows["rank"].to_numpy()
    starts = np.flatnonzero(np.diff(ranks, prepend=-1))
    keys, texts = rows["key"].to_pylist(), rows["text"].to_pylist()
    first = rows.select(["image_key", "image_id", "tar", "offset", "size"]).take(pa.array(starts)).to_pydict()
    for begin, end, image_key, image_id, tar, offset, size in zip(
        starts.tolist(), [*starts[1:].tolist(), len(ranks)], *first.values(), strict=True
    ):
        yield _Wanted(image_key, image_id, tuple(keys[begin:end]), tuple(texts[begin:end]), tar, offset, size)


def _samples(wanted: Sequence[_Wanted], found: Iterator[bytes], image_px: int, jpeg_quality: int) -> Iterator[Sample]:
    for one, data in zip(wanted, found, strict=True):
        try:
            image = data if _fits(data, image_px) else resize(data, image_px, jpeg_quality)
        except PictureError as error:
            what = f"image {one.key} of a kept pair does not decode ({error})"
            raise DataError(f"{what}; run `align ingest` and `align filter` again") from None
        yield Sample(one.key, one.image_id, image, one.keys, one.texts)


def _fits(data: bytes, image_px: int) -> bool:
    """Whether these bytes can stay as they are: a colour JPEG of just this size, which the filter has decoded."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    return bool(height == width == image_px and colours == "YCbCr")


def resize(data: bytes, image_px: int, quality: int) -> bytes:
    """Image bytes of any format -> JPEG of `image_px` x `image_px`, aspect not kept, transparency on white.

    Raises:
        PictureError: the bytes do not decode.
    """
    # The filter has refused pictures of too many pixels; a JPEG need not be decoded larger than twice the result.
    image = decode(data, max_pixels=sys.maxsize, hint_px=2 * image_px)
    resized = np.array(image.resize((image_px, image_px), Image.Resampling.BILINEAR))
    # 4:4:4, since halved colour resolution shows at this size.
    return bytes(simplejpeg.encode_jpeg(resized, quality=quality, colorspace="RGB", colorsubsampling="444"))
