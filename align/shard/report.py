"""The numbers of `align shard`."""

from __future__ import annotations

from align.display.report import Report
from align.formats.shards import Manifest
from align.shard.plan import ShardPlan


class ShardReport(Report):
    """Counts per split.

    Attributes:
        digest: names the shards; that of their manifest.
        decisions: names the decisions that they were made from. This is not in the manifest: other decisions on dropped
            pairs give the same shards, and must not start a training again.
    """

    digest: str
    decisions: str


def make_report(plan: ShardPlan, manifest: Manifest, decisions: str) -> ShardReport:
    """The numbers of a finished run."""
    num_images = sum(plan.num_images)
    metrics: dict[str, float | int] = {
        "shard/num_images": num_images,
        "shard/num_pairs": sum(split.num_pairs for split in manifest.splits.values()),
        "shard/num_clusters": plan.num_clusters,
        "shard/largest_cluster_share": round(plan.largest_cluster / num_images, 6),
        "shard/num_bytes": sum(tar.num_bytes for split in manifest.splits.values() for tar in split.shards),
    }
    for name, split in manifest.splits.items():
        metrics |= {f"shard/{name}/num_images": split.num_images, f"shard/{name}/num_pairs": split.num_pairs}
    return ShardReport(metrics=metrics, digest=manifest.digest, decisions=decisions)
