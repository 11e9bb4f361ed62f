"""Whatever is sent, the answer is JSON with a status that the description names: never 500, never a stack trace."""

import asyncio
import json
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.search.service.app import POLICY, make_app
from align.search.service.limits import Limits
from align.web.guard import Guard
from tests.support.colours import square
from tests.support.served import served, service

pytestmark = pytest.mark.costs(5, "sixty requests; how much there is to parse and to decode is chance")
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = ("text", "key", "plus", "minus", "weight", "split", "words", "offset", "limit", "texts", "x")
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["red", "000000001"])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
BODIES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5) | VALUES
PARAMETERS = st.lists(st.tuples(st.sampled_from(NAMES), st.text(max_size=30) | st.integers().map(str)), max_size=5)
PICTURES = st.binary(max_size=200) | st.tuples(st.integers(0, 600), st.binary(max_size=4)).map(
    lambda cut: square("red")[: cut[0]] + cut[1] + square("red")[cut[0] + len(cut[1]) :]
)


class Asking:
    """One client of one application, in a loop of its own."""

    def __init__(self, app):
        self.loop = asyncio.new_event_loop()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7000")

    def __call__(self, method, path, **more):
        answer = self.loop.run_until_complete(self.client.request(method, path, **more))
        assert answer.status_code in (200, 400, 404, 405), answer.text
        if answer.status_code != 200:
            body = json.loads(answer.content)
            assert set(body) == {"error"} and body["error"] and "\n" not in body["error"]

    def close(self):
        self.loop.run_until_complete(self.client.aclose())
        self.loop.close()


@pytest.fixture(scope="module")
def ask(world):
    with service(world, served(world), max_requests_per_s=None) as made:
        asking = Asking(Guard(Limits(make_app(made), made.config, made.requests, made.buckets), 7000, policy=POLICY))
        yield asking
        asking.close()


@SETTINGS
@given(path=st.sampled_from(["/search", "/embed"]), body=BODIES)
def test_any_json(ask, path, body):
    content = json.dumps(body).encode()  # NaN and half surrogates, too
    ask("POST", path, content=content, headers={"content-type": "application/json"})


@SETTINGS
@given(path=st.sampled_from(["/search", "/embed"]), content=st.binary(max_size=60))
def test_any_bytes(ask, path, content):
    ask("POST", path, content=content, headers={"content-type": "application/json"})


@SETTINGS
@given(path=st.sampled_from(["/search", "/item/000000001", "/image/000000001", "/health"]), parameters=PARAMETERS)
def test_any_parameters(ask, path, parameters):
    ask("GET", path, params=httpx.QueryParams(parameters))


@SETTINGS
@given(first=st.sampled_from(["item", "image", "search", "openapi.json", "x"]), rest=st.text(max_size=30))
def test_any_path(ask, first, rest):
    ask("GET", quote(f"/{first}/{rest}"))


@SETTINGS
@given(path=st.sampled_from(["/search/image?limit=2", "/embed/image"]), content=PICTURES)
def test_any_picture(ask, path, content):
    ask("POST", path, content=content)
