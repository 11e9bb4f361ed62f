"""Bodies, clients and time are bounded, whatever a request's head says."""

import asyncio
import json

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from align.search.service import limits as service_limits
from align.search.service.answers import EmbedRequest
from align.search.service.limits import MAX_TEXT_BYTES, Buckets, Limits, RequestMetrics
from tests.support.served import limits


def answer(*, parts=None, says=None, pause_s=0.0, path="/search/image", method="POST", made):
    """Status and JSON of one request, whose body comes in parts."""
    sent = []
    bodies = list(parts or [b""])

    async def receive():
        await asyncio.sleep(pause_s)
        body = bodies.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(bodies)}

    async def send(message):
        sent.append(message)

    headers = [(b"content-length", str(says).encode())] if says is not None else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": ("127.0.0.1", 5)}
    asyncio.run(made(scope, receive, send))
    body = sent[-1].get("body", b"")
    return sent[0]["status"], json.loads(body) if body else {}


async def reads_all(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def limited(registry=None, max_burst=200, **values):
    config = limits(**{"max_requests_per_s": None, "max_body_bytes": 2 * MAX_TEXT_BYTES, **values})
    requests = RequestMetrics(registry or CollectorRegistry())
    return Limits(reads_all, config, requests, Buckets(config.max_requests_per_s, max_burst))


def test_a_body_is_bounded_by_what_comes_not_by_what_is_said():
    half = b"x" * MAX_TEXT_BYTES
    assert answer(made=limited(), parts=[half, half])[0] == 200
    assert answer(made=limited(), parts=[half, half + b"x"], says=3)[0] == 413
    status, body = answer(made=limited(), says=2 * MAX_TEXT_BYTES + 1, parts=[])
    assert status == 413 and "at most 131,072" in body["error"]
    assert answer(made=limited(), says=10**30)[0] == 413


def test_only_requests_with_pictures_may_be_long():
    long = [b"x" * MAX_TEXT_BYTES, b"x"]
    for path in ("/search/image", "/embed/image"):
        assert answer(made=limited(), parts=[*long], path=path)[0] == 200, path
    for method, path in (("GET", "/search/image"), ("POST", "/embed"), ("POST", "/")):
        assert answer(made=limited(), parts=[*long], path=path, method=method)[0] == 413, path
        assert answer(made=limited(), says=MAX_TEXT_BYTES + 1, path=path, method=method)[0] == 413, path


def test_the_first_wrong_value_ends_a_check():
    for given in ({"texts": [1] * 9000}, dict.fromkeys(map(str, range(9000)))):
        with pytest.raises(ValidationError) as refused:
            EmbedRequest.model_validate(given)
        assert refused.value.error_count() == 1


def test_a_body_takes_from_what_a_client_may_ask_for_by_its_length():
    made = limited(max_requests_per_s=0.01, max_burst=10, max_body_bytes=1 << 24)
    assert answer(made=made, parts=[b"x"], says=15_000_000)[0] == 200
    assert answer(made=made, parts=[b"x"])[0] == 429


def test_all_bodies_together_are_bounded(monkeypatch):
    monkeypatch.setattr(service_limits, "_MAX_HELD_BYTES", 3000)
    made, waits = limited(), asyncio.Event()

    async def ask(parts):
        statuses = []

        async def receive():
            if len(parts) == 1:
                await waits.wait()
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message):
            statuses.append(message.get("status"))

        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "client": ("127.0.0.1", 5)}
        await made(scope, receive, send)
        return int(statuses[0])

    async def together():
        first = asyncio.create_task(ask([b"x" * 2000, b"x"]))
        await asyncio.sleep(0)
        waits_not = await ask([b"x" * 1001, b""])
        waits.set()
        return [waits_not, await first, await ask([b"x" * 2000, b""])]

    assert asyncio.run(together()) == [503, 200, 200]


def test_a_body_that_drips_is_cut_off():
    status, body = answer(made=limited(request_timeout_s=0.1), parts=[b"x"] * 50, pause_s=0.02)
    assert status == 408 and "within 0.1 s" in body["error"]


def test_a_client_that_asks_too_often_waits_and_others_do_not():
    now = [0.0]
    buckets = Buckets(2.0, 3, clock=lambda: now[0])
    assert [buckets.wait_s("one", 1.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    assert buckets.wait_s("other", 1.0) == 0
    now[0] = 0.5
    assert buckets.wait_s("one", 1.0) == 0 and buckets.wait_s("one", 1.0) == pytest.approx(0.5)
    now[0] = 1000.0
    assert [buckets.wait_s("one", 1.0) > 0 for _ in range(4)] == [False, False, False, True]  # no more than a burst


@pytest.mark.parametrize("path", ["/search", "/start", "/item/1", "/health", "/metrics", "/openapi.json", "/", "/no"])
def test_every_request_takes_a_token_and_refusals_say_when_to_come_again(path):
    made = limited(max_requests_per_s=0.01, max_burst=1)
    assert answer(made=made, path=path, method="GET")[0] == 200
    status, body = answer(made=made, path=path, method="GET")
    assert status == 429 and "too many requests" in body["error"]


def test_many_addresses_take_bounded_memory():
    buckets = Buckets(1.0, 1)
    for number in range(12_000):
        buckets.wait_s(str(number), 1.0)
    assert len(buckets._left) == 10_000


def test_every_request_is_counted_under_few_names():
    registry = CollectorRegistry()
    made = limited(registry)
    for path in ("/search", "/search/image", "/image/a/b", "/../x", "/%00"):
        answer(made=made, path=path)
    answer(made=made, says=999_999)

    def counted(endpoint, status):
        return registry.get_sample_value("align_search_requests_total", {"endpoint": endpoint, "status": status})

    assert (counted("search", "200"), counted("search", "413"), counted("page", "200")) == (2, 1, 2)
