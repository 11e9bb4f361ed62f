"""Machines of a cluster that share no disk ask the web by host, and follow redirects to each other's in a round."""

import json
from collections import Counter
from contextlib import closing

import pytest

from align.cli import main
from align.formats.raw import raw_shards
from tests.support.killing import digests
from tests.support.params import PARAMS_FILE
from tests.support.s3_server import serve
from tests.support.warc_records import picture
from tests.support.web_server import WebServer, redirect
from tests.support.web_server import response as answer

pytestmark = pytest.mark.cluster
HOSTS = [f"127.0.0.{number}" for number in range(1, 6)]


def work_of(server):
    return [key for key in server.keys("crawl") if key.startswith("work/") and "/done/" in key]


def test_slurm_without_a_shared_folder(tmp_path, cluster, monkeypatch):
    """And then a table with a row more, of which that row alone is asked for; and one with a redirect elsewhere."""
    settings = [
        "paths.archive=s3://crawl/table.jsonl", "ingest.source=url_table", "ingest.shard_size=20",
        "download.allow_networks=[127.0.0.0/8]", "store.objects=s3://crawl/tars", "engine.num_workers=2",
    ]  # fmt: skip
    on_cluster = ["engine.runner=slurm", "store.work=s3://crawl/work"]

    with serve(tmp_path / "s3") as s3, WebServer(HOSTS) as server:
        s3.use(monkeypatch)
        s3.make_bucket("crawl")
        server.fallback = lambda request: answer(b"" if request.path == "/robots.txt" else picture(300, 250))
        server.routes["/moved.png"] = redirect(server.url("/there.png", HOSTS[-1]))
        urls = [server.url(f"/{number}.png", host) for number in range(12) for host in HOSTS]

        def ingest(name, urls, *more):
            """What is asked for."""
            table = "".join(json.dumps({"url": url, "caption": "a good text"}) + "\n" for url in urls)
            with closing(s3._client()) as client:
                client.put_object(Bucket="crawl", Key="table.jsonl", Body=table.encode())
            (tmp_path / name).mkdir(exist_ok=True)
            monkeypatch.chdir(tmp_path / name)
            words = [word for setting in (*settings, *more) for word in ("--set", setting)]
            server.requests.clear()
            assert main(["ingest", "--params", str(PARAMS_FILE), *words]) == 0
            return Counter(server.requests)

        everything = Counter(url.removeprefix("http://") for url in urls)
        everything += Counter(f"{host}:{server.port}/robots.txt" for host in HOSTS)
        assert ingest("here", urls) == ingest("cluster", urls, *on_cluster) == everything
        assert {key.partition("/done/")[2].partition("/")[0].partition("-")[0] for key in work_of(s3)} == {
            "scanned", "plan", "written",
        }  # fmt: skip
        assert digests(tmp_path / "cluster/data/raw") == digests(tmp_path / "here/data/raw")
        new = f"{HOSTS[0]}:{server.port}"
        asked = ingest("cluster", [*urls, f"http://{new}/new.png"], *on_cluster)
        assert asked == Counter([f"{new}/robots.txt", f"{new}/new.png"])
        ingest("fresh", [*urls, f"http://{new}/new.png"])
        moved = [f"http://{new}/moved.png", *urls[:4]]
        asked = ingest("alone", moved)
        assert asked == ingest("moved", moved, *on_cluster)
        assert asked[f"{HOSTS[-1]}:{server.port}/there.png"] == 1 and len(raw_shards(tmp_path / "moved/data/raw")) > 1
    assert digests(tmp_path / "moved/data/raw") == digests(tmp_path / "alone/data/raw")
    assert digests(tmp_path / "cluster/data/raw") == digests(tmp_path / "fresh/data/raw")
