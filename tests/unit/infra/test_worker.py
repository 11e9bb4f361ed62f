from pathlib import Path

import pytest

from align.errors import ConfigError
from infra import worker


@pytest.mark.parametrize("pool", ["", "-h", "a b", "gpu;rm", "a/b", "x" * 101])
def test_a_name_that_is_no_pool_is_refused(tmp_path: Path, pool: str) -> None:
    with pytest.raises(ConfigError, match="POOL="):
        worker.environment(tmp_path, pool)


def test_it_needs_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert worker.main(["gpu"]) == 1
    assert capsys.readouterr().err.startswith("align: error: PREFECT_API_URL is not set")


def test_it_talks_to_the_server_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    env = worker.environment(tmp_path, "gpu")
    assert (env["PREFECT_API_URL"], env["ALIGN_POOL"]) == ("http://127.0.0.1:9/api", "gpu")
    assert env["PREFECT_HOME"] == str(tmp_path / ".align/prefect")
