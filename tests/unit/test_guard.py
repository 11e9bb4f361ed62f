"""Under which names a server of ours answers, and to whose pages."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from align.guard import Guard

NAMES = ("prefect:4200", "prefect.example.com")


def status(host: str, names: tuple[str, ...] = NAMES, **headers: str) -> int:
    """What a request gets."""
    return answer(host, names, **headers)[0]


def answer(host: str, names: tuple[str, ...] = NAMES, login: str | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of what a request gets."""
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {}

    pairs = [
        (b"host", host.encode()),
        *((key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()),
    ]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": pairs}
    guard = Guard(app, 4200, login, names, policy=b"default-src 'none'", login_of="of HERE")
    asyncio.run(guard(scope, receive, send))
    return int(sent[0]["status"]), b"".join(each.get("body", b"") for each in sent)


def test_it_answers_under_its_names_only() -> None:
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
def test_it_answers_to_pages_of_the_same_name(host: str, origin: str, expected: int) -> None:
    assert status(host, origin=origin) == expected
    assert status(host, origin=origin, sec_fetch_site="cross-site") == 403


def test_who_does_not_know_the_login_is_told_where_it_is_and_nothing_of_it() -> None:
    told = (401, b"log in with the user and the password of HERE\n")
    assert answer("prefect:4200", login="ann:secret") == told
    assert answer("prefect:4200", login="ann:secret", authorization="Basic YW5uOndyb25n") == told
    assert answer("prefect:4200", login="ann:secret", authorization="Basic YW5uOnNlY3JldA==") == (200, b"")
