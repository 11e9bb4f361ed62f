"""The page of `align shard`: the splits, the clusters that stay in one of them, and samples as training reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.config.shard import ShardConfig
from align.display import html
from align.display.figure import legible
from align.display.shares import percent
from align.formats.shards import Manifest, Sample, SplitName
from align.pairs.picture import thumbnail
from align.pairs.text import mask_personal_data

_THUMBNAIL_PX, _MAX_CAPTION = 112, 90


def shard_page(
    metrics: Mapping[str, float], manifest: Manifest, clusters: Sequence[int],
    examples: Mapping[SplitName, Sequence[Sample]], config: ShardConfig,
) -> str:  # fmt: skip
    """The page; of `clusters`, see `align.shard.plan.ShardPlan.cluster_sizes`."""
    total, largest = metrics["shard/num_images"], metrics["shard/largest_cluster_share"]
    splits = [
        (name, of.num_images, percent(of.num_images / total), of.num_pairs, len(of.shards),
         f"{sum(tar.num_bytes for tar in of.shards) / 1e6:,.1f} MB")
        for name, of in manifest.splits.items()
    ]  # fmt: skip
    sizes = [(f"{2**bit:,}" + f" to {2 * 2**bit - 1:,}" * (bit > 0), number) for bit, number in enumerate(clusters)]
    cards = [(name, f"{metrics[f'shard/num_{name}']:,}", "") for name in ("images", "pairs", "clusters")]
    cards += [("of files", f"{metrics['shard/num_bytes'] / 1e6:,.1f} MB", "")]
    blocks = [
        html.cards(cards),
        html.heading("Splits"),
        html.table(("split", "images", "share", "pairs", "files", "size"), splits),
        html.heading("Clusters"),
        html.paragraph(
            "Images that share a text or look alike are one cluster, and a cluster is in one split. One with more than "
            f"{percent(config.max_cluster_share)} of all images is in train. The largest has {largest:.2%}."
        ),
        html.table(("images of a cluster", "clusters"), [row for row in sizes if row[1]]),
    ]
    for split, samples in examples.items():
        blocks += [html.heading(f"Samples of {split}"), html.gallery(_shown(sample) for sample in samples)]
    size = f"{manifest.image_px} x {manifest.image_px} px"
    lead = f"{total:,} images of {size} in {len(manifest.tars):,} files, shuffled by the seed {config.seed}."
    return html.page("Shards", lead, blocks)


def _shown(sample: Sample) -> tuple[bytes, str, str]:
    more = f" (+{len(sample.texts) - 1:,})" if len(sample.texts) > 1 else ""
    words = legible(mask_personal_data(sample.texts[0]), width=_MAX_CAPTION)
    return thumbnail(sample.image, _THUMBNAIL_PX), words + more, ""
