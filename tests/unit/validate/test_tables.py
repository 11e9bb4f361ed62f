"""The gate's samples of tables."""

from pathlib import Path

from align.config.engine import EngineConfig
from align.services.engine import open_engine
from align.validate.tables import JudgedData, make_views, sample_rows
from tests.support import small_data
from tests.support.bombs import parquet_bomb
from tests.support.params import load_params


def test_captions_without_end_are_cut_in_a_sample(tmp_path: Path) -> None:
    raw, filtered = small_data.write(tmp_path, [small_data.Pair("a small red fox", 0)])
    config = load_params().section(EngineConfig).model_copy(update={"memory_limit": "200MB", "num_threads": 1})
    parquet_bomb(raw / "00000.parquet", 1000)  # a gigabyte of captions
    with open_engine(config, tmp_path) as engine:
        data = JudgedData(raw, filtered, tmp_path / "none", {})
        samples = sample_rows(engine, data, 1000, make_views(engine, data))
    assert samples["raw"]["caption"].str.len().tolist() == [8192] * 1000
