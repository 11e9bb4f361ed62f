"""The endpoints. Every refusal is one line of JSON, `{"error": ...}`; no request gets a stack trace."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from align.errors import AlignError, DataError
from align.formats.image_index import IndexedImage
from align.search.service.answers import (
    MAX_RESULTS,
    EmbedAnswer,
    EmbedRequest,
    Health,
    ItemAnswer,
    Refusal,
    SearchAnswer,
    SearchQuery,
    StartAnswer,
)
from align.search.service.model_queue import Work
from align.search.service.queries import (
    answer,
    bounded,
    first_wrong,
    parsed,
    require_one_question,
    require_text,
    start,
    version,
)
from align.search.service.served import Served
from align.search.service.service import SearchService


def parameters_of(*left_out: str) -> list[dict[str, Any]]:
    """The fields of a query as parameters of an address, as OpenAPI writes them, without some."""
    fields = SearchQuery.model_json_schema()["properties"].items()
    named = [(name, schema) for name, schema in fields if name not in left_out]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in named]


#: Everything that the page needs comes from this server; it runs and is styled by its two files alone.
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_NO_TELEMETRY: Any = {"auto_configure": False, "tracing": False, "metrics": False, "logs": False}
PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
#: With 4XX, FastAPI does not add 422, which it would answer itself.
_WRONG = {
    "model": Refusal,
    "description": "400: wrong; 404: no such picture; 411, 413: a body without length, or too long",
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": _WRONG,
    503: {"model": Refusal, "description": "Busy, or nothing to serve yet; see Retry-After"},
}
_PICTURE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": _PICTURE, "image/*": _PICTURE},
    }
}


def make_app(service: SearchService) -> FastAPI:
    """The application over a service."""
    app = FastAPI(
        title="align search",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    _refusals(app)
    _searches(app, service)
    _pictures(app, service)
    _about(app, service)
    _page(app)
    return app


def _searches(app: FastAPI, service: SearchService) -> None:
    @app.get(
        "/search",
        response_model=SearchAnswer,
        responses=_REFUSALS,
        summary="By text or key",
        openapi_extra={"parameters": parameters_of()},
    )
    async def search(request: Request) -> Response:
        """Pictures for a text, or like an indexed picture, with words added or taken away."""
        return await _search(service, request, _asked(request))

    @app.post(
        "/search/image",
        response_model=SearchAnswer,
        responses=_REFUSALS,
        summary="By a picture",
        openapi_extra=_UPLOAD | {"parameters": parameters_of("text", "key")},
    )
    async def search_upload(request: Request) -> Response:
        """Pictures like one's own, whose file is the body, with words added or taken away."""
        return await _search(service, request, _asked(request), await request.body())

    @app.get("/start", response_model=StartAnswer, responses=_REFUSALS, summary="Some pictures")
    async def begin() -> Response:
        """What a page begins with: pictures evenly over the index, an example, the columns of a catalogue."""
        served = service.served()
        return _json(await asyncio.to_thread(start, served))

    @app.post("/embed", response_model=EmbedAnswer, responses=_REFUSALS, summary="Embeddings of texts")
    async def embed(asked: EmbedRequest) -> Response:
        """Embeddings by the model that is served."""
        for text in asked.texts:
            require_text(text, "texts")
        return await embedded(service.served(), asked.texts, [])

    @app.post(
        "/embed/image",
        response_model=EmbedAnswer,
        responses=_REFUSALS,
        summary="The embedding of a picture",
        openapi_extra=_UPLOAD,
    )
    async def embed_upload(request: Request) -> Response:
        """The same; the body is the picture's file."""
        served = service.served()
        crop = await service.decoded(await request.body(), served)
        return await embedded(served, [], [crop])

    async def embedded(served: Served, texts: Sequence[str], crops: Sequence[NDArray[np.uint8]]) -> Response:
        def finish(*rows: NDArray[np.float32]) -> EmbedAnswer:
            return EmbedAnswer(served=version(served), embeddings=np.concatenate(rows).tolist())

        return _json(await service.model.do(Work(served, texts, crops, finish)))


