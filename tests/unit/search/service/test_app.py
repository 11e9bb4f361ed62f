"""The endpoints, asked as a client asks them, without a socket."""

import asyncio
import json
import shutil
import threading
from dataclasses import replace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from align.config.ingest import IngestConfig
from align.config.search import IndexConfig
from align.formats.image_index import Promise
from align.search.catalogue import index_catalogue
from align.search.service import app, queries
from align.search.service.decode import Decoders
from tests.support import colour_index, hostile_pictures
from tests.support.colour_index import PAGE
from tests.support.colours import ColourEncoder, square
from tests.support.params import load_params
from tests.support.served import guarded, served, service

PORT = 7000
JSON = {"content-type": "application/json"}
SLOW = square("green")


def ask(made, method, path, **more):
    """What the server answers; an error of the application is an answer, as it is over a socket."""
    return asyncio.run(send(made, method, path, **more))


async def send(made, method, path, address="127.0.0.1", **more):
    """The same in a loop, from an address."""
    transport = httpx.ASGITransport(guarded(made, PORT), raise_app_exceptions=False, client=(address, 5))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{PORT}") as client:
        return await client.request(method, path, **more)


@pytest.fixture(scope="module")
def made(world):
    with service(world, served(world, **{"align.promoted_at": "today"})) as one:
        yield one


def colours(answer):
    assert answer.status_code == 200, answer.text
    return [hit["texts"][0].split()[1] for hit in answer.json()["hits"]]


def test_by_text_key_and_picture(made):
    assert colours(ask(made, "GET", "/search?text=blue&limit=3")) == ["blue"] * 3
    near = ask(made, "GET", "/search?key=000000000&limit=2")
    assert colours(near) == ["red", "red"]
    others = ask(made, "GET", "/search?key=000000000&limit=12").json()["hits"]
    assert len(others) == 11 and "000000000" not in {hit["key"] for hit in others}  # it is no answer to itself
    assert colours(ask(made, "POST", "/search/image?limit=3", content=square("green"))) == ["green"] * 3


def test_words_added_and_taken_away_and_their_weight(made):
    red, yellow = square("red"), square("yellow")
    assert set(colours(ask(made, "POST", "/search/image?plus=green&limit=3", content=red))) == {"yellow"}
    assert set(colours(ask(made, "POST", "/search/image?minus=green&limit=3", content=yellow))) == {"red"}
    light = ask(made, "POST", "/search/image?minus=green&limit=3&weight=0.01", content=yellow)
    assert set(colours(light)) == {"yellow"}
    assert ask(made, "POST", "/search/image?plus=green", content=red).json()["query"] == "the picture + “green”"


def test_filters_and_pages(made):
    answer = ask(made, "GET", "/search?text=blue&split=test").json()
    assert len(answer["hits"]) == 4 and {hit["split"] for hit in answer["hits"]} == {"test"}
    assert colours(ask(made, "GET", "/search?text=blue&words=RED+shade")) == ["red"] * 3
    assert ask(made, "GET", "/search?text=blue&words=re").json()["hits"] == []  # whole words
    pages = [ask(made, "GET", f"/search?text=blue&limit=5&offset={offset}").json() for offset in (0, 5, 10)]
    assert [page["more"] for page in pages] == [True, True, False]
    ranks = [hit["rank"] for page in pages for hit in page["hits"]]
    keys = [hit["key"] for page in pages for hit in page["hits"]]
    assert ranks == list(range(1, 13)) and len(set(keys)) == 12


def test_a_filter_alone_lists_pictures(made):
    pages = [ask(made, "GET", f"/search?split=test&limit=3&offset={offset}").json() for offset in (0, 3)]
    hits = [hit for page in pages for hit in page["hits"]]
    assert [page["more"] for page in pages] == [True, False] and pages[0]["query"] == "test"
    keys = [hit["key"] for hit in hits]
    assert keys == sorted(set(keys)) and len(keys) == 4
    assert {(hit["split"], hit["score"]) for hit in hits} == {("test", 0)}
    assert colours(ask(made, "GET", "/search?words=red")) == ["red"] * 3
    assert ask(made, "POST", "/search/image?split=test", content=square("red")).json()["query"] == "the picture"


