"""What the endpoints share: the release that is served, the model's queue, the decoders, facts about a picture."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException

from align.config.serve import ServeConfig
from align.errors import DataError
from align.formats.image_index import IndexedImage, IndexHeader
from align.search.service.answers import FoundPair, Health, ItemAnswer, PairShown, SearchQuery
from align.search.service.champion import Champion
from align.search.service.decode import Decoders
from align.search.service.model_queue import ModelQueue
from align.search.service.queries import facts, version
from align.search.service.served import Pictures, Served
from align.services.tracking.registry import DATA_DIGEST, MODEL_DIGEST

disable_created_metrics()  # type: ignore[no-untyped-call]  # else each counter is two
#: The decision on a picture: (its item, what its index says of itself). A caller above all stages provides it.
PairOf = Callable[[IndexedImage, IndexHeader], PairShown]

#: Different words that a query may ask for in the alt-texts, all of which are searched for each.
_MAX_WORDS = 8
#: Tags of a version that say what it is.
_SHOWN_TAGS = (
    MODEL_DIGEST, DATA_DIGEST, "align.git_revision", "align.dvc_lock", "align.promoted_at",
    "align.promoted_because", "align.flow_run",
)  # fmt: skip


class SearchService(Collector):
    """Everything that requests are answered from.

    Attributes:
        config: section `serve`.
        text_weight: `search.text_weight`.
        champion: follows the alias.
        model: the queue of what it is to embed.
        decoders: of pictures that people send.
        pictures: of the index.
        registry: what Prometheus reads.
    """

    def __init__(
        self, config: ServeConfig, *, text_weight: float, champion: Champion, pictures: Pictures, pair_of: PairOf
    ) -> None:
        self.config, self.text_weight = config, text_weight
        self.champion, self.pictures, self._pair_of = champion, pictures, pair_of
        self.model = ModelQueue()
        self.decoders = Decoders(max_pixels=config.max_image_pixels)
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def close(self) -> None:
        """Ends threads and processes."""
        self.champion.stop()
        self.model.stop()
        self.decoders.close()

    def served(self) -> Served:
        """The release of this moment. Raises HTTPException 503 before there is one."""
        served = self.champion.served
        if served is None:
            raise HTTPException(503, self.champion.problem or "nothing is served yet", {"retry-after": "5"})
        return served

    async def decoded(self, picture: bytes, served: Served) -> NDArray[np.uint8]:
        """A picture's file as the served model sees it. Raises DataError as `Decoders.crop`."""
        shape = served.embedder.config
        return await self.decoders.do(picture, shape.resize_px, shape.image_px)

    async def allowed(self, served: Served, query: SearchQuery) -> NDArray[np.bool_] | None:
        """The images that pass the request's filter, see `ImageIndex.allowed`. Raises DataError as it does."""
        words = list(dict.fromkeys((query.words or "").split()))
        if len(words) > _MAX_WORDS:
            raise DataError(f"words: {len(words):,} different ones; at most {_MAX_WORDS} are looked for")
        splits = [query.split] if query.split is not None else []
        if not words and not splits and not query.where:
            return None
        return await asyncio.to_thread(served.index.allowed, splits, words, query.where)

    def about(self, served: Served, item: IndexedImage) -> ItemAnswer:
        """What is known of an indexed picture. Raises CorruptError if the index is damaged."""
        tags, header = served.release.tags, served.index.header
        addresses = served.index.addresses(item.key)
        found = [
            FoundPair(key=key, text=text, page_url=one.page_url or None, url=one.url or None)
            for key, text, one in zip(item.keys, item.texts, addresses, strict=True)
        ]
        return ItemAnswer(
            **facts(served, item),
            shard=item.shard,
            offset_bytes=item.offset_bytes,
            found=found,
            served=version(served),
            version_tags={name: tags[name] for name in _SHOWN_TAGS if name in tags},
            trained_on=trained_on(item.split, tags.get(DATA_DIGEST), header.shards_digest),
            picture_missing=self.pictures.missing_because(served),
            pair=self._pair_of(item, header),
        )

    async def health(self) -> Health:
        """Whether all is well. It waits for no other request, and for a thread only if a disk has to be asked."""
        served, missing = self.champion.served, None
        if served is not None and not served.index.has_thumbnails:
            missing = await asyncio.to_thread(self.pictures.missing_because, served)
        return Health(
            live=True,
            ready=served is not None and self.model.is_alive,
            served=version(served) if served else None,
            num_images=served.index.num_images if served else 0,
            take_downs=served.take_downs if served else None,
            num_taken_down=len(served.index.items) - served.index.num_images if served else 0,
            pictures=missing,
            warnings=self.champion.warnings(),
        )

    def collect(self) -> Iterator[Metric]:
        """Values of this moment, for Prometheus; `Limits` counts requests."""
        served, model = self.champion.served, self.model
        yield GaugeMetricFamily("align_search_queue", "Queries that wait.", model.num_waiting)
        yield CounterMetricFamily("align_search_passes", "Forward passes.", model.num_passes)
        yield CounterMetricFamily("align_search_inputs", "Inputs of these passes.", model.num_inputs)
        yield CounterMetricFamily("align_search_remembered", "Texts embedded before.", model.num_remembered)
        yield CounterMetricFamily("align_search_swaps", "Swaps of model and index.", self.champion.num_swaps)
        yield GaugeMetricFamily("align_search_warnings", "Warnings of /health.", len(self.champion.warnings()))
        release = served.release if served else None
        what = GaugeMetricFamily("align_search_served", "Whether a model is served.", labels=("version", "digest"))
        what.add_metric(
            (str(release.version or ""), release.digest[:12]) if release else ("", ""), int(served is not None)
        )
        yield what
        yield GaugeMetricFamily("align_search_images", "Pictures found.", served.index.num_images if served else 0)


def trained_on(split: str, data_digest: str | None, shards_digest: str) -> str:
    """Whether the model was trained on the pictures of a split of the index, in words."""
    if data_digest is None:
        return f"it is in split {split}; what data this model was trained on is not recorded here"
    if data_digest != shards_digest:
        return "the model was trained on another version of the data than the one that is indexed"
    if split == "train":
        return "yes: it is in split train of the data that trained this model"
    return f"no: it is in split {split} of the data that trained this model"
