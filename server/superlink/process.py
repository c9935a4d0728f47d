"""Child process of ``flower-server``: Flower's SuperLink behind two listeners.

The public one is what the sites reach: TLS, Flower's Fleet API and our few questions. The private one is on the
loopback interface: Flower's Control API for the supervisor and its Runtime API for the executor of the ServerApp.
"""

import argparse
import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before flwr is imported, however this process was started

import uvicorn

from fedmed.errors import KeyFileError
from fedmed.processes import read_secret, set_up_logging, watch_parent
from server.superlink.admission import RefusalLog, Visitor
from server.superlink.asgi import Notifier
from server.superlink.connections import ConnectionCounter, ConnectionLimits
from server.superlink.flower_app import LinkLaunch, make_app
from server.superlink.gate import PrivateGate, PublicGate
from server.superlink.listener import CONNECTION, LimitedProtocol, open_listeners
from server.superlink.object_transfer import ObjectTransfer
from server.superlink.routes import Routes
from server.superlink.tls import CertificateFiles, demand_certificates, harden

_LOOK_EVERY_S = 0.5
_PURGE_EVERY_S = 30.0
_KEEP_ALIVE_S = 120
_M_ARENA_MAX = -8  # number of the setting in glibc's malloc.h
_NUM_ARENAS = 2

log = logging.getLogger("fedmed.superlink")


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: one signal ends both listeners here."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class SuperLink:
    """Both listeners and what has to be done from time to time.

    Parameters
    ----------
    launch : LinkLaunch
        Settings.
    """

    def __init__(self, launch: LinkLaunch) -> None:
        self._launch = launch
        app, states = make_app(launch)
        self._state = states.link_state
        self._notifier = Notifier()
        self._routes = Routes(
            self._state, Path(launch.hello_file), Path(launch.release_dir), Path(launch.collected_dir)
        )
        refusals = RefusalLog(Path(launch.refused_file) if launch.refused_file else None)
        parts = ObjectTransfer(app, self._state, Notifier(), launch.max_reply_bytes)
        opened = asyncio.Event()
        if launch.start_open:
            opened.set()
        counter = ConnectionCounter(ConnectionLimits(per_source=launch.max_connections_per_source))
        public = PublicGate(
            app,
            self._state,
            self._notifier,
            parts=parts,
            routes=self._routes,
            refusals=refusals,
            opened=opened,
            counter=counter,
            is_mutual=launch.mutual_tls,
        )
        token = read_secret(Path(launch.control_token_file)).decode().strip()
        private = PrivateGate(app, self._state, self._notifier, parts, opened=opened, control_token=token)
        self._private = Server(_configure(private, host="127.0.0.1", port=launch.private_port, lifespan="on"))
        tls = {} if launch.insecure else {"ssl_certfile": launch.certificate, "ssl_keyfile": launch.key}
        config = _configure(public, lifespan="off", http=LimitedProtocol, **tls)
        config.load()
        self._certificate: CertificateFiles | None = None
        if config.ssl is not None and launch.certificate is not None:
            harden(config.ssl)
            if launch.mutual_tls:
                demand_certificates(config.ssl, Path(str(launch.authority)), _make_recorder(refusals))
            files = Path(launch.certificate), Path(launch.key or launch.certificate)
            self._certificate = CertificateFiles(config.ssl, *files)
        self._public = Server(config)
        self._listeners: list[socket.socket] = open_listeners(launch.public_host, launch.public_port, counter)

    async def serve(self) -> bool:
        """Serve until a signal comes; return whether both listeners had started."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        private = asyncio.create_task(self._private.serve())
        while not self._private.started and not private.done():
            await asyncio.sleep(0.01)
        public = asyncio.create_task(self._public.serve(self._listeners))
        chores = [
            asyncio.create_task(_repeat(_LOOK_EVERY_S, self._look)),
            asyncio.create_task(_repeat(_PURGE_EVERY_S, self._purge)),
        ]
        await asyncio.wait({private, public}, return_when=asyncio.FIRST_COMPLETED)
        self._stop()
        for chore in chores:
            chore.cancel()
        await asyncio.gather(private, public, *chores, return_exceptions=True)
        return self._private.started and self._public.started

    def _stop(self) -> None:
        self._public.should_exit = self._private.should_exit = True
        self._notifier.close()

    def _look(self) -> None:
        if self._certificate is not None:
            self._certificate.reload_if_changed()
        if self._routes.look_for_release():
            self._notifier.notify()

    async def _purge(self) -> None:
        removed = await asyncio.to_thread(self._state.purge)
        if removed:
            log.info("removed %d messages, uploads and files that nobody waits for", removed)


def _make_recorder(refusals: RefusalLog) -> Callable[[str, bytes], None]:
    """Return a function that writes down why the handshake of the connection at hand was refused, and says so there."""

    def record(reason: str, alert: bytes) -> None:
        connection = CONNECTION.get()
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.send(alert)
        peer = None if connection is None else connection.peer
        refusals.add("unknown" if peer is None else peer[0], Visitor("none"), reason)

    return record


def _configure(app: Any, **settings: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        log_level="warning",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
        **settings,
    )


async def _repeat(every_s: float, work: Callable[[], Any]) -> None:
    """Do something again and again; a failure is written down and does not end it."""
    while True:
        await asyncio.sleep(every_s)
        try:
            result = work()
            if asyncio.iscoroutine(result):
                await result
        except Exception:
            log.exception("a regular chore failed")


def main() -> int:
    """Run the process; return 0 after a signal, 3 if a listener could not start."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--launch", type=Path, required=True)
    launch = LinkLaunch(**json.loads(parser.parse_args().launch.read_text()))
    watch_parent(launch.parent_pid)
    set_up_logging(Path(launch.log_file))
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("flwr").addFilter(_is_worth_a_line)
    os.umask(0o077)
    _share_memory()
    try:
        link = SuperLink(launch)
    except (OSError, ssl.SSLError, KeyFileError):
        log.exception("the SuperLink cannot start")
        return 3
    return 0 if asyncio.run(link.serve()) else 3


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Pass over what is asked every second."""
    return not record.getMessage().startswith(("ControlServicer.List", "[Fleet.GetRun]"))


def _share_memory() -> None:
    """Have all threads share what glibc keeps of freed memory; it would keep parts of messages for each of them."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _NUM_ARENAS)


if __name__ == "__main__":
    sys.exit(main())
