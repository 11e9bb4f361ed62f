"""The SQL engine: bounded memory, scratch that goes away, equal bytes."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from align.config.engine import EngineConfig
from align.errors import DataError
from align.services.engine import open_engine


def config(folder: Path, memory_limit: str = "100MB", num_threads: int | None = 2) -> EngineConfig:
    return EngineConfig(memory_limit=memory_limit, num_threads=num_threads, temp_directory=folder)


def test_a_sort_larger_than_memory_spills_and_scratch_is_removed(tmp_path: Path) -> None:
    # One thread: each sorts in blocks of its own, and two of them now and then need more than so small a limit.
    with open_engine(config(tmp_path / "scratch", "70MB", num_threads=1)) as engine:
        engine.table("numbers", "SELECT range AS n, md5(range::VARCHAR) AS text FROM range(1500000)")
        engine.write("SELECT n, text FROM numbers ORDER BY text", tmp_path / "sorted.parquet")
        engine.view("sorted", tmp_path / "*.parquet")
        assert engine.rows("SELECT count(*), min(text) = (SELECT text FROM sorted LIMIT 1) FROM sorted") == [
            (1_500_000, True)
        ]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_equal_results_are_equal_bytes_whatever_the_threads(tmp_path: Path) -> None:
    for threads in (1, 2, None):
        with open_engine(config(tmp_path, num_threads=threads)) as engine:
            query = "SELECT range AS n, md5(range::VARCHAR) AS text FROM range(250000) ORDER BY text"
            engine.write(query, tmp_path / f"{threads}.parquet")
    assert len({(tmp_path / f"{threads}.parquet").read_bytes() for threads in (1, 2, None)}) == 1


def test_too_little_memory_is_one_clear_line(tmp_path: Path) -> None:
    with (
        open_engine(config(tmp_path, "1MB")) as engine,
        pytest.raises(DataError, match=r"engine\.memory_limit is too small"),
    ):
        engine.table("big", "SELECT range, list_sort(range(range)) FROM range(100000)")


def test_memory_limit_must_have_a_unit(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        config(tmp_path, "1000")
