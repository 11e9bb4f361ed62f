"""Finds a teacher's embeddings for each folder of shards of a run, and checks that they are whole before it starts.

They are of each picture as it is in its shard, and of its whole text. What training shows the student may be less: a
crop, perhaps mirrored, or some of the phrases (`phrase_dropout`). MobileCLIP stores embeddings of several augmentations
of a picture instead; here the teacher's targets are those of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from align.config.recipe import Recipe
from align.errors import ConfigError
from align.formats.stored_embeds import StoredEmbeds, read_embeds
from align.training.batches.index import Outline

R = TypeVar("R", bound=Recipe)


def find_teacher(recipe: Recipe, outlines: Sequence[Outline]) -> tuple[StoredEmbeds, ...]:
    """The teacher's embeddings of the training split of each folder of shards, in the same order.

    Shards and embeddings belong together by the digest of the shards, which covers every byte and the order of the
    samples: so no sample of a run lacks its embeddings.

    Args:
        recipe: without `teacher` the result is empty.
        outlines: the main shards, then the extra ones.

    Raises:
        ConfigError: a folder has another digest than the recipe says, is of another split or of shards that are not
            trained on, shards have no embeddings, or they are by different models.
        DataError, CorruptError: as `align.formats.stored_embeds.read_embeds`.
    """
    if recipe.teacher is None:
        return ()
    name = f"{recipe.section}.teacher"
    of_shards: dict[str, StoredEmbeds] = {}
    trained_on = {outline.manifest.digest for outline in outlines}
    for given in recipe.teacher.embeds:
        embeds = read_embeds(given.path)
        manifest = embeds.manifest
        if manifest.digest != given.digest:
            raise ConfigError(
                f"{given.path} has the digest {manifest.digest}, {name}.embeds says {given.digest}; write the one that "
                "you mean"
            )
        if manifest.split != "train":
            raise ConfigError(f"{name}: {given.path} is of split {manifest.split}; training needs train")
        if manifest.shards_digest not in trained_on:
            raise ConfigError(
                f"{name}: {given.path} is of shards {manifest.shards_digest[:12]}, this run trains on "
                f"{', '.join(digest[:12] for digest in sorted(trained_on))}; run `align embed` over these, or remove it"
            )
        of_shards[manifest.shards_digest] = embeds
    for outline in outlines:
        if outline.manifest.digest not in of_shards:
            raise ConfigError(
                f"{name}.embeds has none of {outline.path.parent}: run `align embed {outline.path.parent} --split "
                "train --out FOLDER` with the teacher's --model, and add FOLDER with the digest that it names"
            )
    models = {embeds.manifest.model_digest for embeds in of_shards.values()}
    if len(models) > 1:
        raise ConfigError(f"{name}.embeds are by {len(models)} models; one batch has one teacher")
    return tuple(of_shards[outline.manifest.digest] for outline in outlines)


def with_temperature(recipe: R, teacher: Sequence[StoredEmbeds]) -> R:
    """The recipe with the teacher's own temperature where it names none."""
    if recipe.teacher is None or recipe.teacher.temperature is not None:
        return recipe
    own = recipe.teacher.model_copy(update={"temperature": teacher[0].manifest.temperature})
    return recipe.model_copy(update={"teacher": own})
