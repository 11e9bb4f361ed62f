"""`align shard` on a small data/raw and data/filtered."""

from pathlib import Path

from align.config.infrastructure import EngineConfig
from align.config.shard import ShardConfig
from align.formats.filtered import decisions_digest
from align.shard.shard import ShardFolders, shard
from tests.support import local_store, small_data
from tests.support.params import load_params
from tests.support.small_data import Pair

CONFIG = ShardConfig(
    image_px=24, jpeg_quality=90, images_per_shard=20, seed=0, val_fraction=0.2, test_fraction=0.1,
    near_duplicate_bits=4, max_cluster_share=0.2,
)  # fmt: skip
STORE = local_store.config(Path(), None)
ENGINE = load_params().section(EngineConfig).model_copy(update={"num_workers": 1})


def many_pairs(count=60):
    """Pairs of different pictures and texts."""
    return [Pair(f"picture number {index}", index) for index in range(count)]


def folders(root, name="shards"):
    """All below `root`; `name` is that of the output."""
    return ShardFolders(
        raw=root / "raw", filtered=root / "filtered", quality=root / "quality", shards=root / name,
        report=root / "report",
    )  # fmt: skip


def make_shards(root, pairs, config=CONFIG, name="shards", **layout):
    """Runs `align shard` on these pairs, or on `root/raw` if it exists; returns the folder of the shards."""
    if not (root / "raw").exists():
        small_data.write(root, pairs, **layout)
    small_data.write_verdict(root / "quality", passed=True, data=decisions_digest(root / "filtered"))
    shard(config, STORE, folders(root, name), ENGINE)
    return root / name