def test_no_more_is_promised_than_paging_can_reach(made, monkeypatch):
    monkeypatch.setattr(queries, "MAX_RESULTS", 10)
    monkeypatch.setattr(app, "MAX_RESULTS", 10)
    pages = [ask(made, "GET", f"/search?text=blue&limit=5&offset={offset}") for offset in (0, 5, 10)]
    assert [page.status_code for page in pages] == [200, 200, 400]
    assert [page.json()["more"] for page in pages[:2]] == [True, False]


@pytest.mark.parametrize(("method", "path", "more", "status", "says"), [
    ("GET", "/search", {}, 400, "give one of text, key and image, or a filter alone"),
    ("GET", "/search?split=test&plus=red", {}, 400, "plus and minus change a picture"),
    ("GET", "/search?words=%20", {}, 400, "words: the text is empty"),
    ("GET", "/search?text=a&key=b", {}, 400, "give one of"),
    ("GET", "/search?text=red&plus=blue", {}, 400, "plus and minus change a picture"),
    ("GET", "/search?text=%20%20", {}, 400, "the text is empty"),
    ("GET", f"/search?text={'a' * 1001}", {}, 400, "text: String should have at most 1000"),
    ("GET", "/search?text=a&limit=101", {}, 400, "limit: "),
    ("GET", "/search?text=a&offset=990&limit=20", {}, 400, "results end at 1,000"),
    ("GET", "/search?text=a&nonsense=1", {}, 400, "nonsense: "),
    ("GET", "/search?text=a&words=1+2+3+4+5+6+7+8+9", {}, 400, "words: 9 different ones; at most 8"),
    ("GET", "/search?text=a", {"content": b" " * 70_000}, 413, "at most 65,536"),
    ("POST", "/embed", {"json": {"texts": ["b"] * 40_000}}, 413, "at most 65,536"),
    ("GET", "/search?key=nobody", {}, 400, "no image with key 'nobody'"),
    ("GET", "/search?key=000000000&plus=a&weight=nan", {}, 400, "weight: "),
    ("POST", "/embed", {"content": b"{", "headers": JSON}, 400, "JSON"),
    ("POST", "/embed", {"content": b'{"texts": ["\\ud800"]}', "headers": JSON}, 400, "text"),
    ("POST", "/search/image", {"content": b"GIF89a"}, 400, "not a picture"),
    ("POST", "/search/image", {"content": b""}, 400, "not a picture"),
    ("POST", "/search/image", {"content": square("red")[:300]}, 400, "not a picture"),
    ("POST", "/search/image", {"content": hostile_pictures.png(6000)}, 400, "6,000 x 6,000 pixels"),
    ("POST", "/embed/image", {"content": b"GIF89a"}, 400, "not a picture"),
    ("GET", "/search?text=a&surely=0.8", {}, 400, "surely: 0.8 is not promised; 0.75 or 0.9 is"),
    ("POST", "/embed", {"json": {}}, 400, "texts: Field required"),
    ("POST", "/embed", {"json": {"texts": []}}, 400, "texts: List should have at least 1"),
    ("POST", "/embed", {"json": {"texts": ["a"] * 65}}, 400, "texts: List should have at most 64"),
    ("POST", "/embed", {"json": {"texts": [""]}}, 400, "texts: the text is empty"),
    ("GET", "/item/nobody", {}, 404, "no picture with key"),
    ("GET", "/image/../../etc/passwd", {}, 404, ""),
    ("GET", "/image/..%2f..%2fetc%2fpasswd", {}, 404, "no picture with key"),
    ("POST", "/search", {"json": {"text": "a"}}, 405, "Method Not Allowed"),
    ("GET", "/nowhere", {}, 404, "Not Found"),
])  # fmt: skip
def test_what_is_wrong_is_refused_in_one_line(made, method, path, more, status, says):
    answer = ask(made, method, path, **more)
    assert answer.status_code == status, answer.text
    body = json.loads(answer.text)
    assert set(body) == {"error"} and says in body["error"] and "\n" not in body["error"]


