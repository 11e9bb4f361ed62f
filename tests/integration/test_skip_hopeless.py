"""Pictures of which no text can pass the filter are not fetched from the web, and each of their pairs says so."""

import base64
import json
import shutil

from align.cli import main
from align.errors import DataError
from align.formats.policy import Entry, OptedOut, write_opted_out
from align.formats.raw import iter_images, raw_shards
from tests.support.reading import URL_TABLE, ingest_words, ingested, raw_rows, url_table
from tests.support.warc_records import page, picture, write_archive
from tests.support.warc_records import response as archived
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer

LONG = "many " * 21
ENDLESS = f"two words and {'x' * 1000}"
#: (picture, text): what the filter can keep, and what it cannot.
PAIRS = [
    ("good", "a good long text"), ("short", "logo"), ("empty", ""), ("both", "its logo"),
    ("name", "img/of/some_name.png"), ("long", LONG), ("both", "a text that may pass"), ("endless", ENDLESS),
    ("short", "the logo"),
]  # fmt: skip
FETCHED = {"good", "both"}
HOPELESS = ("not_fetched", "no text of it can pass the filter")


def table_of(server, folder, pairs):
    """Serves the pictures; the words of `align ingest` that read a table of the pairs."""
    for number, name in enumerate(dict.fromkeys(name for name, _ in pairs)):
        server.routes[f"/{name}.png"] = answer(picture(300 + number, 250, "red"))
    table = url_table(folder, [(server.url(f"/{name}.png"), text) for name, text in pairs])
    return ingest_words(folder, table, *URL_TABLE, "ingest.shard_size=3")


def rows(folder):
    return raw_rows(folder / "raw")


def outcomes(folder):
    return {str(row["caption"]): (row["status"], row["error_message"]) for row in rows(folder)}


def asked(server):
    """Picture -> how often it was asked for."""
    names = (path.removesuffix(".png").strip("/") for path in server.routes)
    return {name: count for name in names if (count := server.count(f"/{name}.png"))}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_picture_is_fetched_if_one_of_its_texts_can_pass(tmp_path, capsys):
    with WebServer() as server:
        arguments = table_of(server, tmp_path, PAIRS)
        assert main(arguments) == 0
        assert asked(server) == dict.fromkeys(FETCHED, 1)
    of = outcomes(tmp_path)
    assert {text: of[text] for name, text in PAIRS if name not in FETCHED} == dict.fromkeys(
        (text for name, text in PAIRS if name not in FETCHED), HOPELESS
    )
    shown = [row for row in rows(tmp_path) if "both" in str(row["url"])]
    assert [(row["caption"], row["status"]) for row in shown] == [
        ("its logo", "success"),  # fetched for another text of it
        ("a text that may pass", "success"),
    ]
    assert not any(row["retryable"] for row in rows(tmp_path))
    assert sum(len(list(iter_images(shard))) for shard in raw_shards(tmp_path / "raw")) == len(FETCHED)
    stats = [json.loads(path.read_text()) for path in sorted((tmp_path / "raw").glob("*_stats.json"))]
    sums = {name: sum(one[name] for one in stats) for name in ("count", "successes", "failed_to_download")}
    assert (sums, sum(one["not_fetched"] for one in stats)) == (
        {"count": 9, "successes": 3, "failed_to_download": 0},
        6,
    )
    metrics = json.loads((tmp_path / "reports/ingest/metrics.json").read_text())
    assert (metrics["ingest/status/not_fetched"], metrics["ingest/success_rate"]) == (6, 1.0)  # of those to be fetched
    said = capsys.readouterr().err
    assert "6 not fetched: no text of their picture can pass the filter" in said
    page = (tmp_path / "reports/ingest/report.html").read_text()
    assert "not fetched: no text can pass" in page and "no text of it can pass the filter" in page


def test_wider_rules_fetch_what_can_pass_by_now_and_nothing_else(tmp_path, capsys):
    with WebServer() as server:
        arguments = table_of(server, tmp_path, PAIRS)
        assert main(arguments) == 0
        before, written = asked(server), files(tmp_path / "raw")
        assert main([*arguments]) == 0  # under the same rules
        assert (asked(server), files(tmp_path / "raw")) == (before, written)
        narrow = {str(row["key"]): row for row in rows(tmp_path)}
        capsys.readouterr()
        wider = ["--set", "filter.min_words=2", "--set", "filter.drop_filenames=false"]
        assert main([*arguments, *wider]) == 0
        assert asked(server) == before | {"short": 1, "name": 1}
        assert "nothing is scanned again" in capsys.readouterr().err
        wide = {str(row["key"]): row for row in rows(tmp_path)}
        fetched = {str(row["caption"]) for key, row in wide.items() if row != narrow[key]}
        assert fetched == {"logo", "the logo", "img/of/some_name.png"}  # `logo` for the other text of its picture
        assert all(row["status"] == "success" for row in wide.values() if row["caption"] in fetched)
        assert main([*arguments, "--set", "ingest.skip_hopeless=false"]) == 0
        assert asked(server) == {name: 1 for name, _ in PAIRS}
    assert {status for status, _ in outcomes(tmp_path).values()} == {"success"}


