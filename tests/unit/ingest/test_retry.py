"""`align ingest --retry-failed` that was killed, and what has changed when it is started again."""

import json
from pathlib import Path
from typing import Any

import pytest

from align.cli import main
from align.formats.raw import raw_shards, read_raw_manifest, read_table
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
        (tmp_path / "opted_out.txt").write_text(urls[0] + "\n")
        assert main(["opt_out", *common, "--urls", str(tmp_path / "opted_out.txt"), "--reason", "asked"]) == 0
        assert main(["ingest", *common, "--retry-failed"]) == 0
    rows = [row for shard in raw_shards(tmp_path / "raw") for row in read_table(shard).to_pylist()]
    assert {row["url"]: (row["status"], row["caption"]) for row in rows} == {
        urls[0]: ("failed_to_download", ""),
        urls[1]: ("success", "a good text number 1"),
        urls[2]: ("success", "a good text number 2"),
    }


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


NUM = 10
LOCAL = "download.allow_networks=[127.0.0.0/8]"
AGENT = "download.user_agent=one-of-our-own/1.0"
QUICK = ("download.num_retries=0", "download.backoff_s=0.0")


def command(folder: Path, *settings: str) -> list[str]:
    fixed = [
        f"paths.archive={folder / 'table.jsonl'}", "ingest.source=url_table", "engine.num_workers=1",
        *(f"paths.{name}={folder / name}" for name in ("raw", "reports", "runtime", "policy")),
    ]  # fmt: skip
    return ["ingest", *(word for setting in (*fixed, *settings) for word in ("--set", setting))]


def make_table(server: WebServer, folder: Path, failure: bytes) -> None:
    """A table of pictures at which the server fails."""
    server.routes |= {f"/{number}.png": failure for number in range(NUM)}
    lines = [{"url": server.url(f"/{n}.png"), "caption": f"a good text number {n}"} for n in range(NUM)]
    (folder / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def recover(server: WebServer) -> None:
    server.routes |= {f"/{number}.png": answer(picture(300 + number, 250)) for number in range(NUM)}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for shard in raw_shards(folder / "raw") for row in read_table(shard).to_pylist()]


def errors(folder: Path) -> set[tuple[str | None, bool]]:
    return {(row["error_message"], row["retryable"]) for row in rows(folder)}


def test_a_retry_uses_the_values_of_the_ingest_that_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own network and its own name were overridden; params.yaml refuses the network and has another name."""
    with WebServer() as server:
        make_table(server, tmp_path, answer(b"", 503))
        main(command(tmp_path, LOCAL, AGENT, *QUICK))
        assert errors(tmp_path) == {("HTTP 503", True)}
        recover(server)
        assert main([*command(tmp_path), "--retry-failed"]) == 0
        assert server.agents == {"one-of-our-own/1.0"}
    assert [row["status"] for row in rows(tmp_path)] == ["success"] * NUM
    said = capsys.readouterr().err
    assert "params.yaml has other values, which a retry does not use: " in said
    assert "download.allow_networks" in said and "download.user_agent" in said and "download.num_retries" not in said


def test_a_refused_address_never_replaces_a_failure_that_may_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a folder without a manifest has it, or one of older code: the values are those of params.yaml then."""
    with WebServer() as server:
        make_table(server, tmp_path, answer(b"", 503))
        main(command(tmp_path, LOCAL, *QUICK))
        manifest = json.loads((tmp_path / "raw/manifest.json").read_text())
        del manifest["made_with"]
        (tmp_path / "raw/manifest.json").write_text(json.dumps(manifest))
        recover(server)
        capsys.readouterr()
        main([*command(tmp_path), "--retry-failed"])
        assert errors(tmp_path) == {("HTTP 503", True)}
        said = capsys.readouterr().err
        assert "does not say with which values it was made, so those of params.yaml hold" in said
        assert f"{NUM} address(es) are refused now: " in said and "download.allow_networks" in said
        assert main([*command(tmp_path, LOCAL), "--retry-failed"]) == 0
    assert [row["status"] for row in rows(tmp_path)] == ["success"] * NUM
    manifest = json.loads((tmp_path / "raw/manifest.json").read_text())
    assert manifest["made_with"] is None  # unknown stays unknown


def test_patience_may_be_changed_by_name_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with WebServer() as server:
        make_table(server, tmp_path, answer(b"", 503))
        main(command(tmp_path, LOCAL, *QUICK))
        first = (tmp_path / "raw/manifest.json").read_bytes()
        capsys.readouterr()
        for setting in (AGENT, "download.resize_px=64", "download.allow_networks=[10.0.0.0/8]", "ingest.shard_size=7"):
            assert main([*command(tmp_path, setting), "--retry-failed"]) == 1
            name = setting.partition("=")[0]
            [line] = capsys.readouterr().err.splitlines()
            assert f"was made with another {name}, which a retry keeps; leave out `--set {name}`, or the `--pr" in line
        assert (tmp_path / "raw/manifest.json").read_bytes() == first
        recover(server)
        assert main([*command(tmp_path, "download.timeout_s=77.0"), "--retry-failed"]) == 0
    manifest = read_raw_manifest(tmp_path / "raw")
    assert manifest is not None and manifest.made_with is not None
    assert manifest.made_with.archive == str(tmp_path / "table.jsonl")
    assert (manifest.made_with.ingest["source"], manifest.made_with.download["allow_networks"]) == (
        "url_table", ["127.0.0.0/8"],
    )  # fmt: skip
    assert manifest.made_with.download["timeout_s"] == 77.0  # all that had failed by time was asked again with it
    assert manifest.made_with.download["num_retries"] == 2  # that of params.yaml, which says how patient we are now


def test_a_killed_retry_is_resumed_with_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WebServer() as server:
        make_table(server, tmp_path, answer(b"", 503))
        main(command(tmp_path, LOCAL, AGENT, *QUICK))
        recover(server)
        with monkeypatch.context() as killed:
            killed.setattr("align.ingest.ingest.write_raw_manifest", _interrupt)
            assert main([*command(tmp_path), "--retry-failed"]) == 130
        asked = [server.count(f"/{number}.png") for number in range(NUM)]
        assert main([*command(tmp_path), "--retry-failed"]) == 0
        assert [server.count(f"/{number}.png") for number in range(NUM)] == asked  # the finished shard is taken
        assert server.agents == {"one-of-our-own/1.0"}
    assert [row["status"] for row in rows(tmp_path)] == ["success"] * NUM