def test_a_line_is_drawn_for_words_alone_and_else_it_says_why_not(world, made, tmp_path):
    def asked(path, of=None):
        answer = ask(of or made, "GET", path).json()
        return [hit["sure"] for hit in answer["hits"]], answer["promise"]

    few = "This index has too few held-out texts to say how sure an answer is."
    assert asked("/search?text=blue&limit=1") == ([None], few)
    shutil.copytree(world / "index", tmp_path / "index")
    first = served(tmp_path)
    lines = {0.75: 0.9, 0.9: 2.0}
    promised = replace(
        first, index=first.index.promising(Promise(lines=lines, slope=0.5, num_concepts=60), tmp_path / "index")
    )
    assert served(tmp_path).index.header == promised.index.header
    with service(world, promised) as one:
        rule = (
            "questions like the held-out texts of this index, half of which have no answer here, at most one gets a "
            "wrong first picture above the line."
        )
        assert asked("/search?text=blue&limit=4", one) == ([True] * 3 + [False], f"Of 4 {rule}")
        assert asked("/search?text=blue&limit=2&offset=4", one) == ([False] * 2, f"Of 4 {rule}")
        none = "No picture here surely shows this (as sure as 9 in 10)."
        assert asked("/search?text=blue&limit=1&surely=0.9", one) == ([False], f"{none} Of 10 {rule}")
        of_words = "How sure an answer is, is known of words alone, not of a picture."
        assert asked("/search?key=000000000&limit=1&surely=0.9", one) == ([None], of_words)
        whole = "How sure an answer is, is known of the whole index, not of a part of it."
        assert asked("/search?text=blue&limit=1&split=test", one) == ([None], whole)
        assert asked("/search?split=test&limit=1", one) == ([None], "")


def test_a_word_that_comes_again_and_again_is_looked_for_once(made):
    assert colours(ask(made, "GET", "/search?text=blue&limit=3&words=" + "+".join(["red"] * 250))) == ["red"] * 3


class Stuck(Decoders):
    """Decodes no slow picture before it may."""

    def __init__(self):
        super().__init__(max_pixels=10_000, timeout_s=200.0)
        self.go, self.num = threading.Event(), 0

    def crop(self, data, resize_px, image_px):
        self.num += data == SLOW
        assert data != SLOW or self.go.wait(100)
        return super().crop(data, resize_px, image_px)


def test_a_client_with_many_slow_pictures_delays_no_other(world):
    with service(world, served(world)) as made:
        made.decoders = stuck = Stuck()

        async def attack():
            slow = [
                asyncio.create_task(send(made, "POST", "/embed/image", "127.0.0.2", content=SLOW)) for _ in range(6)
            ]
            while stuck.num < 2:
                await asyncio.sleep(0.01)
            other = await send(made, "POST", "/search/image?limit=1", content=square("red"))
            stuck.go.set()
            return [other.status_code, *(answer.status_code for answer in await asyncio.gather(*slow))]

        assert asyncio.run(attack()) == [200] * 7


def test_a_request_has_one_deadline(world):
    with service(world, served(world), request_timeout_s=0.5) as made:
        made.decoders = stuck = Stuck()
        refused = ask(made, "POST", "/search/image", content=SLOW)
        assert refused.status_code == 503 and "no answer within 0.5 s" in refused.json()["error"]
        stuck.go.set()
        assert ask(made, "GET", "/search?text=red").status_code == 200


def test_embeddings_are_those_of_the_model(made):
    texts = ask(made, "POST", "/embed", json={"texts": ["red", "blue"]}).json()
    image = ask(made, "POST", "/embed/image", content=square("red", format="PNG")).json()
    [red, blue], [picture] = texts["embeddings"], image["embeddings"]
    assert red == pytest.approx(picture, abs=0.02) and red != blue
    assert texts["served"]["version"] == image["served"]["version"] == 1


def test_a_picture_leads_to_its_page_rules_shard_and_version(made):
    item = ask(made, "GET", "/item/000000001").json()
    picture, texts = "https://example.com/000000001.jpg", ["a red square", "red shade 20"]
    assert item["found"] == [
        {"key": key, "text": text, "page_url": PAGE, "url": picture}
        for key, text in zip(("000000001", "100000001"), texts, strict=True)
    ]
    assert item["pair"]["kept"] and item["pair"]["rules"][0]["verdict"] == "passes" and item["texts"] == texts
    assert (item["shard"], item["served"]["version"], item["served"]["run_id"]) == ("train/00000.tar", 1, "run-1")
    assert item["version_tags"] == {"align.promoted_at": "today"} and item["picture_missing"] is None
    assert ask(made, "GET", "/item/000000002").json()["found"][0]["page_url"] is None


