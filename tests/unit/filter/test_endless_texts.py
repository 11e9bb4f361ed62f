"""Texts and tables of folders that others made, of any length."""

import pyarrow.parquet as pq
import pytest

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig
from align.filter.filter import FilterFolders, filter_pairs
from tests.support.bombs import parquet_bomb, with_little_memory
from tests.support.params import load_params
from tests.support.small_filter import noise, stock_folder

pytestmark = pytest.mark.usefixtures("quick")


def test_texts_of_other_folders_have_a_length_limit(tmp_path):
    captions = [
        "three words " + "x" * 500_000,  # one word fills a page
        "a text of " + " " * 10_000 + " two ends",  # what was cut is too long, though little is left of it
        "a text of  " + " " * 500 + " two ends ",
        "an endless " + "w" * 989,
        "an endless " + "w" * 990,
        "two" + "\u0315\u0300" * 40_000 + " marks here",
    ]
    pairs = [(caption, noise(row)) for row, caption in enumerate(captions)]
    config = load_params(overrides=["filter.min_words=2"]).section(FilterConfig)
    raw = stock_folder(tmp_path / "raw", pairs)
    engine = load_params().section(EngineConfig).model_copy(update={"num_workers": 1})
    none, out = tmp_path / "none", tmp_path / "filtered"
    none.mkdir()
    filter_pairs(config, engine, FilterFolders(raw, none, none, out, tmp_path / "reports"))
    decided = pq.read_table(out / "decisions").to_pylist()
    long = "text_too_long"
    assert [row["reasons"] for row in decided] == [[long], [long], [], [], [long], ["text_too_short", long]]
    assert max(len(str(row["text"])) for row in decided) == 1000
    facts = pq.read_table(tmp_path / "filtered/facts", columns=["num_characters"]).to_pydict()
    assert facts["num_characters"] == [8192, 8192, 18, 1000, 1001, 8192]


def test_a_small_folder_that_unpacks_to_gigabytes_takes_little_memory(tmp_path):
    raw = stock_folder(tmp_path / "raw", [("a text", None)])
    parquet_bomb(raw / "00000.parquet", 1000)
    code = """
from pathlib import Path
from align.formats.raw import raw_shards, read_table
table = read_table(raw_shards(Path(sys.argv[1]))[0], ["key", "caption"])
print(len(table), max(map(len, table["caption"].to_pylist())))
"""
    assert with_little_memory(code, raw, mib=500) == "1000 8192"
