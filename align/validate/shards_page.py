"""The page of `align validate_shards`."""

from __future__ import annotations

from align.display import html
from align.formats.shards import Manifest
from align.validate.page import gate_page
from align.validate.report import QualityReport
from align.validate.shard_check import Faults


def shards_page(report: QualityReport, manifest: Manifest, faults: Faults) -> str:
    """The page of `align validate_shards`."""
    splits = [(name, len(part.shards), part.num_images, part.num_pairs) for name, part in manifest.splits.items()]
    blocks = [html.heading("What the manifest says"), html.table(("split", "shards", "images", "pairs"), splits)]
    size = f"{manifest.image_px} x {manifest.image_px} px"
    blocks.append(html.paragraph(f"{faults.num_images:,} pictures of {size} were decoded."))
    if faults.examples:
        rows = [(kind.replace("_", "-"), where) for kind, some in faults.examples.items() for where in some]
        blocks += [html.heading("The first faults of each kind"), html.table(("fault", "where"), rows)]
    return gate_page(report, "Quality of the shards", blocks)