def test_pictures_are_jpegs_that_a_browser_may_keep_for_this_index_only(made):
    address = ask(made, "GET", "/search?text=red&limit=1").json()["hits"][0]["image"]
    kept = ask(made, "GET", address)
    assert kept.content.startswith(b"\xff\xd8") and kept.headers["cache-control"].startswith("private, max-age")
    assert kept.headers["content-type"] == "image/jpeg" and kept.headers["x-content-type-options"] == "nosniff"
    for other in (address.partition("?")[0], address.partition("?")[0] + "?of=0000"):
        assert ask(made, "GET", other).headers["cache-control"] == "no-store"


def test_without_shards_there_are_thumbnails(world, made, tmp_path):
    thumbnail = ask(made, "GET", "/image/000000001").content
    large = ask(made, "GET", "/image/000000001?large=true").content
    with service(tmp_path, served(world)) as without:
        assert ask(without, "GET", "/health").json()["pictures"] is None
        for path in ("/image/000000001", "/image/000000001?large=true"):
            assert ask(without, "GET", path).content == thumbnail != large
    assert large == (item := served(world).index.item("000000001")).image(world / "shards" / item.shard)


def test_without_shards_and_thumbnails_there_are_reasons_for_pictures(tmp_path):
    world = tmp_path / "world"
    colour_index.build(world, thumbnail_px=0)
    with service(tmp_path, served(world)) as made:
        assert "the pictures are not here" in ask(made, "GET", "/image/000000001").json()["error"]
        assert ask(made, "GET", "/image/000000001").status_code == 404
        assert "the pictures are not here" in ask(made, "GET", "/health").json()["pictures"]
        assert len(colours(ask(made, "GET", "/search?text=red&limit=2"))) == 2


def test_before_there_is_a_champion_it_runs_and_says_what_to_do(world):
    with service(world, None) as made:
        health = ask(made, "GET", "/health").json()
        assert (health["live"], health["ready"], health["warnings"]) == (True, False, ["promote something"])
        assert ask(made, "GET", "/health?ready=true").status_code == 503
        answer = ask(made, "GET", "/search?text=red")
        assert (answer.status_code, answer.json()) == (503, {"error": "promote something"})
        assert answer.headers["retry-after"] == "5"
        assert ask(made, "POST", "/search/image", content=square("red")).status_code == 503
        assert ask(made, "GET", "/").status_code == 200


def test_the_page_needs_nothing_from_outside_and_the_endpoints_are_described(made):
    for path in ("/", "/page.js", "/query.js", "/detail.js", "/source.js", "/page.css"):
        answer = ask(made, "GET", path)
        assert answer.status_code == 200 and "http://" not in answer.text.replace("http://127.0.0.1", "")
        assert "https://" not in answer.text and "innerHTML" not in answer.text and "<style" not in answer.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    schema = ask(made, "GET", "/openapi.json").json()
    assert "422" not in json.dumps(schema["paths"]) and "SearchHit" in schema["components"]["schemas"]


def test_metrics_are_lines_that_prometheus_reads(made):
    ask(made, "GET", "/search?text=red")
    answer = ask(made, "GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(answer.text))
    samples = {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}
    assert samples["align_search_requests_total", "search", "200"] >= 1
    assert samples["align_search_served", "111111111111", "1"] == 1
    total = samples["align_search_request_seconds_count", "search"]
    assert samples["align_search_request_seconds_bucket", "search", "+Inf"] == total
    assert {family.name for family in families} == {
        f"align_search_{name}" for name in ("requests", "request_seconds", "queue", "passes", "inputs", "remembered",
                                            "swaps", "warnings", "served", "images")
    }  # fmt: skip


def test_a_fault_of_ours_is_no_stack_trace(made, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret path /home/x")

    monkeypatch.setattr(made.pictures, "read", broken)
    answer = ask(made, "GET", "/image/000000001")
    assert (answer.status_code, answer.json()) == (500, {"error": "the server failed; its log says why"})


@pytest.mark.parametrize("path", ["/search/image", "/embed", "/embed/image"])
def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault(made, path):
    app = guarded(made, PORT)
    parts = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(parts)

    async def send_nothing(_):
        pass

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(b"host", f"127.0.0.1:{PORT}".encode())], "client": ("127.0.0.1", 5)}
    asyncio.run(app(scope, receive, send_nothing))  # what it raised would be 4 kB of log


def test_a_page_begins_with_pictures_and_an_example(made):
    answer = ask(made, "GET", "/start").json()
    assert answer["num_images"] == 12 and len(answer["hits"]) == 12 and answer["columns"] == {}
    assert answer["example"] in [text for hit in answer["hits"] for text in hit["texts"]]
    assert answer["hits"][0]["image"].startswith("/image/") and answer["hits"][0]["columns"] == {}


