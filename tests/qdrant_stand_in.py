"""A Qdrant server's REST protocol, as far as an index needs it, over qdrant-client's memory mode; strict as its cloud is.

There is no server to be had where the tests run: this checks what is sent over the wire, not Qdrant itself.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models

PATH = re.compile(r"/collections/([^/?]+)(?:/([a-z/]+))?")


class _Handler(BaseHTTPRequestHandler):
    """One request; the collections are the server's."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def _reply(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        found = PATH.match(self.path)
        assert found is not None, self.path
        if self.server.key is not None and self.headers.get("api-key") != self.server.key:
            status, result = 401, "Must provide an API key or an Authorization bearer token"
        else:
            with self.server.lock:
                status, result = self.server.answer(self.command, found[1], found[2] or "", body)
        data = json.dumps(
            {"result": result, "status": "ok" if status < 400 else {"error": result}, "time": 0.0}
        ).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = _reply  # noqa: N815  (http.server's names)


class _Server(ThreadingHTTPServer):
    def __init__(self, key: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key = key
        self.client = QdrantClient(":memory:")
        self.indexed: set[tuple[str, str]] = set()
        self.lock = threading.Lock()

    def answer(self, method: str, name: str, what: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and result of one request."""
        client = self.client
        if what == "exists":
            return 200, {"exists": client.collection_exists(name)}
        if method == "PUT" and not what:
            client.create_collection(name, vectors_config=models.VectorParams(**body["vectors"]))
            return 200, True
        if not client.collection_exists(name):
            return 404, f"Not found: Collection `{name}` doesn't exist!"
        if method == "DELETE":
            return 200, client.delete_collection(name)
        return self._points(name, what, body)

    def _points(self, name: str, what: str, body: dict[str, Any]) -> tuple[int, Any]:
        client = self.client
        done: dict[str, Any] = {"operation_id": 1, "status": "completed"}
        match what:
            case "index":
                self.indexed.add((name, body["field_name"]))
            case "points":
                client.upsert(name, points=[models.PointStruct(**point) for point in body["points"]])
            case "points/delete":
                client.delete(name, points_selector=body["points"])
            case "points/count":
                done = {"count": client.count(name).count}
            case "points/scroll":
                records, offset = client.scroll(
                    name, limit=body["limit"], offset=body.get("offset"), with_payload=False
                )
                done = {"points": [{"id": record.id} for record in records], "next_page_offset": offset}
            case "points/query" if any((name, item["key"]) not in self.indexed for item in body["filter"]["must"]):
                return 400, "Bad request: Index required but not found"
            case "points/query":
                condition = models.Filter(**body["filter"])
                query = body["query"]["nearest"]
                found = client.query_points(name, query=query, query_filter=condition, limit=body["limit"])
                done = {"points": [{"id": point.id, "version": 1, "score": point.score} for point in found.points]}
            case _:
                raise AssertionError(what)
        return 200, done


@contextmanager
def qdrant_stand_in(key: str | None = None) -> Iterator[tuple[str, QdrantClient]]:
    """Its URL, and the client over the collections that it serves; with a key it turns away who does not bring it."""
    with _Server(key) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", server.client
        finally:
            server.shutdown()
            thread.join()
