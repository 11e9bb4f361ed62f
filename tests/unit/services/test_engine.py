"""The SQL engine: bounded memory, scratch files that are removed, equal bytes."""

import sys

import duckdb
import pytest
from pydantic import ValidationError

from align.config.infrastructure import EngineConfig
from align.errors import DataError, ServiceError
from align.services.engine import open_engine
from tests.support.spark import needs_spark


def config(folder, memory_limit="100MB", num_threads=2):
    return EngineConfig(
        runner="local", spark_master="local[*]", sbatch=(), num_workers=None, memory_limit=memory_limit,
        num_threads=num_threads, device="cpu", temp_directory=folder,
    )  # fmt: skip


def test_a_sort_larger_than_memory_spills_and_scratch_is_removed(tmp_path):
    # One thread: each thread sorts in blocks of its own, and two sometimes need more than this small limit.
    with open_engine(config(tmp_path / "scratch", "40MB", num_threads=1)) as engine:
        engine.table("numbers", "SELECT range AS n, md5(range::VARCHAR) AS text FROM range(800000)")
        engine.write("SELECT n, text FROM numbers ORDER BY text", tmp_path / "sorted.parquet")
        engine.view("sorted", tmp_path / "*.parquet")
        assert engine.rows("SELECT count(*), min(text) = (SELECT text FROM sorted LIMIT 1) FROM sorted") == [
            (800_000, True)
        ]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_equal_results_are_equal_bytes_with_any_number_of_threads(tmp_path):
    for threads in (1, 2, None):
        with open_engine(config(tmp_path, num_threads=threads)) as engine:
            query = "SELECT range AS n, md5(range::VARCHAR) AS text FROM range(250000) ORDER BY text"
            engine.write(query, tmp_path / f"{threads}.parquet")
    assert len({(tmp_path / f"{threads}.parquet").read_bytes() for threads in (1, 2, None)}) == 1


def test_too_little_memory_is_one_clear_line(tmp_path):
    with (
        open_engine(config(tmp_path, "1MB")) as engine,
        pytest.raises(DataError, match=r"engine\.memory_limit is too small"),
    ):
        engine.table("big", "SELECT range, list_sort(range(range)) FROM range(100000)")


def test_a_file_appears_complete_or_not_at_all(tmp_path):
    with open_engine(config(tmp_path)) as engine:
        engine.write("SELECT 1 AS n", tmp_path / "n.parquet")
        with pytest.raises(duckdb.Error):
            engine.write(
                "SELECT CAST(text AS INTEGER) AS n FROM (VALUES ('1'), ('x')) AS t(text)", tmp_path / "n.parquet"
            )
        engine.view("n", tmp_path / "n.parquet")
        assert engine.rows("SELECT n FROM n") == [(1,)]
    assert [path.name for path in tmp_path.iterdir()] == ["n.parquet"]


def test_scratch_files_go_where_the_caller_says_unless_a_parameter_does(tmp_path):
    with open_engine(config(tmp_path / "by parameter"), tmp_path / "by caller") as engine:
        assert engine.scratch.parent == tmp_path / "by parameter"
    with open_engine(config(tmp_path).model_copy(update={"temp_directory": None}), tmp_path / "by caller") as engine:
        assert engine.scratch.parent == tmp_path / "by caller"


def test_spark_without_java_is_one_clear_line(tmp_path, monkeypatch):
    needs_spark(java=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    spark = config(tmp_path).model_copy(update={"runner": "spark"})
    with pytest.raises(ServiceError, match="there is no Java; install Java 17"), open_engine(spark):
        pass


def test_spark_without_pyspark_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    spark = config(tmp_path).model_copy(update={"runner": "spark"})
    with pytest.raises(ServiceError, match=r"pip install 'align-mlops\[spark\]'"), open_engine(spark):
        pass


def test_memory_limit_must_have_a_unit(tmp_path):
    with pytest.raises(ValidationError):
        config(tmp_path, "1000")