def test_columns_of_a_catalogue_are_answered_and_are_filters(tmp_path):
    (tmp_path / "shop").mkdir()
    rows = ["SKU;Preis;Titel;Bild\n"]
    for number, colour in enumerate(("red", "green", "blue")):
        (tmp_path / f"shop/{colour}.jpg").write_bytes(square(colour))
        rows.append(f"0{number};{number},5;<img src=x onerror=alert(1)> {colour};{colour}.jpg\n")
    (tmp_path / "shop/t.csv").write_text("".join(rows))
    params = load_params(overrides=["ingest.columns={url: Bild, text: Titel, page_url: null}"])
    reading, config = params.section(IngestConfig), params.section(IndexConfig)
    index_catalogue(config, tmp_path / "shop/t.csv", reading, ColourEncoder(), "mine", tmp_path / "index", update=False)
    with service(tmp_path, served(tmp_path)) as made:
        [hit] = ask(made, "GET", "/search?text=red&where=Preis>=1&where=SKU=01").json()["hits"]
        assert (hit["key"], hit["columns"]) == ("green.jpg", {"SKU": "01", "Preis": 1.5})
        hits = ask(made, "GET", "/search", params={"text": "blue", "where": "preis < 2,5"}).json()["hits"]
        assert {hit["key"] for hit in hits} == {"red.jpg", "green.jpg"}
        listed = ask(made, "GET", "/search", params={"where": "Preis<2"}).json()
        assert [hit["key"] for hit in listed["hits"]] == ["red.jpg", "green.jpg"]
        assert (listed["query"], listed["hint"]) == ("Preis<2", "")
        empty = ask(made, "GET", "/search?where=SKU=1&where=Preis>9").json()
        assert (empty["hits"], empty["hint"]) == ([], "in SKU there is: 00, 01, 02; in Preis there is: 0.5 to 2.5")
        assert ask(made, "GET", "/search?text=red&where=SKU=1").json()["hint"].startswith("in SKU there is: 00")
        assert ask(made, "GET", "/item/green.jpg").json()["columns"] == {"SKU": "01", "Preis": 1.5}
        assert ask(made, "GET", "/start").json()["columns"] == {"SKU": [], "Preis": None}
        for where, said in (
            ("colour=red", "expected COLUMN=VALUE"),
            ("Preis=x", "has numbers"),
            ("SKU<1", "has texts"),
        ):
            refused = ask(made, "GET", "/search", params={"text": "red", "where": where})
            assert refused.status_code == 400 and said in refused.json()["error"]
        many = ask(made, "GET", "/search?text=red" + "&where=SKU=01" * 17)
        assert many.status_code == 400 and "where" in many.json()["error"]


def test_answers_are_short_and_paging_reaches_the_rest(tmp_path):
    (tmp_path / "shop").mkdir()
    long, table = ",".join(["x" * 1000] * 60), [",".join(["image", *(f"c{number}" for number in range(60))])]
    for number in range(20):
        (tmp_path / f"shop/{number}.jpg").write_bytes(square("red"))
        table.append(f"{number}.jpg,{long}")
    (tmp_path / "shop/t.csv").write_text("\n".join(table))
    reading, config = load_params().section(IngestConfig), load_params().section(IndexConfig)
    index_catalogue(config, tmp_path / "shop/t.csv", reading, ColourEncoder(), "mine", tmp_path / "index", update=False)
    with service(tmp_path, served(tmp_path)) as made:
        found, more = [], True
        while more:
            answer = ask(made, "GET", f"/search?text=red&limit=100&offset={len(found)}")
            assert len(answer.content) <= 1_000_000
            found += [hit["key"] for hit in answer.json()["hits"]]
            more = answer.json()["more"]
        assert len(found) == len(set(found)) == 20
        begins = ask(made, "GET", "/start")
        assert len(begins.content) <= 1_000_000 and begins.json()["columns"]["c0"] == []


def test_without_its_computing_thread_a_service_is_not_ready(world):
    with service(world, served(world)) as made:
        assert ask(made, "GET", "/health?ready=true").status_code == 200
        made.model.stop()
        health = ask(made, "GET", "/health?ready=true")
        assert (health.status_code, health.json()["ready"]) == (503, False)
        assert ask(made, "GET", "/search?text=red").status_code == 503
