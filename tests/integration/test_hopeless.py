"""Pictures that ingest did not fetch: the kept pairs are the same, and wider rules on texts say what is missing."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.filter.network import ImageNetwork
from align.formats.raw import iter_images, raw_shards, read_table
from tests.support.small_filter import noise
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here looks at a figure."""
    monkeypatch.setattr("align.filter.page.png", lambda figure: b"a figure")


TEXTS = ["a good long text", "three words only", "two words", "another good long text"]


@pytest.mark.costs(10, "ingest, filter and validate twice; alone, it imports Great Expectations")
def test_wider_rules_are_told_what_is_missing_until_it_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"paths.{name}={tmp_path / name}" for name in ("raw", "filtered", "reports", "runtime", "policy")]
    (tmp_path / "none").mkdir()
    settings += [f"paths.evaluation={tmp_path / 'none'}", f"paths.archive={tmp_path / 'table.jsonl'}"]
    settings += ["ingest.source=url_table", "download.allow_networks=[127.0.0.0/8]", "engine.num_workers=1"]
    common = [word for setting in settings for word in ("--set", setting)]
    narrow = ["--set", "filter.min_words=4"]
    with WebServer() as server:
        for number in range(len(TEXTS)):
            server.routes[f"/{number}.png"] = answer(noise(number))
        lines = [{"url": server.url(f"/{number}.png"), "caption": text} for number, text in enumerate(TEXTS)]
        (tmp_path / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert main(["ingest", *common, *narrow]) == 0

        assert main(["filter", *common, *narrow]) == 0  # the rules that ingest knew
        assert reasons(tmp_path) == {
            "a good long text": [], "another good long text": [],
            "three words only": ["text_too_short", "image_not_fetched"],
            "two words": ["text_too_short", "image_not_fetched"],
        }  # fmt: skip
        assert "did not fetch" not in capsys.readouterr().err + page(tmp_path)

        assert main(["filter", *common]) == 0
        assert reasons(tmp_path)["three words only"] == ["image_not_fetched"]
        assert reasons(tmp_path)["two words"] == ["text_too_short", "image_not_fetched"]
        said = capsys.readouterr().err
        assert "warning: 1 pair(s) pass every rule on texts, but" in said and "align ingest --retry-failed" in said
        assert "1 more pass every rule on texts, but" in page(tmp_path)
        assert metrics(tmp_path)["filter/dropped/image_not_fetched"] == 1

        gate = ["validate", *common]
        for setting in ("min_pairs=1", "min_evaluation_sets=0", "keep_rate=[0.0, 1.0]"):
            gate += ["--set", f"validate.{setting}"]
        gate += ["--set", "validate.dropped_share.text_too_short=[0.0, 1.0]"]
        assert main(gate) == 1
        assert "dropped-image-not-fetched: share dropped as image_not_fetched: observed 0.25" in capsys.readouterr().err

        assert main(["ingest", *common, "--retry-failed"]) == 0
        assert [server.count(f"/{number}.png") for number in range(4)] == [1, 1, 0, 1]
    assert main(["filter", *common]) == 0
    assert reasons(tmp_path)["three words only"] == []
    assert main(gate) == 0  # all pictures that were to be fetched are there: two words were not


NUM_PAGES = 20


@pytest.mark.costs(4, "a sample is ingested three times and filtered twice")
def test_the_kept_pairs_of_the_sample_are_the_same_with_fewer_requests(
    tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample's pages, their pictures on a server: all fetched, and only those of which a text can pass.

    The network looks at each picture alone, so any function of the picture may stand for it.
    """
    monkeypatch.setattr(
        ImageNetwork, "_classify", lambda self, image: (0.0, np.asarray(image.resize((8, 8))).ravel() / np.float32(255))
    )
    (tmp_path / "none").mkdir()
    run = ["--set", f"paths.evaluation={tmp_path / 'none'}", "--set", "engine.num_workers=1"]
    pages = [f"paths.archive={sample / 'archive.warc.gz'}", f"ingest.max_pages={NUM_PAGES}"]
    assert main(["ingest", *run, *at(tmp_path / "pages"), *(w for one in pages for w in ("--set", one))]) == 0
    [shard] = raw_shards(tmp_path / "pages/raw")
    pictures, rows = dict(iter_images(shard)), read_table(shard).to_pylist()
    num_requests, kept, dropped = {}, {}, {}
    with WebServer() as server:
        number = {url: index for index, url in enumerate(dict.fromkeys(row["url"] for row in rows))}
        for row in rows:
            if row["image_key"] is not None:
                server.routes[f"/{number[row['url']]}"] = answer(pictures[row["image_key"]])
        (tmp_path / "table.jsonl").write_text(
            "".join(
                json.dumps({"url": server.url(f"/{number[row['url']]}"), "caption": row["caption"]}) + "\n"
                for row in rows
            )
        )
        run += ["--set", "ingest.source=url_table", "--set", f"paths.archive={tmp_path / 'table.jsonl'}"]
        run += ["--set", "download.allow_networks=[127.0.0.0/8]", "--set", "download.num_retries=0"]
        for skip in ("false", "true"):
            before = num_asked(server)
            out = at(tmp_path / skip)
            assert main(["ingest", *run, *out, "--set", f"ingest.skip_hopeless={skip}"]) == 0
            num_requests[skip] = num_asked(server) - before
            assert main(["filter", *run, *out]) == 0
            decided = pq.read_table(tmp_path / skip / "filtered/decisions.parquet").to_pylist()
            kept[skip] = [(row["key"], row["image_id"], row["text"]) for row in decided if row["keep"]]
            dropped[skip] = {row["key"]: row["reasons"] for row in decided if not row["keep"]}
    print("requests", num_requests, "kept", len(kept["true"]), "pairs", len(rows))
    assert num_requests["true"] < 0.9 * num_requests["false"]
    assert kept["true"] == kept["false"] != []
    on_texts = {"text_shared_by_many_images", "text_rare_ngram", "text_too_short", "text_too_long", "text_is_filename"}
    for key, reasons in dropped["true"].items():
        if "image_not_fetched" in reasons:
            assert on_texts & set(dropped["false"][key])
        else:
            assert reasons == dropped["false"][key]


def test_the_one_difference_is_a_text_of_an_equal_picture_that_was_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule I4 counts the texts of a content; that of an address which nobody asked for is not known."""
    monkeypatch.setattr(ImageNetwork, "_classify", lambda self, image: (0.0, np.ones(8, np.float32)))
    (tmp_path / "none").mkdir()
    run = ["ingest.source=url_table", f"paths.archive={tmp_path / 'table.jsonl'}", "engine.num_workers=1"]
    run += ["download.allow_networks=[127.0.0.0/8]", f"paths.evaluation={tmp_path / 'none'}"]
    run += ["filter.max_texts_per_image=1"]
    decided = {}
    with WebServer() as server:
        server.routes |= {path: answer(noise(0)) for path in ("/a.png", "/b.png", "/c.png")}
        pairs = [("/a.png", "a good long text"), ("/b.png", "logo"), ("/c.png", "a good long text")]
        lines = [json.dumps({"url": server.url(path), "caption": text}) for path, text in pairs]
        (tmp_path / "table.jsonl").write_text("\n".join(lines))
        for skip in ("false", "true"):
            words = [*(w for one in run for w in ("--set", one)), *at(tmp_path / skip)]
            assert main(["ingest", *words, "--set", f"ingest.skip_hopeless={skip}"]) == 0
            assert main(["filter", *words]) == 0
            decided[skip] = reasons(tmp_path / skip)
    assert decided["false"] == {
        "a good long text": ["image_too_many_texts"], "logo": ["image_too_many_texts", "text_too_short"],
    }  # fmt: skip
    assert decided["true"] == {"a good long text": [], "logo": ["text_too_short", "image_not_fetched"]}


def num_asked(server: WebServer) -> int:
    return sum(not path.endswith("/robots.txt") for path in server.requests)


def at(folder: Path) -> list[str]:
    folder.mkdir()
    names = ("raw", "filtered", "reports", "runtime", "policy")
    return [word for name in names for word in ("--set", f"paths.{name}={folder / name}")]


def reasons(folder: Path) -> dict[str, list[str]]:
    rows = pq.read_table(folder / "filtered/decisions.parquet").to_pylist()
    assert all(row["reason"] == next(iter(row["reasons"]), None) for row in rows)
    return {row["text"]: row["reasons"] for row in rows}


def metrics(folder: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((folder / "reports/filter/metrics.json").read_text())
    return values


def page(folder: Path) -> str:
    return (folder / "reports/filter/report.html").read_text()
