"""Messages hold no login of an address."""

import pickle
import time

import pytest

from align.errors import ConfigError, ServiceError, without_logins


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("MLflow at http://bob:secret@host:5000: no", "MLflow at http://host:5000: no"),
        ("https://TOKEN@git.example/repo.git", "https://git.example/repo.git"),
        ("postgresql+psycopg://bob:p@ss@host/db", "postgresql+psycopg://host/db"),
        ("'http://bob:se/cr?e#t@host/x' is no address", "'http://host/x' is no address"),
        ("http://a:b@c/ and ftp://d:e@f/", "http://c/ and ftp://f/"),
        ("'https://h/a?n=1&X-Amz-Signature=ab%2F': 403", "'https://h/a?n=1&X-Amz-Signature=...': 403"),
        ("https://u:p@h/a?sig=x&st=1#access_token=y", "https://h/a?sig=...&st=1#access_token=..."),
        *((same, same) for same in (
            "https://example.com/@user/picture@2x.png",
            "https://example.com/a?design=1&signature_of=me&tokens=3&size=4",
            "http://[::1]:80/a@b",
            "http://host:8080/a@b",
            "s3://bucket/a@b",
            "git@example.com:a/b.git",
            "somebody@example.com",
            '{"url":"https://example.com","by":"me@example.com"}',
        )),
    ],
)  # fmt: skip
def test_logins_are_cut_out(text: str, shown: str) -> None:
    assert without_logins(text) == shown
    assert str(ServiceError(text)) == shown


@pytest.mark.parametrize(
    "text", ["a" * 300_000, "http://" + "a:" * 150_000, "http://a:b" * 30_000, "?sig&" * 60_000, "?aPi" * 70_000]
)
def test_long_lines_take_no_longer_than_their_length(text: str) -> None:
    begun = time.thread_time()
    assert without_logins(f"{text} x@y") == f"{text} x@y"
    assert time.thread_time() - begun < 10  # by the square of it, half an hour


def test_an_error_comes_back_from_another_process_as_it_was() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("http://a:b@c")))
    assert type(error) is ConfigError and str(error) == "http://c"
