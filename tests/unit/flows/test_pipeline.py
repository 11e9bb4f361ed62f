"""A flow at a terminal."""

from contextlib import nullcontext

from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.pipeline import exit_code


def test_prefects_damaged_database_is_said_before_its_server_is_waited_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flows.pipeline.stop.in_order", nullcontext)
    (tmp_path / "prefect.db").write_bytes(b"SQLite format 3\0" + bytes(50))
    asked = []
    with temporary_settings({PREFECT_HOME: tmp_path}, restore_defaults={PREFECT_API_URL}):
        assert exit_code(lambda: str(asked.append("run"))) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"align: error: {tmp_path}/prefect.db: damaged (") and asked == []
