"""Our own questions that a site may ask the SuperLink: how things stand, and the released model.

``POST /v1/fedmed/hello``, ``GET /v1/fedmed/release/NAME`` and ``POST /v1/fedmed/collected``, signed like all requests.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

# Touched internals: the header in which Flower's SuperNode shows its key.
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from fedmed.errors import FedmedError
from fedmed.protocol.http import COLLECTED_PATH, HELLO_PATH, RELEASE_PATH
from fedmed.protocol.release import MANIFEST_FILE, PLAIN_NAME, SHA256
from fedmed.storage.atomic_files import write_atomically
from server.superlink.admission import Visitor
from server.superlink.asgi import STALL_S, read_body
from server.superlink.state import DeploymentLinkState

_BLOCK_BYTES = 2**20
_LOOK_EVERY_BYTES = 8 * 2**20
_LARGEST_QUESTION_BYTES = 65_536
_VISITOR = "fedmed.visitor"

log = logging.getLogger("fedmed.superlink")


class Reception:
    """Answers sites.

    Parameters
    ----------
    state : DeploymentLinkState
        Knows the sites' names.
    hello_file : Path
        What every site may know, as JSON.
    release_dir : Path
        The released model, once it is there.
    collected_dir : Path
        Takes ``NODE_ID.json`` for every site that has the model.
    """

    def __init__(self, state: DeploymentLinkState, hello_file: Path, release_dir: Path, collected_dir: Path) -> None:
        self._state = state
        self._hello_file, self._release_dir, self._collected_dir = hello_file, release_dir, collected_dir
        self._seen: tuple[int, int] | None = None
        routes = [
            Route(HELLO_PATH, self._hello, methods=["GET", "POST"]),
            Route(RELEASE_PATH + "{name}", self._send_file, methods=["GET"]),
            Route(COLLECTED_PATH, self._take_receipt, methods=["POST"]),
        ]
        self._router = Router(routes, redirect_slashes=False)
        self.release_sha256: str | None = None
        """SHA-256 of the released manifest, hexadecimal."""

    def look_for_release(self) -> bool:
        """Look at the release's folder and return whether there is another release than before."""
        manifest = self._release_dir / MANIFEST_FILE
        try:
            status = manifest.stat()
            seen = (status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return False
            found: str | None = hashlib.sha256(manifest.read_bytes()).hexdigest()
        except FileNotFoundError:
            seen, found = None, None
        changed = found != self.release_sha256
        self._seen, self.release_sha256 = seen, found
        return changed

    async def serve(self, scope: Scope, receive: Receive, send: Send, visitor: Visitor) -> None:
        """Answer a request of a known site."""
        scope[_VISITOR] = visitor
        try:
            await self._router(scope, receive, send)
        except _DownloadEnded as end:  # the server closes the connection, as the file was not sent completely
            log.warning("the site with key %s %s", visitor.fingerprint, end)

    async def _hello(self, request: Request) -> Response:
        try:
            content = json.loads(await asyncio.to_thread(self._hello_file.read_bytes))
            name = await asyncio.to_thread(self._find_name, request[_VISITOR])
        except (OSError, ValueError):
            log.exception("the answer to a site's check is not there")
            return Response(status_code=503)
        return JSONResponse(content | {"time": datetime.now(UTC).isoformat(), "site": name})

    def _find_name(self, visitor: Visitor) -> str:
        return str(self._state.get_node_info(node_ids=[visitor.number])[0].name)

    async def _send_file(self, request: Request) -> Response:
        path = self._release_dir / request.path_params["name"]
        if not PLAIN_NAME.fullmatch(path.name) or not path.is_file():
            return Response(status_code=404)
        size = path.stat().st_size
        headers = {"content-length": str(size)}
        return _Download(self._read_blocks(path, size, request), 200, headers, "application/octet-stream")

    async def _read_blocks(self, path: Path, size: int, request: Request) -> AsyncIterator[bytes]:
        sent = 0
        with path.open("rb") as file:
            while sent < size:
                if sent and sent % _LOOK_EVERY_BYTES == 0 and not await asyncio.to_thread(self._is_known, request):
                    raise _DownloadEnded("was revoked; its download ends")
                block = await asyncio.to_thread(file.read, min(size - sent, _BLOCK_BYTES))
                if not block:
                    raise OSError("a released file became shorter while it was sent")
                sent += len(block)
                yield block

    def _is_known(self, request: Request) -> bool:
        """Return whether a site that was let in would still be; its signature may have grown old meanwhile."""
        try:
            key = base64.b64decode(request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        except (KeyError, binascii.Error):
            return False
        visitor: Visitor = request[_VISITOR]
        return self._state.get_node_id_by_public_key(key) == visitor.node_id

    async def _take_receipt(self, request: Request) -> Response:
        sha256 = _read_sha256(await read_body(request.receive, _LARGEST_QUESTION_BYTES) or b"")
        if sha256 is None:
            return Response(status_code=400)
        content = {"manifest_sha256": sha256, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        path = self._collected_dir / f"{request[_VISITOR].node_id}.json"
        try:
            await asyncio.to_thread(write_atomically, path, json.dumps(content).encode())
        except FedmedError as error:
            log.error("a receipt could not be written: %s", error)
            return Response(status_code=507)
        return Response(status_code=204)


class _DownloadEnded(Exception):  # noqa: N818  (a site's doing)
    """A site shall not have the rest of a file, or does not take it."""


class _Download(StreamingResponse):
    """Ends if the other side takes nothing for a while."""

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(event: Message) -> None:
            try:
                async with asyncio.timeout(STALL_S):
                    await send(event)
            except TimeoutError:
                raise _DownloadEnded("does not take the released file") from None

        await super().stream_response(send_in_time)


def _read_sha256(body: bytes) -> str | None:
    try:
        value = json.loads(body)["manifest_sha256"]
    except (ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) and SHA256.fullmatch(value) else None