def _asked(request: Request) -> SearchQuery:
    """The parameters of an address, as FastAPI reads them, but without the quarter of a query's time that it takes."""
    given = request.query_params
    return parsed({**given, "where": given.getlist("where")})


async def _search(service: SearchService, request: Request, query: SearchQuery, image: bytes | None = None) -> Response:
    require_one_question(query, has_image=image is not None)
    if (end := query.offset + query.limit) > MAX_RESULTS:
        raise DataError(f"offset + limit: {end:,}; results end at {MAX_RESULTS:,}")
    served = service.served()
    allowed = await service.allowed(served, query)
    crops = [] if image is None else [await service.decoded(image, served)]

    def finish(*rows: NDArray[np.float32]) -> SearchAnswer:
        found = answer(query, served, allowed, service.text_weight, *rows)
        few = bounded(found.hits)
        return found.model_copy(update={"hits": few, "more": found.more or len(few) < len(found.hits)})

    return _json(await service.model.do(Work(served, query.texts, crops, finish)))


def _pictures(app: FastAPI, service: SearchService) -> None:
    @app.get(
        "/image/{key:path}",
        response_class=Response,
        responses=_REFUSALS | {200: {"content": {"image/jpeg": {}}, "description": "A JPEG"}},
        summary="An indexed picture",
    )
    async def image(key: str, of: str | None = None, large: bool = False) -> Response:
        """Its thumbnail; with `large` the picture of the shards, if they are here.

        `of` names the index, so that a browser may keep the picture.
        """
        served = service.served()
        try:
            data = await asyncio.to_thread(lambda: service.pictures.read(served, _item(served, key), large=large))
        except AlignError as error:
            raise HTTPException(404, str(error)) from None
        kept = "private, max-age=86400" if of and served.release.digest.startswith(of) else "no-store"
        return Response(data, media_type="image/jpeg", headers={"cache-control": kept})

    @app.get("/item/{key:path}", response_model=ItemAnswer, responses=_REFUSALS, summary="About a picture")
    async def item(key: str) -> Response:
        """Its page, what the filter's rules said, its shard, and the model that knows it."""
        served = service.served()
        return _json(await asyncio.to_thread(lambda: service.about(served, _item(served, key))))


def _item(served: Served, key: str) -> IndexedImage:
    try:
        return served.index.item(key)
    except DataError:
        raise HTTPException(404, f"no picture with key {key!r} in the index") from None


def _about(app: FastAPI, service: SearchService) -> None:
    answers: dict[int | str, dict[str, Any]] = {"4XX": _WRONG, 503: {"model": Health, "description": "Not ready"}}

    @app.get("/health", response_model=Health, responses=answers)
    async def health(ready: bool = False) -> Response:
        """Whether the service is well. With `ready`, 503 where it cannot answer queries."""
        found = await service.health()
        return _json(found, 503 if ready and not found.ready else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counts and times for Prometheus."""
        return PlainTextResponse(generate_latest(service.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _page(app: FastAPI) -> None:
    def add(path: str, file: Path) -> None:
        data = file.read_bytes()

        async def asset() -> Response:
            return Response(data, media_type=_TYPES[file.suffix], headers={"cache-control": "no-cache"})

        app.get(path, include_in_schema=False)(asset)

    add("/", PAGE / "index.html")
    for name in ("page.js", "query.js", "detail.js", "source.js", "page.css"):
        add(f"/{name}", PAGE / name)


def _refusals(app: FastAPI) -> None:
    @app.exception_handler(AlignError)
    async def wrong(request: Request, error: AlignError) -> Response:
        return refusal(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refusal(400, first_wrong(error.errors()))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def ours(request: Request, error: Exception) -> Response:
        return refusal(500, "the server failed; its log says why")


def refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    """A refusal in one line."""
    return _json(Refusal(error=" ".join(reason.split())[:1000]), status, headers)


def _json(value: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(value.model_dump_json(), status, headers, "application/json")
