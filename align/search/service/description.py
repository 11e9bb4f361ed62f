"""The OpenAPI description, and a page of it that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from align.display.html import escape

_TAIL = "</main></body></html>\n"


def description(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, without the answer 422: a request that is wrong gets 400 and one line."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        app.openapi_schema = found
    return app.openapi_schema


def parameters_of(kind: type[BaseModel]) -> list[dict[str, Any]]:
    """The fields of a model as parameters of an address, as OpenAPI writes them."""
    fields = kind.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in fields.items()]


def docs_page(schema: Mapping[str, Any]) -> str:
    """The endpoints, one paragraph each."""
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>align search: endpoints</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="/page.css"></head><body class="docs"><main><h1>Endpoints</h1>'
        '<p>For programs: <a href="/openapi.json">openapi.json</a>. For people: <a href="/">the search page</a>.</p>'
    ]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p>")
            names = [parameter["name"] for parameter in operation.get("parameters", [])]
            if names:
                parts.append(f"<p>Parameters: {escape(', '.join(names))}</p>")
            for body in operation.get("requestBody", {}).get("content", {}).values():
                reference = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
                if reference:
                    fields = schema["components"]["schemas"][reference].get("properties", {})
                    parts.append(f"<p>Body, as JSON: {escape(', '.join(fields))}</p>")
            parts.append(f"<p>Answers: {escape(', '.join(operation['responses']))}</p>")
    return "".join(parts) + _TAIL
