"""What an evaluation of a suite is going to do: sets, counts, and the time and memory that it will take."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice

from align.display.console import say
from align.errors import DataError
from align.evaluate.embed import Crop, Towers
from align.evaluate.fine_tuning.recipe import Recipe
from align.evaluate.protocols.recall import BLOCK
from align.evaluate.tuned import Tuner
from align.formats.evaluation_set import EvaluationSet

#: Pictures that are embedded to tell how long the others take.
_TRIED = 32
#: Forward passes that a forward and a backward pass take.
_TRAINED = 3


def announce(sets: Sequence[EvaluationSet], towers: Towers, tuner: Tuner) -> None:
    """Says it. The time is that of the first pictures of the first set, and so a guess."""
    texts = {one.name: len(one.texts) for one in sets if one.kind == "retrieval"}
    for one in sets:
        known = sum(image.split == "reference" for image in one.images)
        if one.kind == "retrieval":
            what = f"{len(one.images):,} pictures and {texts[one.name]:,} texts, retrieval"
        elif one.kind == "many_labels":
            what = f"{len(one.images):,} pictures with any of {len(one.classes):,} classes, zero-shot"
        else:
            what = f"{len(one.images) - known:,} pictures in {len(one.classes):,} classes, zero-shot"
            what += f"; {known:,} more to learn from" if known else ""
        left_out = f"; {len(one.unusable):,} rows that cannot be used" if one.unusable else ""
        say(f"evaluate: {one.name}: {what}{left_out}")
    pictures = sum(len(one.images) for one in sets)
    seconds, width, image_px = _tried(sets, towers)
    largest = max((max(texts.get(one.name, 0), len(one.images)) for one in sets), default=0)
    more = 4 * (
        2 * width * max((len(one.images) + texts.get(one.name, 0) for one in sets), default=0) + BLOCK * largest
    )
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + more
    say(
        f"evaluate: {pictures:,} pictures take about {_duration(seconds * pictures)}, and {peak / 1e9:.1f} GB of "
        "memory; resampling for the intervals is not in it"
    )
    for one in sets:
        if one.asked is not None and "fine_tuning" in one.asked.tasks:
            recipe = tuner.recipe(one.asked.fine_tuning)
            known = sum(image.split == "reference" for image in one.images)
            passes = recipe.num_runs * _forward_passes(recipe, known, len(one.images) - known, image_px)
            say(
                f"evaluate: {one.name}: fine-tuning takes about {_duration(seconds * passes)} more; "
                f"if it is killed, the same command resumes it (paths.checkpoints)"
            )


def _forward_passes(recipe: Recipe, num_known: int, num_asked: int, image_px: int) -> float:
    """What a run costs, in forward passes of a picture of the model's size."""
    total = num_asked * (recipe.test_px / image_px) ** 2
    for phase in recipe.phases:
        number = phase.length(num_known / recipe.batch_size) * recipe.batch_size
        total += number * (_TRAINED if phase.tower_rate else 1) * (phase.train_px / image_px) ** 2
    return total


def _tried(sets: Sequence[EvaluationSet], towers: Towers) -> tuple[float, int, int]:
    """Seconds a picture, the width of an embedding, and the side of a crop."""

    def crops() -> Iterator[Crop]:
        for one in sets:
            for _, picture in one.read(range(min(_TRIED, len(one.images))), fault=lambda position, why: None):
                try:
                    yield towers.crop(picture)
                except DataError:
                    continue

    first = list(islice(crops(), 1))
    towers.embed_crops(first)  # the first one pays for what is loaded
    started = time.monotonic()
    embeds = towers.embed_crops(islice(crops(), _TRIED))
    return (
        (time.monotonic() - started) / max(len(embeds), 1),
        embeds.shape[1],
        max((len(one) for one in first), default=1),
    )


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
