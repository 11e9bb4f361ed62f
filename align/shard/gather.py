"""Makes the samples of an output shard: reads its images from the raw tars and resizes them to `image_px` square.

Images are read by offset, some at a time, in the order of the tars; memory holds only those. Resizing is antialiased
and bilinear and does not keep the aspect, as in the paper (section 4.1; there 346 px). Transparency becomes white. The
bytes of an upright JPEG that is `image_px` square already are kept; the filter has checked that it decodes.
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
from align.pairs.picture import PictureError, decode, is_finished_jpeg

#: Images that are read together.
_IMAGES_AT_ONCE = 64
#: Most raw tars open at a time.
_OPEN = 128


class Request(NamedTuple):
    """A sample without its image, and where the image is: offset and size in bytes, in the tar of this number."""

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
        local: path of each tar, by number; None for a tar in the object store.
        fetch: (tar number, offset, number of bytes) -> bytes, for tars in the object store; called by several threads.
        num_threads: threads that call `fetch`.
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

    def read(self, requests: Sequence[Request]) -> Iterator[bytes]:
        """The images' bytes, in the order of the requests. Reading ahead begins at once, in the order of the tars.

        Raises:
            CorruptError: a tar ends too early, or bytes from the object store are not those of the image.
            DataError, ServiceError: as `fetch`.
        """
        fetches: dict[int, Future[bytes]] = {}
        for index, request in sorted(enumerate(requests), key=lambda item: (item[1].tar, item[1].offset)):
            if self._local[request.tar] is None:
                self._pool = self._pool or ThreadPoolExecutor(self._num_threads, thread_name_prefix="gather")
                fetches[index] = self._pool.submit(self._read_remote, request)
            else:
                os.posix_fadvise(self._descriptor(request.tar), request.offset, request.size, os.POSIX_FADV_WILLNEED)
        return (
            fetches[index].result() if index in fetches else self._read_local(request)
            for index, request in enumerate(requests)
        )

    def _descriptor(self, tar: int) -> int:
        descriptor = self._files.get(tar)
        if descriptor is None:
            if len(self._files) >= _OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            descriptor = self._files[tar] = os.open(str(self._local[tar]), os.O_RDONLY)
        return descriptor

    def _read_local(self, request: Request) -> bytes:
        data = os.pread(self._descriptor(request.tar), request.size, request.offset)
        return self._whole(data, request, str(self._local[request.tar]))

    def _read_remote(self, request: Request) -> bytes:
        assert self._fetch is not None
        return self._whole(self._fetch(request.tar, request.offset, request.size), request, "the object store")

    def _whole(self, data: bytes, request: Request, place: str) -> bytes:
        """The bytes of an image. Raises CorruptError if they are not those that the filter decided on."""
        if hashlib.sha256(data).hexdigest() != request.image_id:
            raise CorruptError(
                f"{place}: the image {request.key} is damaged: its sha256 is not {request.image_id}; remove the tar "
                "there, and get it back with `dvc checkout` or `align ingest`"
            )
        return data


def gather(rows: pa.Table, tars: RawTars, image_px: int, jpeg_quality: int) -> Iterator[Sample]:
    """The samples of an output shard.

    Args:
        rows: from the plan (`align.shard.assignment.ShardPlan.rows`).
        tars: the raw tars.
        image_px: side of the samples' images.
        jpeg_quality: of the images that are resized.

    Raises:
        DataError: an image does not decode.
        CorruptError, ServiceError: as `RawTars.read`.
    """
    requests = _requests_of(rows)
    windows = iter(lambda: list(islice(requests, _IMAGES_AT_ONCE)), [])
    current: list[Request] = []
    images: Iterator[bytes] = iter(())
    for window in chain(windows, [[]]):
        next_images = tars.read(window)  # while the current ones are resized
        yield from _samples(current, images, image_px, jpeg_quality)
        current, images = window, next_images


def _requests_of(rows: pa.Table) -> Iterator[Request]:
    """The images of some rows of a plan; position and key are those of its first pair."""
    ranks = rows["rank"].to_numpy()
    starts = np.flatnonzero(np.diff(ranks, prepend=-1))
    keys, texts = rows["key"].to_pylist(), rows["text"].to_pylist()
    first = rows.select(["image_key", "image_id", "tar", "offset", "size"]).take(pa.array(starts)).to_pydict()
    for begin, end, image_key, image_id, tar, offset, size in zip(
        starts.tolist(), [*starts[1:].tolist(), len(ranks)][: len(starts)], *first.values(), strict=True
    ):
        yield Request(image_key, image_id, tuple(keys[begin:end]), tuple(texts[begin:end]), tar, offset, size)


def _samples(
    requests: Sequence[Request], images: Iterator[bytes], image_px: int, jpeg_quality: int
) -> Iterator[Sample]:
    for request, data in zip(requests, images, strict=True):
        try:
            image = resize(data, image_px, jpeg_quality)
        except PictureError as error:
            what = f"image {request.key} of a kept pair does not decode ({error})"
            raise DataError(f"{what}; run `align ingest` and `align filter` again") from None
        yield Sample(request.key, request.image_id, image, request.keys, request.texts)


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
