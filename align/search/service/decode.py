"""Pictures of strangers: decoded in a process of little memory, which is killed when it takes too long."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from align.errors import DataError
from align.pairs.picture import PictureError, read_header
from align.pairs.picture_process import end_idle, helper

#: Pictures at a time, and seconds for each in its process, which is killed then.
_NUM_AT_ONCE, _TIMEOUT_S = 3, 10.0


class Decoders:
    """Threads that decode in helper processes, each for one picture at a time."""

    def __init__(self, *, max_pixels: int, timeout_s: float = _TIMEOUT_S) -> None:
        """Starts no process yet.

        Args:
            max_pixels: of a picture, by its header.
            timeout_s: for a picture, in its process.
        """
        self._max_pixels, self._timeout_s = max_pixels, timeout_s
        self._threads = ThreadPoolExecutor(_NUM_AT_ONCE, "decode")

    async def do(self, data: bytes, resize_px: int, image_px: int) -> NDArray[np.uint8]:
        """`crop` in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.crop, data, resize_px, image_px)

    def close(self) -> None:
        """Ends threads and processes."""
        self._threads.shutdown()
        end_idle()

    def crop(self, data: bytes, resize_px: int, image_px: int) -> NDArray[np.uint8]:
        """The pixels that the image tower sees of a file (`align.model.preprocess`): (image_px, image_px, 3) uint8 RGB.

        Raises:
            DataError: not a picture, too large, broken, or too slow.
        """
        try:
            header = read_header(data)
            if header.width_px * header.height_px > self._max_pixels:
                raise DataError(
                    f"the picture has {header.width_px:,} x {header.height_px:,} pixels; at most {self._max_pixels:,} "
                    "are read (serve.max_image_pixels)"
                )
            image = self._decode(data, resize_px)
        except PictureError as error:
            raise DataError(f"not a picture that can be decoded: {error}") from None
        from align.model.preprocess import centre_crop, resized

        return centre_crop(resized(np.array(image), resize_px), image_px)

    def _decode(self, data: bytes, resize_px: int) -> Image.Image:
        with helper() as lent:
            late = threading.Event()

            def stop() -> None:
                late.set()
                lent.kill()

            timer = threading.Timer(self._timeout_s, stop)
            timer.start()
            try:
                return lent.pixels(data, lent.size(data)[3], resize_px)
            except PictureError:
                if late.is_set():
                    raise PictureError(f"it did not decode within {self._timeout_s:g} s") from None
                raise
            finally:
                timer.cancel()
