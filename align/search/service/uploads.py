"""Pictures of strangers: decoded in a process of little memory, which is killed when it takes too long."""

from __future__ import annotations

import base64
import binascii
import threading

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from align.errors import DataError
from align.pairs.picture import PictureError, read_header
from align.pairs.picture_header import outline
from align.pairs.picture_process import helper

#: The cost of decoding a megapixel, in fiftieths of a second: of one scan of a JPEG, and of any other picture as a
#: whole.
_COST_OF_SCAN, _COST_OF_OTHERS, _LEAST_COST = 0.3, 2.5, 0.5


#: For a picture in its process, which is killed then.
_TIMEOUT_S = 10.0


class Decoders:
    """Decodes in helper processes, each for one picture at a time. Threads share it."""

    def __init__(self, *, max_pixels: int, timeout_s: float = _TIMEOUT_S) -> None:
        """Starts no process yet.

        Args:
            max_pixels: of a picture, by its header.
            timeout_s: for a picture, in its process.
        """
        self._max_pixels, self._timeout_s = max_pixels, timeout_s

    def cost(self, data: bytes) -> float:
        """What decoding a file takes, by its header, as a multiple of an ordinary request's cost.

        Raises:
            DataError: not a picture, or too large.
        """
        try:
            header, num_scans = read_header(data), outline(data).num_scans
            if header.width_px * header.height_px > self._max_pixels:
                raise DataError(
                    f"the picture has {header.width_px:,} x {header.height_px:,} pixels; at most {self._max_pixels:,} "
                    "are read (serve.max_image_pixels)"
                )
        except PictureError as error:
            raise _undecodable(error) from None
        of_megapixel = _COST_OF_SCAN * num_scans if header.format == "JPEG" else _COST_OF_OTHERS
        return max(_LEAST_COST, of_megapixel * header.width_px * header.height_px / 1e6)

    def crop(self, data: bytes, resize_px: int, image_px: int) -> NDArray[np.uint8]:
        """The pixels that the image tower sees of a file (`align.model.preprocess`): (image_px, image_px, 3) uint8 RGB.

        Args:
            data: the file, which `cost` has let pass.
            resize_px: see `align.model.preprocess`.
            image_px: see there, too.

        Raises:
            DataError: broken, or too slow.
        """
        try:
            image = self._decode(data, resize_px)
        except PictureError as error:
            raise _undecodable(error) from None
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
                memory = lent.size(data)[3]
                return lent.pixels(data, memory, resize_px)
            except PictureError:
                if late.is_set():
                    raise PictureError(f"it did not decode within {self._timeout_s:g} s") from None
                raise
            finally:
                timer.cancel()


def _undecodable(error: PictureError) -> DataError:
    return DataError(f"not a picture that can be decoded: {error}")


def from_base64(text: str) -> bytes:
    """A file that came in a JSON text. Raises DataError if it is not base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DataError("the picture is not base64") from None
