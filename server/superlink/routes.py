"""Our own questions that a site may ask the SuperLink: how things stand, and the released model.

``POST /v1/fedmed/hello``, ``GET /v1/fedmed/release/NAME`` and ``POST /v1/fedmed/collected``, signed like all requests.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

# Touched internals: the header in which Flower's SuperNode shows its key.
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

from fedmed.errors import FedmedError
from fedmed.protocol.http import COLLECTED_PATH, HELLO_PATH, RELEASE_PATH
from fedmed.protocol.release import MANIFEST_FILE, PLAIN_NAME, SHA256
from fedmed.storage.atomic_files import write_atomically
from server.superlink.admission import Visitor
from server.superlink.asgi import STALL_S, Receive, Scope, Send, answer, read_body
from server.superlink.state import DeploymentLinkState

_BLOCK_BYTES = 2**20
_LOOK_EVERY_BYTES = 8 * 2**20
_KEY = FLEET_HTTP_PUBLIC_KEY_HEADER.encode()
_LARGEST_QUESTION_BYTES = 65_536

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
        path, method = scope["path"], scope["method"]
        if path == HELLO_PATH and method in {"GET", "POST"}:
            await self._hello(send, visitor)
        elif path.startswith(RELEASE_PATH) and method == "GET":
            await self._send_file(scope, send, path.removeprefix(RELEASE_PATH), visitor)
        elif path == COLLECTED_PATH and method == "POST":
            await self._take_receipt(receive, send, visitor)
        else:
            await answer(send, 404)

    async def _hello(self, send: Send, visitor: Visitor) -> None:
        try:
            content = json.loads(await asyncio.to_thread(self._hello_file.read_bytes))
            name = await asyncio.to_thread(self._find_name, visitor)
        except (OSError, ValueError):
            log.exception("the answer to a site's check is not there")
            await answer(send, 503)
            return
        content |= {"time": datetime.now(UTC).isoformat(), "site": name}
        await answer(send, 200, json.dumps(content).encode())

    def _find_name(self, visitor: Visitor) -> str:
        return str(self._state.get_node_info(node_ids=[visitor.number])[0].name)

    async def _send_file(self, scope: Scope, send: Send, name: str, visitor: Visitor) -> None:
        path = self._release_dir / name
        if not PLAIN_NAME.fullmatch(name) or not path.is_file():
            await answer(send, 404)
            return
        with path.open("rb") as file:
            size = path.stat().st_size
            headers = [(b"content-length", str(size).encode()), (b"content-type", b"application/octet-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                await self._stream(file, size, scope, send, visitor)
            except TimeoutError:
                log.warning("the site with key %s does not take the released file", visitor.fingerprint)
                return  # the server closes the connection, as the file was not sent completely

    async def _stream(self, file: BinaryIO, size: int, scope: Scope, send: Send, visitor: Visitor) -> None:
        sent = 0
        while sent < size:
            if sent and sent % _LOOK_EVERY_BYTES == 0 and not await asyncio.to_thread(self._is_known, scope, visitor):
                log.warning("the site with key %s was revoked; its download ends", visitor.fingerprint)
                return  # likewise
            block = await asyncio.to_thread(file.read, min(size - sent, _BLOCK_BYTES))
            if not block:
                raise OSError("a released file became shorter while it was sent")
            sent += len(block)
            async with asyncio.timeout(STALL_S):
                await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _is_known(self, scope: Scope, visitor: Visitor) -> bool:
        """Return whether a site that was let in would still be; its signature may have grown old meanwhile."""
        try:
            key = base64.b64decode(dict(scope["headers"])[_KEY], validate=True)
        except (KeyError, binascii.Error):
            return False
        return self._state.get_node_id_by_public_key(key) == visitor.node_id

    async def _take_receipt(self, receive: Receive, send: Send, visitor: Visitor) -> None:
        sha256 = _read_sha256(await read_body(receive, _LARGEST_QUESTION_BYTES) or b"")
        if sha256 is None:
            await answer(send, 400)
            return
        content = {"manifest_sha256": sha256, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        path = self._collected_dir / f"{visitor.node_id}.json"
        try:
            await asyncio.to_thread(write_atomically, path, json.dumps(content).encode())
        except FedmedError as error:
            log.error("a receipt could not be written: %s", error)
            await answer(send, 507)
            return
        await answer(send, 204)


def _read_sha256(body: bytes) -> str | None:
    try:
        value = json.loads(body)["manifest_sha256"]
    except (ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) and SHA256.fullmatch(value) else None
