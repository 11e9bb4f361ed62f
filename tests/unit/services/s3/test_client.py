"""Bodies that are cut off or of another object, a server that restarts, names that lead elsewhere, another service."""

import hashlib
import io
import re
from itertools import count

import pytest

from align.config.infrastructure import StoreConfig
from align.durable.checkpoint import CheckpointFolder
from align.errors import AlignError, DataError, ServiceError
from align.services.s3 import client
from align.services.s3.locations import Stat
from align.services.s3.store import CheckpointMirror
from tests.support.odd_server import answering, listing
from tests.support.params import load_params

# botocore leaves a connection that the server broke off to the collector of garbage
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

URI = "s3://bucket/run/step-00000001.pt"


@pytest.fixture
def config():
    return StoreConfig.model_validate(load_params().values["store"] | {"num_retries": 1, "timeout_s": 2.0})


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(client, "_BACKOFF_S", 0.01)
    monkeypatch.setattr(client, "_PART_BYTES", 5 << 20)
    monkeypatch.setattr(StoreConfig, "num_connections", 2)


BODIES = {
    "of another object": lambda _: (206, {"ETag": '"two"'}, bytes(100)),
    "cut off": lambda _: (206, {"Content-Length": "100"}, bytes(50)),
}


@pytest.mark.parametrize("answer", BODIES.values(), ids=BODIES)
def test_a_download_is_whole_and_of_one_object(config, monkeypatch, answer):
    with answering(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(AlignError) as refused:
            client.download(config, URI, io.BytesIO(), Stat(100, '"one"'))
    assert str(refused.value).startswith(URI) and "\n" not in str(refused.value)


@pytest.mark.parametrize("headers", [{"ETag": None}, {"Last-Modified": "yesterday"}], ids=["no ETag", "no time"])
def test_a_server_of_something_else_is_told(config, monkeypatch, headers):
    with answering(lambda _: (200, headers, b"abc")) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(ServiceError) as refused:
            client.stat(config, URI)
    assert str(refused.value).startswith(URI) and "\n" not in str(refused.value)


def test_names_in_a_listing_lead_nowhere(config, tmp_path, monkeypatch):
    """A checkpoint's name becomes a file's."""
    names = (
        "step-99999999.pt/../../../../gone", "../step-00000009.pt", "step-x.pt", "step-00000002.pt\n", "/etc/passwd",
    )  # fmt: skip

    def answer(request):
        return 200, {}, listing(*(f"run/{name}" for name in names)) if "list-type" in request.path else b"x"  # type: ignore[attr-defined]

    (tmp_path / "deep/er/run").mkdir(parents=True)
    folder = CheckpointFolder(tmp_path / "deep/er/run", 2, CheckpointMirror(config, "s3://bucket"))
    with answering(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        folder.fetch()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("other", [False, True])
def test_a_server_that_restarts_in_mid_download(config, monkeypatch, other):
    """The rest is read from the server that comes back, unless it has another object then."""
    whole, part = bytes(range(256)) * (48 << 10), 5 << 20
    asked = count()

    def answer(request):
        start = int(re.findall(r"\d+", request.headers["Range"])[0])  # type: ignore[attr-defined]
        data, number = whole[start : start + part], next(asked)
        if number == 2:  # it ends in mid-body
            return 206, {"Content-Length": str(len(data))}, data[:1000]
        return 206, {"ETag": '"two"'} if other and number > 2 else {}, data

    target = io.BytesIO()
    with answering(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        if other:
            with pytest.raises(DataError, match="replaced while it was read"):
                client.download(config, URI, target, Stat(len(whole), '"one"'))
        else:
            digest = client.download(config, URI, target, Stat(len(whole), '"one"'))
            assert (digest, target.getvalue()) == (hashlib.sha256(whole).hexdigest(), whole)
