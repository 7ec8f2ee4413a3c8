"""Files: resumable upload, get, list, download, delete. Held in memory.

Source: the Gemini API's `File` and Google's resumable upload protocol (headers `X-Goog-Upload-*`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from aiohttp import web

from potstill.teacher.emulator.models import page
from potstill.teacher.emulator.refusals import bad_request, no_file
from potstill.teacher.emulator.sending import refuse

LIFE = timedelta(hours=48)
MAX_BYTES = 2 * 2**30
STATUS = "X-Goog-Upload-Status"
UPLOAD_ID = "upload_id"


@dataclass(frozen=True)
class Stored:
    """One file; `generated` ones are results, the only kind that can be downloaded."""

    name: str
    data: bytes
    mime_type: str
    display_name: str
    created: datetime
    generated: bool = False

    @cached_property
    def sha256(self) -> str:
        """SHA-256 in hexadecimal, in base64 once more, as the API has it."""
        return base64.b64encode(hashlib.sha256(self.data).hexdigest().encode()).decode()

    def shown(self, origin: str) -> dict[str, Any]:
        """The file as the API shows it."""
        body = {
            "name": self.name,
            "mimeType": self.mime_type,
            "sizeBytes": str(len(self.data)),
            "createTime": stamp(self.created),
            "updateTime": stamp(self.created),
            "expirationTime": stamp(self.created + LIFE),
            "sha256Hash": self.sha256,
            "uri": f"{origin}/v1beta/{self.name}",
            "state": "ACTIVE",
            "source": "GENERATED" if self.generated else "UPLOADED",
        }
        if self.display_name:
            body["displayName"] = self.display_name
        if self.generated:
            body["downloadUri"] = f"{origin}/v1beta/{self.name}:download?alt=media"
        return body


@dataclass
class _Upload:
    """An upload under way."""

    name: str
    size: int
    mime_type: str
    display_name: str
    data: bytearray = field(default_factory=bytearray)
    done: bool = False


class Files:
    """The files of one emulator."""

    def __init__(self) -> None:
        self._stored: dict[str, Stored] = {}
        self._uploads: dict[str, _Upload] = {}

    def get(self, name: str) -> Stored | None:
        """A file by its whole name, `files/ID`."""
        return self._stored.get(name)

    def add(self, name: str, data: bytes, display_name: str) -> None:
        """Store a result of the service's own."""
        self._stored[name] = Stored(name, data, "application/jsonl", display_name, datetime.now(UTC), generated=True)

    def route(self, app: web.Application) -> None:
        """Add the routes."""
        for version in ("v1", "v1beta"):
            app.router.add_post(f"/upload/{version}/files", self._upload)
            app.router.add_get(f"/{version}/files", self._list)
            app.router.add_get(f"/{version}/files/{{id:[^/:]+}}", self._show)
            app.router.add_delete(f"/{version}/files/{{id:[^/:]+}}", self._delete)
            app.router.add_get(f"/{version}/files/{{id:[^/:]+}}:download", self._download)
            app.router.add_get(f"/download/{version}/files/{{id:[^/:]+}}:download", self._download)

    def knows_upload(self, request: web.Request) -> bool:
        """Whether the address itself allows the request: it was handed out to a caller with a key."""
        return request.query.get(UPLOAD_ID) in self._uploads

    async def _upload(self, request: web.Request) -> web.Response:
        commands = {part.strip() for part in request.headers.get("X-Goog-Upload-Command", "").lower().split(",")}
        if "start" in commands:
            return await self._start(request)
        identity = request.query.get(UPLOAD_ID, "")
        upload = self._uploads.get(identity)
        if upload is None:
            return refuse(bad_request("Upload has already been terminated, or was never begun."), {STATUS: "final"})
        if "query" in commands:
            status = "final" if upload.done else "active"
            return web.Response(headers={STATUS: status, "X-Goog-Upload-Size-Received": str(len(upload.data))})
        if "cancel" in commands:
            del self._uploads[identity]
            return web.Response(headers={STATUS: "cancelled"})
        return await self._receive(request, upload, finalize="finalize" in commands)

    async def _start(self, request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.text() or "{}")
            given = body.get("file", {})
            size = int(request.headers.get("X-Goog-Upload-Header-Content-Length") or given.get("sizeBytes") or 0)
        except (ValueError, AttributeError):
            return refuse(bad_request("Invalid JSON payload received."))
        if size > MAX_BYTES:
            return refuse(bad_request(f"File size of {size} bytes is above the limit of {MAX_BYTES} bytes."))
        name = given.get("name") or f"files/{secrets.token_hex(6)}"
        if name in self._stored:
            return refuse(bad_request(f"The file {name} already exists."))
        mime_type = request.headers.get("X-Goog-Upload-Header-Content-Type") or given.get("mimeType") or ""
        identity = secrets.token_urlsafe(24)
        self._uploads[identity] = _Upload(name, size, mime_type, given.get("displayName", ""))
        url = f"{request.url.origin()}{request.path}?{UPLOAD_ID}={identity}&upload_protocol=resumable"
        return web.json_response({}, headers={STATUS: "active", "X-Goog-Upload-URL": url})

    async def _receive(self, request: web.Request, upload: _Upload, *, finalize: bool) -> web.Response:
        offset = int(request.headers.get("X-Goog-Upload-Offset", 0))
        if upload.done or offset != len(upload.data):
            message = f"Offset {offset} is not where the upload stands: {len(upload.data)} bytes."
            return refuse(bad_request(message), {STATUS: "final" if upload.done else "active"})
        async for chunk in request.content.iter_any():
            upload.data += chunk
        if not finalize:
            return web.Response(headers={STATUS: "active"})
        if upload.size and len(upload.data) != upload.size:
            message = f"Upload of {len(upload.data)} bytes where {upload.size} were announced."
            return refuse(bad_request(message), {STATUS: "active"})
        upload.done = True
        stored = Stored(upload.name, bytes(upload.data), upload.mime_type, upload.display_name, datetime.now(UTC))
        upload.data.clear()
        self._stored[upload.name] = stored
        return web.json_response({"file": stored.shown(_origin(request))}, headers={STATUS: "final"})

    async def _list(self, request: web.Request) -> web.Response:
        try:
            chosen, following = page(list(self._stored.values()), dict(request.query), 10)
        except ValueError:
            return refuse(bad_request("Invalid page size or page token."))
        files = [stored.shown(_origin(request)) for stored in chosen]
        return web.json_response({"files": files, **({"nextPageToken": following} if following else {})})

    async def _show(self, request: web.Request) -> web.Response:
        name = f"files/{request.match_info['id']}"
        stored = self._stored.get(name)
        return refuse(no_file(name)) if stored is None else web.json_response(stored.shown(_origin(request)))

    async def _download(self, request: web.Request) -> web.Response:
        name = f"files/{request.match_info['id']}"
        stored = self._stored.get(name)
        if stored is None:
            return refuse(no_file(name))
        if not stored.generated:
            return refuse(bad_request("Only generated files can be downloaded, uploaded files can't be downloaded."))
        return web.Response(body=stored.data, content_type="application/octet-stream")

    async def _delete(self, request: web.Request) -> web.Response:
        name = f"files/{request.match_info['id']}"
        return refuse(no_file(name)) if self._stored.pop(name, None) is None else web.json_response({})


def stamp(moment: datetime) -> str:
    """A moment as the API writes it."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _origin(request: web.Request) -> str:
    return str(request.url.origin())
