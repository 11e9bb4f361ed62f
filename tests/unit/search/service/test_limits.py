"""Bodies, clients and time are bounded, whatever a request's head says."""

import asyncio
import json

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from align.search.service import limits as service_limits
from align.search.service.answers import EmbedRequest
from align.search.service.limits import MAX_TEXT_BYTES, Limits
from tests.support.served import limits


def answer(*, parts=None, says=None, pause_s=0.0, path="/search/image", method="POST", head=(), made):
    """Status and JSON of one request, whose body comes in parts."""
    sent = []
    bodies = list(parts or [b""])

    async def receive():
        await asyncio.sleep(pause_s)
        body = bodies.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(bodies)}

    async def send(message):
        sent.append(message)

    headers = [*head, *([(b"content-length", str(says).encode())] if says is not None else [])]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": ("127.0.0.1", 5)}
    asyncio.run(made(scope, receive, send))
    body = sent[-1].get("body", b"")
    return sent[0]["status"], json.loads(body) if body else {}


async def reads_all(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def limited(registry=None, app=reads_all, by_client=True, **values):
    config = limits(**{"max_body_bytes": 2 * MAX_TEXT_BYTES, **values})
    return Limits(app, config, registry or CollectorRegistry(), by_client=by_client)


@pytest.mark.parametrize(
    ("method", "path", "most"),
    [
        *(("POST", path, 2 * MAX_TEXT_BYTES) for path in ("/search/image", "/embed/image")),
        *(
            (method, path, MAX_TEXT_BYTES)
            for method, path in (("GET", "/search/image"), ("POST", "/embed"), ("POST", "/"))
        ),
    ],
)
def test_a_body_says_its_length_and_only_pictures_may_be_long(method, path, most):
    how = {"made": limited(), "method": method, "path": path}
    assert answer(says=most, **how)[0] == answer(**how)[0] == 200
    status, body = answer(says=most + 1, **how)
    assert status == 413 and f"at most {most:,}" in body["error"]
    status, body = answer(head=[(b"Transfer-Encoding", b"chunked")], **how)
    assert status == 411 and "not in chunks" in body["error"]


@pytest.mark.parametrize(
    "body", [{"texts": [1] * 9000}, {f"k{number}": 1 for number in range(5000)}], ids=["texts", "fields"]
)
def test_the_first_wrong_value_ends_a_check(body):
    with pytest.raises(ValidationError) as refused:
        EmbedRequest.model_validate(body)
    assert refused.value.error_count() == 1


class Held:
    """An application that answers nothing before it may, and counts what is in work."""

    def __init__(self):
        self.go, self.in_work = asyncio.Event(), 0

    async def __call__(self, scope, receive, send):
        self.in_work += 1
        await self.go.wait()
        await reads_all(scope, receive, send)
        self.in_work -= 1


async def status_of(made, path, client, length=0):
    """Status of one request in a loop that has others."""
    statuses = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        statuses.append(message.get("status"))

    headers = [(b"content-length", b"%d" % length)]
    await made(
        {"type": "http", "method": "POST", "path": path, "headers": headers, "client": (client, "5")}, receive, send
    )
    return statuses[0]


def in_work(*asked, **options):
    """How many of these requests are in work at a time, and what all of them get."""

    async def run():
        held = Held()
        made = limited(app=held, **options)
        tasks = [asyncio.create_task(status_of(made, *one)) for one in asked]
        for _ in range(20):
            await asyncio.sleep(0)
        found = held.in_work
        held.go.set()
        return found, await asyncio.gather(*tasks)

    return asyncio.run(run())


def test_a_client_has_few_requests_in_work_and_the_others_wait_for_their_turn():
    assert in_work(*[("/search", "one")] * 9) == (4, [200] * 9)
    assert in_work(*[("/embed/image", "one")] * 9) == (2, [200] * 9)
    assert in_work(*[("/search", "one")] * 9, *[("/embed/image", "one")] * 9, ("/search", "two"))[0] == 7
    assert in_work(*[("/health", "one")] * 9, *[("/metrics", "one")] * 9)[0] == 18
    assert in_work(*[("/search", "proxy")] * 9, by_client=False)[0] == 9


def test_waiting_for_a_turn_has_the_deadline_of_the_request():
    async def run():
        held = Held()
        made = limited(app=held, request_timeout_s=0.1)
        return await asyncio.gather(*[status_of(made, "/search", "one") for _ in range(6)])

    assert asyncio.run(run()) == [503] * 6


def test_all_bodies_together_are_bounded(monkeypatch):
    monkeypatch.setattr(service_limits, "_MAX_HELD_BYTES", 3000)
    asked = [("/embed", "one", 2000), ("/embed", "two", 1001), ("/embed", "three", 1000)]
    assert in_work(*asked) == (2, [200, 503, 200])


def test_a_body_that_drips_is_cut_off():
    status, body = answer(made=limited(request_timeout_s=0.1), parts=[b"x"] * 50, pause_s=0.02)
    assert status == 408 and "within 0.1 s" in body["error"]


def test_every_request_is_counted_under_few_names():
    registry = CollectorRegistry()
    made = limited(registry)
    for path in ("/search", "/search/image", "/image/a/b", "/../x", "/%00"):
        answer(made=made, path=path)
    answer(made=made, says=999_999)

    def counted(endpoint, status):
        return registry.get_sample_value("align_search_requests_total", {"endpoint": endpoint, "status": status})

    assert (counted("search", "200"), counted("search", "413"), counted("page", "200")) == (2, 1, 2)
