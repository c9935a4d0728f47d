"""The standard gRPC health service, for a hospital's monitoring.

The service named ``""`` is SERVING only while every component is well; each component is a service of its own name.
Ask with any client of ``grpc.health.v1``, or with ``python -m fedmed.health 127.0.0.1:PORT [COMPONENT]``, whose exit
code is 0 if all is well.
"""

import argparse
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc  # type: ignore[import-untyped]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from fedmed.config.addresses import is_loopback, split_address
from fedmed.errors import ConfigError, ProcessError
from fedmed.processes import check_port_free
from fedmed.versions import add_version_option

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthService:
    """Tells on the loopback interface whether everything is well; a context manager.

    Parameters
    ----------
    address : str or None
        ``host:port`` to listen on; None does not listen, and still remembers :meth:`problems`.

    Raises
    ------
    ConfigError
        If the address is none of the loopback interface.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        if address is not None:
            try:
                self._place = split_address(address, "health")
            except ValueError as error:
                raise ConfigError(f"{error}.") from None
            if not is_loopback(self._place[0]):
                raise ConfigError(
                    f"health is {address!r}, but the health service is for this machine only; write 127.0.0.1:PORT."
                )
        self._lock = threading.Lock()
        self._problems: dict[str, str] = {}
        self._servicer = health.HealthServicer()
        self._servicer.set("", _NOT_SERVING)
        self._server: grpc.Server | None = None

    def __enter__(self) -> Self:
        """Begin to listen.

        Raises
        ------
        ProcessError
            If the port is taken.
        """
        if self.address is None:
            return self
        check_port_free(*self._place, "health")
        # Without so_reuseport=0 a second process could share the port, and the answers would be of either.
        server = grpc.server(ThreadPoolExecutor(2, thread_name_prefix="health"), options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        try:
            server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise ProcessError(f"The health service cannot listen on {self.address}. Change 'health'.") from error
        server.start()
        self._server = server
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Tell whoever watches that nothing is served any more, and stop listening."""
        if self._server is not None:
            self._servicer.enter_graceful_shutdown()
            self._server.stop(grace=0.2).wait()
            self._server = None

    def set(self, component: str, ok: bool, reason: str = "") -> None:
        """Say how a component is.

        Parameters
        ----------
        component : str
            For example ``"superlink"``, ``"disk"`` or ``"connection"``.
        ok : bool
            Whether it is well.
        reason : str
            What is wrong, for :meth:`problems`; it does not travel.
        """
        if not component:
            raise ValueError("component must have a name: the empty one stands for all of them")
        with self._lock:
            self._problems.pop(component, None)
            if not ok:
                self._problems[component] = reason or "no reason given"
            self._servicer.set(component, _SERVING if ok else _NOT_SERVING)
            self._servicer.set("", _NOT_SERVING if self._problems else _SERVING)

    def problems(self) -> dict[str, str]:
        """Return component -> what is wrong, for those that are not well."""
        with self._lock:
            return dict(self._problems)


def is_serving(address: str, service: str = "", timeout_s: float = 2.0) -> bool | None:
    """Ask a health service.

    Parameters
    ----------
    address : str
        ``host:port``.
    service : str
        A component, or ``""`` for all of them together.
    timeout_s : float
        Longest wait in seconds.

    Returns
    -------
    bool or None
        None if nobody answers, or the service is not known there.
    """
    # A hospital's proxy variables must not lead a question to this very machine astray.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = health_pb2_grpc.HealthStub(channel).Check
        try:
            answer = ask(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError:
            return None
    return bool(answer.status == _SERVING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask a health service from the command line; return 0 if it is well, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m fedmed.health", description="Ask a health service of fedmed.")
    parser.add_argument("address", metavar="ADDRESS", help="as under 'health:' in the settings, e.g. 127.0.0.1:8441")
    parser.add_argument("component", metavar="COMPONENT", nargs="?", default="", help="one component; default: all")
    add_version_option(parser)
    given = parser.parse_args(arguments)
    serving = is_serving(given.address, given.component)
    print({True: "SERVING", False: "NOT_SERVING", None: "no answer"}[serving])
    return 0 if serving else 1


if __name__ == "__main__":
    raise SystemExit(main())
