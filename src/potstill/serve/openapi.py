"""The server's own description in OpenAPI 3.1, made from the same models that read its requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill import __version__
from potstill.serve.wire import ChatRequest, CompletionRequest, EmbeddingRequest, RolesRequest, Strict

ERRORS = {
    "400": "a parameter is wrong or not supported; `param` names it",
    "401": "the key is missing or wrong",
    "403": "the key may not do this",
    "404": "there is no such model, role or endpoint",
    "405": "the endpoint does not know the method",
    "408": "the body came too slowly",
    "409": "the last role cannot be dropped",
    "413": "the body is too large",
    "415": "the body is not declared as JSON",
    "429": "too many requests, the budget or the teacher's quota is spent",
    "500": "a bug, or the engine failed",
    "502": "the teacher failed",
    "503": "the queue is full, or there is no engine",
    "504": "no answer in time",
}
_JSON = {"application/json": {"schema": {"type": "object"}}}
_ERROR = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": {"type": "string"},
                        "type": {"type": "string"},
                        "param": {"type": ["string", "null"]},
                        "code": {"type": ["string", "null"]},
                    },
                }
            },
        }
    }
}


def describe(answering: Sequence[str], embedding: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI document; it names the models that answer, and those that embed."""
    stream = {**_JSON, "text/event-stream": {}}
    models = _operation("The models")
    models["responses"]["200"]["links"] = {
        "first": {"operationId": "retrieve_model", "parameters": {"model": "$response.body#/data/0/id"}}
    }
    paths = {
        "/health": {"get": _operation("Liveness", open_to_all=True)},
        "/ready": {"get": _operation("Readiness", open_to_all=True)},
        "/metrics": {"get": _operation("Prometheus metrics", {"text/plain": {"schema": {"type": "string"}}})},
        "/openapi.json": {"get": _operation("This document")},
        "/v1/models": {"get": models},
        "/v1/models/{model}": {
            "get": {**_operation("One model"), "operationId": "retrieve_model", "parameters": [_in_path("model")]}
        },
        "/v1/chat/completions": {"post": _operation("A chat completion", stream, ChatRequest)},
        "/v1/completions": {"post": _operation("A completion of a bare text", stream, CompletionRequest)},
        "/v1/embeddings": {"post": _operation("Vectors of texts", _JSON, EmbeddingRequest)},
        "/v1/roles": {
            "get": _operation("The roles that are served"),
            "post": _operation("Serve another student's roles (admin)", _JSON, RolesRequest),
        },
        "/v1/roles/{role}": {
            "delete": {**_operation("Serve a role no longer (admin)"), "parameters": [_in_path("role")]}
        },
    }
    kinds = (ChatRequest, CompletionRequest, EmbeddingRequest, RolesRequest)
    schemas: dict[str, Any] = {}
    for kind in kinds:
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema
    for kind, names in ((ChatRequest, answering), (CompletionRequest, answering), (EmbeddingRequest, embedding)):
        if names:
            schemas[kind.__name__]["properties"]["model"]["enum"] = list(names)
    return {
        "openapi": "3.1.0",
        "info": {"title": "potstill serve-local", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(
    summary: str, content: Any = None, body: type[Strict] | None = None, *, open_to_all: bool = False
) -> dict[str, Any]:
    errors = {status: {"description": text, "content": _ERROR} for status, text in ERRORS.items()}
    answer = {"200": {"description": "done", "content": content or _JSON}}
    made: dict[str, Any] = {"summary": summary, "responses": answer | errors}
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {**made, "security": []} if open_to_all else made


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
