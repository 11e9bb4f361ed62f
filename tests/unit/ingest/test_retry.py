"""`align ingest --retry-failed` that was killed, and what has changed when it is started again."""

import json
from pathlib import Path

import pytest

from align.cli import main
from align.formats.raw import raw_shards, read_table
from tests.support.warc_records import picture
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer


def test_a_take_down_counts_in_a_retry_that_was_killed_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        *(f"paths.{name}={tmp_path / name}" for name in ("raw", "filtered", "reports", "runtime", "policy")),
        f"paths.archive={tmp_path / 'table.jsonl'}", "ingest.source=url_table", "ingest.shard_size=1",
        "download.allow_networks=[127.0.0.0/8]", "download.num_retries=0", "download.backoff_s=0.0",
        "engine.num_workers=1",
    ]  # fmt: skip
    common = [word for setting in settings for word in ("--set", setting)]
    with WebServer() as server:
        urls = [server.url(f"/{number}.png") for number in range(3)]
        lines = [json.dumps({"url": url, "caption": f"a good text number {n}"}) for n, url in enumerate(urls)]
        (tmp_path / "table.jsonl").write_text("\n".join(lines))
        server.routes |= {f"/{number}.png": answer(b"", 503) for number in range(3)}
        assert main(["ingest", *common]) == 1  # no pair has a picture
        server.routes |= {f"/{number}.png": answer(picture(300 + number, 250)) for number in range(3)}
        with monkeypatch.context() as killed:
            killed.setattr("align.ingest.ingest.write_raw_manifest", _interrupt)
            assert main(["ingest", *common, "--retry-failed"]) == 130
        (tmp_path / "forget.txt").write_text(urls[0] + "\n")
        assert main(["forget", *common, "--urls", str(tmp_path / "forget.txt"), "--reason", "asked"]) == 0
        assert main(["ingest", *common, "--retry-failed"]) == 0
    rows = [row for shard in raw_shards(tmp_path / "raw") for row in read_table(shard).to_pylist()]
    assert {row["url"]: (row["status"], row["caption"]) for row in rows} == {
        urls[0]: ("failed_to_download", ""),
        urls[1]: ("success", "a good text number 1"),
        urls[2]: ("success", "a good text number 2"),
    }


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
