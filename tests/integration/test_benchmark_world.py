"""What `make bench-train` measures on can be made: its stages check each other as everyone's do."""

from pathlib import Path

import pytest

from benchmarks.world import build


@pytest.mark.full
def test_the_stages_bring_the_sample_to_where_training_reads_it(tmp_path: Path) -> None:
    world = build(tmp_path)
    assert world.describe().startswith("60 pages of data/sample: 7")
    assert (world.tokenizer / "tokenizer.json").is_file() and next(world.raw_images())
