"""A server of ours answers under its own names, to its own pages, and to who knows the login."""

import asyncio
from base64 import b64encode
from types import MappingProxyType

import pytest

from align.web.guard import Guard

NAMES = ("prefect:4200", "prefect.example.com")
GET = MappingProxyType({"method": "GET"})


def status(host, names=NAMES, **headers):
    """What a request gets."""
    return guard_answer(host, names, **headers)[0]


def guard_answer(host, names=NAMES, login=None, how=GET, **headers):
    """Status and body of what a request gets."""
    sent = []
    reached = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        reached.append(scope["path"])

    async def send(message):
        sent.append(message)

    async def receive():
        return {}

    pairs = [
        (b"host", host.encode()),
        *((key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()),
    ]
    scope = {"type": "http", "path": "/", "headers": pairs, **how}
    guard = Guard(app, 4200, login, names, policy=b"default-src 'none'", login_of="of HERE", reader="bob:looks")
    asyncio.run(guard(scope, receive, send))
    assert bool(reached) == (sent[0].get("status") == 200)
    return int(sent[0].get("status", sent[0].get("code", 0))), b"".join(each.get("body", b"") for each in sent)


def test_it_answers_under_its_names_only():
    assert [status(host) for host in ("127.0.0.1:4200", *NAMES)] == [200, 200, 200]
    assert [status(host) for host in ("evil.example", "prefect", "prefect:4201", "")] == [403] * 4
    assert status("prefect:4200", names=()) == 403


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("prefect.example.com", "https://prefect.example.com", 200),  # behind a proxy with TLS
        ("prefect:4200", "http://prefect:4200", 200),
        ("prefect:4200", "http://prefect.example.com", 403),  # a page of one name does not reach another
        ("127.0.0.1:4200", "http://127.0.0.1:4200", 200),
        ("127.0.0.1:4200", "https://127.0.0.1:4200", 403),
        ("127.0.0.1:4200", "http://prefect:4200", 403),
        ("prefect:4200", "http://evil.example", 403),
    ],
)
def test_it_answers_to_pages_of_the_same_name(host, origin, expected):
    assert status(host, origin=origin) == expected
    assert status(host, origin=origin, sec_fetch_site="cross-site") == 403


def test_who_does_not_know_the_login_is_told_where_it_is_and_nothing_of_it():
    told = (401, b"log in with the user and the password of HERE\n")
    assert guard_answer("prefect:4200", login="ann:secret") == told
    assert guard_answer("prefect:4200", login="ann:secret", authorization="Basic YW5uOndyb25n") == told
    assert guard_answer("prefect:4200", login="ann:secret", authorization="Basic YW5uOnNlY3JldA==") == (200, b"")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        *(({"method": method}, 200) for method in ("GET", "HEAD")),
        *(({"method": method}, 403) for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "QUERY")),
        ({"type": "websocket"}, 1008),
    ],
)
def test_the_second_login_reads_and_changes_nothing(how, expected):
    looks = f"Basic {b64encode(b'bob:looks').decode()}"
    assert guard_answer("prefect:4200", login="ann:secret", how=how, authorization=looks)[0] == expected
    assert guard_answer("prefect:4200", login="ann:secret", how=how, authorization=f"{looks}x")[0] in (401, 1008)
    assert guard_answer("evil.example", login="ann:secret", how=how, authorization=looks)[0] in (403, 1008)
