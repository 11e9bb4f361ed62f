"""An S3 endpoint that lies costs no memory, no time without end and no file outside: each lie is one line."""

import hashlib
import io
import re
import resource
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from align.config.infrastructure import StoreConfig
from align.durable.checkpoint import CheckpointFolder
from align.errors import AlignError, DataError, ServiceError
from align.services.s3 import client
from align.services.s3.locations import Stat
from align.services.s3.store import CheckpointMirror
from tests.support.lying_s3 import ENDLESS, Answer, listing, lying
from tests.support.params import load_params

# botocore leaves a connection that the server broke off to the collector of garbage
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

URI = "s3://bucket/run/step-00000001.pt"


@pytest.fixture
def config() -> StoreConfig:
    return StoreConfig.model_validate(load_params().values["store"] | {"num_retries": 1, "timeout_s": 2.0})


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(client, "_BACKOFF_S", 0.01)
    monkeypatch.setattr(client, "_PART_BYTES", 5 << 20)
    monkeypatch.setattr(StoreConfig, "num_connections", 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


BODIES: dict[str, Answer] = {
    "endless": lambda _: (206, {}, ENDLESS),
    "endless, of a stated length": lambda _: (206, {"Content-Length": "1000000000000"}, ENDLESS),
    "all of it, not the range": lambda _: (200, {}, bytes(20 << 20)),
    "of another object": lambda _: (206, {"ETag": '"two"'}, bytes(100)),
    "cut off": lambda _: (206, {"Content-Length": "100"}, bytes(50)),
    "empty": lambda _: (206, {}, b""),
}


@pytest.mark.parametrize("answer", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("size", [100, 1 << 60])
def test_a_download_is_what_was_announced_or_an_error(
    config: StoreConfig, monkeypatch: pytest.MonkeyPatch, answer: Answer, size: int
) -> None:
    with lying(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(AlignError) as refused:
            client.download(config, URI, io.BytesIO(), Stat(size, '"one"'))
    assert str(refused.value).startswith(URI) and "\n" not in str(refused.value)


HEADS: dict[str, dict[str, str | None]] = {
    "no ETag": {"ETag": None}, "no length": {"Content-Length": None}, "length below zero": {"Content-Length": "-5"},
    "length that is none": {"Content-Length": "many"}, "time that is none": {"Last-Modified": "yesterday"},
}  # fmt: skip


@pytest.mark.parametrize("headers", HEADS.values(), ids=HEADS)
def test_what_it_says_of_an_object_is_whole_or_an_error(
    config: StoreConfig, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str | None]
) -> None:
    with lying(lambda _: (200, headers, b"abc")) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(ServiceError) as refused:
            client.stat(config, URI)
    assert str(refused.value).startswith(URI) and "\n" not in str(refused.value)


SMALL: dict[str, Answer] = {
    "endless": lambda _: (200, {}, ENDLESS),
    "endless, of a stated length": lambda _: (200, {"Content-Length": "1000000000000"}, ENDLESS),
}


@pytest.mark.parametrize("answer", SMALL.values(), ids=SMALL)
def test_a_small_object_is_small_or_an_error(
    config: StoreConfig, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    with lying(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(AlignError) as refused:
            client.read_small(config, URI, 1 << 20)
    assert str(refused.value).startswith(URI) and "\n" not in str(refused.value)


def test_a_listing_that_does_not_end_is_an_error(config: StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count()
    monkeypatch.setattr(client, "_MAX_KEYS", 50)
    for page in (
        lambda: listing("run/x", more="same"),
        lambda: listing(f"run/{next(numbers)}", more=str(next(numbers))),
    ):
        with lying(lambda _, page=page: (200, {}, page())) as url:  # type: ignore[misc]
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            with pytest.raises(AlignError, match=r"^s3://bucket/run/: "):
                list(client.list_objects(config, "bucket", "run/"))


@pytest.mark.parametrize("page", [b"<a><b>", b"not xml", listing("elsewhere/x"), b'<?xml version="1.0"?><x/>'])
def test_a_listing_that_is_none_gives_nothing(
    config: StoreConfig, monkeypatch: pytest.MonkeyPatch, page: bytes
) -> None:
    with lying(lambda _: (200, {}, page)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        try:
            assert list(client.list_objects(config, "bucket", "run/")) == []
        except AlignError as refused:
            assert "\n" not in str(refused)


def test_names_in_a_listing_lead_nowhere(config: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint's name becomes a file's."""
    names = (
        "step-99999999.pt/../../../../gone", "../step-00000009.pt", "step-x.pt", "step-00000002.pt\n", "/etc/passwd",
    )  # fmt: skip

    def answer(request: object) -> tuple[int, dict[str, str | None], bytes]:
        return 200, {}, listing(*(f"run/{name}" for name in names)) if "list-type" in request.path else b"x"  # type: ignore[attr-defined]

    (tmp_path / "deep/er/run").mkdir(parents=True)
    folder = CheckpointFolder(tmp_path / "deep/er/run", 2, CheckpointMirror(config, "s3://bucket"))
    with lying(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        folder.fetch()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_checkpoint_that_is_shorter_than_announced_is_not_kept(
    config: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: object) -> tuple[int, dict[str, str | None], bytes]:
        head = request.command == "HEAD"  # type: ignore[attr-defined]
        return (200, {"Content-Length": "1000"}, b"") if head else (206, {}, b"short")

    with lying(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises((DataError, ServiceError), match=r"^s3://bucket/run/step"):
            CheckpointMirror(config, "s3://bucket").get("run/step-00000001.pt", tmp_path / "step-00000001.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [False, True])
def test_a_server_that_restarts_in_mid_download(
    config: StoreConfig, monkeypatch: pytest.MonkeyPatch, other: bool
) -> None:
    """The rest is read from the server that comes back, unless it has another object then."""
    whole, part = bytes(range(256)) * (48 << 10), 5 << 20
    asked = count()

    def answer(request: object) -> tuple[int, dict[str, str | None], bytes]:
        start = int(re.findall(r"\d+", request.headers["Range"])[0])  # type: ignore[attr-defined]
        data, number = whole[start : start + part], next(asked)
        if number == 2:  # it ends in mid-body
            return 206, {"Content-Length": str(len(data))}, data[:1000]
        return 206, {"ETag": '"two"'} if other and number > 2 else {}, data

    target = io.BytesIO()
    with lying(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        if other:
            with pytest.raises(DataError, match="replaced while it was read"):
                client.download(config, URI, target, Stat(len(whole), '"one"'))
        else:
            digest = client.download(config, URI, target, Stat(len(whole), '"one"'))
            assert (digest, target.getvalue()) == (hashlib.sha256(whole).hexdigest(), whole)
