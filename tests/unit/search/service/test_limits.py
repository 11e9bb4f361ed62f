"""Bodies, clients and time are bounded, whatever a request's head says."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from align.search.service.limits import Buckets, Limits
from align.search.service.metrics import RequestMetrics
from tests.support.served import limits


def answer(
    *,
    parts: list[bytes] | None = None,
    says: int | None = None,
    pause_s: float = 0.0,
    path: str = "/search",
    made: Limits,
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one request, whose body comes in parts."""
    sent: list[MutableMapping[str, Any]] = []
    bodies = list(parts or [b""])

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.sleep(pause_s)
        body = bodies.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(bodies)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-length", str(says).encode())] if says is not None else []
    scope = {"type": "http", "path": path, "headers": headers, "client": ("127.0.0.1", 5)}
    asyncio.run(made(scope, receive, send))
    body = sent[-1].get("body", b"")
    return sent[0]["status"], json.loads(body) if body else {}


async def reads_all(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def limited(**values: Any) -> Limits:
    return Limits(reads_all, limits(**{"max_requests_per_s": None, "max_body_bytes": 2048, **values}), RequestMetrics())


def test_a_body_is_bounded_by_what_comes_not_by_what_is_said() -> None:
    assert answer(made=limited(), parts=[b"x" * 1024, b"x" * 1024])[0] == 200
    assert answer(made=limited(), parts=[b"x" * 1024, b"x" * 1025], says=3)[0] == 413
    status, body = answer(made=limited(), says=2049, parts=[])
    assert status == 413 and "at most 2,048" in body["error"]
    assert answer(made=limited(), says=10**30)[0] == 413


def test_a_body_that_drips_is_cut_off() -> None:
    status, body = answer(made=limited(body_timeout_s=0.1), parts=[b"x"] * 50, pause_s=0.02)
    assert status == 408 and "within 0.1 s" in body["error"]


def test_a_client_that_asks_too_often_waits_and_others_do_not() -> None:
    now = [0.0]
    buckets = Buckets(2.0, 3, clock=lambda: now[0])
    assert [buckets.wait_s("one", 1.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    assert buckets.wait_s("other", 1.0) == 0
    now[0] = 0.5
    assert buckets.wait_s("one", 1.0) == 0 and buckets.wait_s("one", 1.0) == pytest.approx(0.5)
    now[0] = 1000.0
    assert [buckets.wait_s("one", 1.0) > 0 for _ in range(4)] == [False, False, False, True]  # no more than a burst


def test_refusals_say_when_to_come_again_and_pages_are_free() -> None:
    made = limited(max_requests_per_s=0.5, max_burst=1)
    assert answer(made=made)[0] == 200
    status, body = answer(made=made)
    assert status == 429 and "too many requests" in body["error"]
    assert answer(made=made, path="/")[0] == 200
    assert answer(made=made, path="/health")[0] == 200


def test_many_addresses_take_bounded_memory() -> None:
    buckets = Buckets(1.0, 1)
    for number in range(12_000):
        buckets.wait_s(str(number), 1.0)
    assert len(buckets._left) == 10_000


def test_every_request_is_counted_under_few_names() -> None:
    made = limited(max_body_bytes=1024)
    for path in ("/search", "/search/image", "/image/a/b", "/../x", "/%00"):
        answer(made=made, path=path)
    answer(made=made, says=9999)
    lines = made._metrics.lines()
    assert 'align_search_requests_total{endpoint="search",status="200"} 2' in lines
    assert 'align_search_requests_total{endpoint="search",status="413"} 1' in lines
    assert 'align_search_requests_total{endpoint="page",status="200"} 2' in lines