def test_what_can_pass_no_more_is_asked_no_more_and_what_was_fetched_stays(tmp_path):
    pairs = [("late", "three words only"), ("lost", "a text of more words"), ("here", "some three words")]
    with WebServer() as server:
        arguments = table_of(server, tmp_path, pairs)
        server.routes |= {"/late.png": answer(b"", 503), "/lost.png": answer(b"", 503)}
        assert main(arguments) == 0
        assert main([*arguments, "--set", "filter.min_words=4"]) == 0
        assert asked(server) == {"late": 1, "lost": 2, "here": 1}
    assert outcomes(tmp_path)["three words only"] == HOPELESS
    assert outcomes(tmp_path)["a text of more words"] == ("failed_to_download", "HTTP 503")
    assert outcomes(tmp_path)["some three words"] == ("success", None)


def cut_off(*_):
    raise DataError("cut off")


def test_another_cut_fetches_no_finished_shard_again(tmp_path, monkeypatch):
    """Nor does it discard unfinished work: the filter counts what the first cut left out, and the next fetches it."""
    with WebServer() as server:
        arguments = table_of(server, tmp_path, PAIRS)
        with monkeypatch.context() as patch:
            patch.setattr("align.ingest.ingest.publish", cut_off)
            assert main(arguments) == 1
            shutil.rmtree(tmp_path / ".raw.part/written/00001")
            made = {path: path.stat() for path in (tmp_path / ".raw.part/written").glob("*/*")}
            assert main([*arguments, "--set", "filter.min_words=2"]) == 1
        assert len(made) % 3 == 0 < len(made)
        assert {path: path.stat() for path in made} == made
        assert main([*arguments, "--set", "filter.min_words=2"]) == 0
        assert main([*arguments, "--set", "filter.min_words=2"]) == 0
        resumed = outcomes(tmp_path)
        (tmp_path / "at once").mkdir()
        assert main([*table_of(server, tmp_path / "at once", PAIRS), "--set", "filter.min_words=2"]) == 0
    assert resumed == outcomes(tmp_path / "at once")


def test_what_comes_from_the_source_itself_is_never_left_out(tmp_path, monkeypatch):
    """An archive's own pictures and those within a page cost nothing; and the filter's cuts are not in the key."""
    inline = f"data:image/png;base64,{base64.b64encode(picture(20, 20, 'red')).decode()}"
    html = f'<img src="/own.png" alt="own"><img src="{inline}" alt="inline"><img src="/far.png" alt="far">'
    records = [page("http://x.test/", html), archived("http://x.test/own.png", picture(300, 250, "red"), "image/png")]
    archive = write_archive(tmp_path / "a.warc.gz", records)
    found = {}
    for images_from in ("archive", "archive_then_web"):
        arguments = ingest_words(tmp_path, archive, f"ingest.images_from={images_from}")
        if images_from == "archive":
            keys = set()
            with monkeypatch.context() as patch:
                patch.setattr("align.ingest.ingest.publish", cut_off)
                for cut in ("filter.min_words=2", "filter.min_words=3"):
                    assert main([*arguments, "--set", cut]) == 1
                    keys.add((tmp_path / ".raw.part/.work.json").read_text())
            assert len(keys) == 1
        assert main(arguments) == 0
        found[images_from] = {text: status for text, (status, _) in outcomes(tmp_path).items()}
    assert found == {
        "archive": {"own": "success", "inline": "success", "far": "failed_to_download"},
        "archive_then_web": {"own": "success", "inline": "success", "far": "not_fetched"},
    }


def test_a_take_down_keeps_its_own_outcome(tmp_path):
    with WebServer() as server:
        arguments = table_of(server, tmp_path, PAIRS)
        gone = OptedOut([Entry("url", server.url("/short.png"), "", "2026-01-01")])
        write_opted_out(tmp_path / "policy", gone)
        assert main(arguments) == 0
        assert asked(server) == dict.fromkeys(FETCHED, 1)
        wide = [*arguments, "--set", "filter.min_words=1"]
        assert main(wide) == 0
        assert "short" not in asked(server)
    of = [(row["status"], row["error_message"], row["caption"]) for row in rows(tmp_path) if "short" in str(row["url"])]
    assert of == [("failed_to_download", "opted out", "")] * 2


def test_a_folder_read_as_a_source_says_what_was_not_fetched(tmp_path):
    with WebServer() as server:
        assert main(table_of(server, tmp_path, PAIRS)) == 0
    first = outcomes(tmp_path)
    (tmp_path / "raw").rename(tmp_path / "made")
    ingested(tmp_path, tmp_path / "made", "ingest.source=shards")
    assert outcomes(tmp_path) == first
